"""Physics-informed networks: residuals of differential equations, with their conditions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import grad, hessian, jacfwd, jvp, vmap
from networks import mlp, mlp_json, scalar
from reference import Case, check, loss, normal, uniform

import nablad

NET = mlp_json(2, 6, 6, 1)
SOLID = mlp_json(3, 6, 6, 1)


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


def laplace(u: Any, x: Any) -> Any:
    """The trace of the Hessian of a function of one point."""
    return jnp.trace(hessian(u)(x))


def square_walls(n: int, seed: int = 0) -> Any:
    """Points on the left and on the right side of the unit square."""
    y = uniform(2 * n, seed=seed)
    return np.stack([np.repeat([0.0, 1.0], n), y], axis=1)


@loss(
    """
def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) + u * d(u, x) - nu * d(u, x, x)

pde = mean(vmap(residual)(points[:, 0], points[:, 1])**2)
ic = mean((model(initial)[:, 0] + sin(pi * initial[:, 1]))**2)
bc = mean(model(walls)**2)
pde + 20 * ic + bc
""",
    models={"model": NET},
    inputs={
        "points": normal(8, 2),
        "initial": normal(4, 2, seed=1),
        "walls": normal(3, 2, seed=2),
        "nu": 0.02,
    },
    wrt=["params", "nu", "points"],
    terms=["pde", "ic", "bc"],
)
def burgers(p: Any, points: Any, initial: Any, walls: Any, nu: Any) -> Any:
    def residual(q: Any) -> Any:
        u_t, u_x = grad(scalar, 1)(p, q)
        return u_t + scalar(p, q) * u_x - nu * hessian(scalar, 1)(p, q)[1, 1]

    u = vmap(scalar, (None, 0))
    pde = jnp.mean(vmap(residual)(points) ** 2)
    ic = jnp.mean((u(p, initial) + jnp.sin(jnp.pi * initial[:, 1])) ** 2)
    bc = jnp.mean(u(p, walls) ** 2)
    return pde + 20 * ic + bc, {"pde": pde, "ic": ic, "bc": bc}


@loss(
    """
u = model(x[:, None])[:, 0]
pde = mean((d(u, x, x) + pi**2 * sin(pi * x))**2)
bc = model(stack([0.0]))[0]**2 + model(stack([1.0]))[0]**2
pde + bc
""",
    models={"model": mlp_json(1, 6, 1)},
    inputs={"x": uniform(8)},
    wrt=["params", "x"],
    terms=["pde", "bc"],
)
def poisson_on_a_line(p: Any, x: Any) -> Any:
    # One hidden layer of tanh: u'' = sum_k c_k w_k^2 (tanh^3 - tanh)(w_k x + b_k) 2.
    w, b = p["layer_1.weight"][:, 0], p["layer_1.bias"]
    c, e = p["layer_2.weight"][0], p["layer_2.bias"][0]
    h = jnp.tanh(x[:, None] * w + b)
    pde = jnp.mean((2 * (h**3 - h) @ (c * w**2) + jnp.pi**2 * jnp.sin(jnp.pi * x)) ** 2)
    bc = (jnp.tanh(b) @ c + e) ** 2 + (jnp.tanh(w + b) @ c + e) ** 2
    return pde + bc, {"pde": pde, "bc": bc}


@loss(
    """
u = model(x)[:, 0]
f = 3 * pi**2 * prod(sin(pi * x), axis=1)
pde = mean((laplacian(u, x) + f)**2)
bc = mean(model(walls)**2)
pde + 10 * bc
""",
    models={"model": SOLID},
    inputs={"x": uniform(6, 3), "walls": np.concatenate([np.eye(3), 1 - np.eye(3)])},
    wrt=["params", "x"],
    terms=["pde", "bc"],
)
def poisson_in_a_cube(p: Any, x: Any, walls: Any) -> Any:
    def residual(q: Any) -> Any:
        source = 3 * jnp.pi**2 * jnp.sin(jnp.pi * q[0]) * jnp.sin(jnp.pi * q[1]) * jnp.sin(jnp.pi * q[2])
        return laplace(lambda q: scalar(p, q), q) + source

    pde = jnp.mean(vmap(residual)(x) ** 2)
    bc = jnp.mean(vmap(mlp, (None, 0))(p, walls) ** 2)
    return pde + 10 * bc, {"pde": pde, "bc": bc}


@loss(
    """
u = model(x)[:, 0]
exact = sum(sin(pi / 4 * x), axis=1)
pde = mean((laplacian(u, x) + (pi / 4)**2 * exact)**2)
pde
""",
    models={"model": mlp_json(10, 8, 1)},
    inputs={"x": normal(6, 10)},
    wrt=["params", "x"],
    terms=["pde"],
)
def poisson_in_ten_dimensions(p: Any, x: Any) -> Any:
    # The Laplacian of c . tanh(W x + b) is sum_k c_k |W_k|^2 tanh''(.), with tanh'' = 2 (tanh^3 - tanh).
    W, b, c = p["layer_1.weight"], p["layer_1.bias"], p["layer_2.weight"][0]
    h = jnp.tanh(x @ W.T + b)
    laplacian = 2 * (h**3 - h) @ (c * jnp.sum(W**2, axis=1))
    pde = jnp.mean((laplacian + (jnp.pi / 4) ** 2 * jnp.sum(jnp.sin(jnp.pi / 4 * x), axis=1)) ** 2)
    return pde, {"pde": pde}


@loss(
    """
g = grad(sum(model(x)), x)
estimate = hutchinson_trace(g, x, probes)
mean((estimate + f)**2)
""",
    models={"model": mlp_json(100, 6, 1)},
    inputs={"x": normal(3, 100), "probes": np.sign(normal(2, 3, 100, seed=1)), "f": normal(3, seed=2)},
    wrt=["params", "x"],
)
def poisson_in_a_hundred_dimensions_by_probes(p: Any, x: Any, probes: Any, f: Any) -> Any:
    # v' H v of c . tanh(W x + b) is sum_k c_k tanh''(.)_k (W_k . v)^2.
    W, b, c = p["layer_1.weight"], p["layer_1.bias"], p["layer_2.weight"][0]
    h = jnp.tanh(x @ W.T + b)
    estimate = jnp.mean((probes @ W.T) ** 2 @ jnp.diag(c) * 2 * (h**3 - h), axis=0).sum(axis=1)
    return jnp.mean((estimate + f) ** 2), {}


@loss(
    """
def solution(t, x):
    return model(stack([t, x]))[0]

def residual(t, x):
    u = solution(t, x)
    return d(u, t) + 6 * u * d(u, x) + d(u, x, x, x)

def seam(t):
    left, right = zeros(()), ones(())
    u, v = solution(t, left), solution(t, right)
    return (u - v)**2 + (d(u, left) - d(v, right))**2

pde = mean(vmap(residual)(t, x)**2)
periodic = mean(vmap(seam)(t))
pde + periodic
""",
    models={"model": mlp_json(2, 6, 1)},
    inputs={"t": uniform(6), "x": uniform(6, seed=1)},
    wrt=["params", "t", "x"],
    terms=["pde", "periodic"],
)
def korteweg_de_vries_periodic(p: Any, t: Any, x: Any) -> Any:
    def u(t: Any, x: Any) -> Any:
        return scalar(p, jnp.stack([t, x]))

    u_x = grad(u, 1)

    def residual(t: Any, x: Any) -> Any:
        return grad(u)(t, x) + 6 * u(t, x) * u_x(t, x) + grad(grad(u_x, 1), 1)(t, x)

    def seam(t: Any) -> Any:
        return (u(t, 0.0) - u(t, 1.0)) ** 2 + (u_x(t, 0.0) - u_x(t, 1.0)) ** 2

    pde, periodic = jnp.mean(vmap(residual)(t, x) ** 2), jnp.mean(vmap(seam)(t))
    return pde + periodic, {"pde": pde, "periodic": periodic}


@loss(
    """
def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) + a * u * d(u, x) + b * d(u, x, x) + c * d(u, x, x, x, x)

mean(vmap(residual)(t, x)**2)
""",
    models={"model": mlp_json(2, 6, 1)},
    inputs={"t": uniform(5), "x": uniform(5, seed=1), "a": 6.25, "b": 0.39, "c": 0.0015},
    wrt=["params", "a", "b", "c"],
)
def kuramoto_sivashinsky(p: Any, t: Any, x: Any, a: Any, b: Any, c: Any) -> Any:
    def residual(t: Any, x: Any) -> Any:
        def along(x: Any) -> Any:
            return scalar(p, jnp.stack([t, x]))

        u_t = grad(lambda t: scalar(p, jnp.stack([t, x])))(t)
        u_xx = jacfwd(grad(along))
        return u_t + a * along(x) * grad(along)(x) + b * u_xx(x) + c * jacfwd(jacfwd(u_xx))(x)

    return jnp.mean(vmap(residual)(t, x) ** 2), {}


CAUSAL = """
def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) - 0.0001 * d(u, x, x) + 5 * u**3 - 5 * u

r = vmap(residual)(t, x)
chunks = mean(reshape(r**2, (4, 3)), axis=1)
before = cumsum(chunks) - chunks
weights = stop_gradient(exp(-eps * before))
ic = mean((model(initial)[:, 0] - initial[:, 1]**2 * cos(pi * initial[:, 1]))**2)
pde = mean(weights * chunks)
pde + 100 * ic
"""
CAUSAL_DATA = {
    "t": np.sort(uniform(12)),
    "x": 2 * uniform(12, seed=1) - 1,
    "initial": np.stack([np.zeros(4), np.linspace(-1, 1, 4)], axis=1),
    "eps": 0.1,
}


def causal_loss(u: Any, t: Any, x: Any, initial: Any, eps: Any) -> Any:
    """Respecting causality (Wang et al., 2022, eq. 3.7): w_k = exp(-eps sum_{j<k} l_j), held fixed."""

    def residual(q: Any) -> Any:
        return grad(u)(q)[0] - 0.0001 * hessian(u)(q)[1, 1] + 5 * (u(q) ** 3 - u(q))

    chunks = jnp.mean(vmap(residual)(jnp.stack([t, x], axis=1)).reshape(4, 3) ** 2, axis=1)
    earlier = jnp.tril(jnp.ones((4, 4), chunks.dtype), -1)
    pde = jnp.mean(jnp.exp(-eps * earlier @ jax.lax.stop_gradient(chunks)) * chunks)
    target = initial[:, 1] ** 2 * jnp.cos(jnp.pi * initial[:, 1])
    ic = jnp.mean((vmap(u)(initial) - target) ** 2)
    return pde + 100 * ic, {"pde": pde, "ic": ic}


@loss(
    CAUSAL,
    models={
        "model": {
            "layers": [
                {"periodic": {"periods": [None, 2.0]}},
                {"dense": [3, 6], "activation": "tanh"},
                {"dense": [6, 1]},
            ]
        }
    },
    inputs=CAUSAL_DATA,
    wrt=["params"],
    terms=["pde", "ic"],
)
def allen_cahn_causal_periodic(p: Any, **data: Any) -> Any:
    def u(q: Any) -> Any:
        embedded = jnp.stack([q[0], jnp.cos(jnp.pi * q[1]), jnp.sin(jnp.pi * q[1])])
        h = jnp.tanh(p["layer_2.weight"] @ embedded + p["layer_2.bias"])
        return (p["layer_3.weight"] @ h + p["layer_3.bias"])[0]

    return causal_loss(u, **data)


FREQUENCIES = 0.3 * normal(3, 2, seed=8)


@loss(
    CAUSAL,
    models={"model": {"preset": "fourier_mlp", "sizes": [2, 6, 1], "features": 3}},
    state={"model": {"layer_1.frequencies": FREQUENCIES}},
    inputs=CAUSAL_DATA,
    wrt=["params"],
    terms=["pde", "ic"],
)
def allen_cahn_causal_random_features(p: Any, **data: Any) -> Any:
    def u(q: Any) -> Any:
        phase = 2 * jnp.pi * (FREQUENCIES.astype(q.dtype) @ q)
        embedded = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])
        h = jnp.tanh(p["layer_2.weight"] @ embedded + p["layer_2.bias"])
        return (p["layer_3.weight"] @ h + p["layer_3.bias"])[0]

    return causal_loss(u, **data)


@loss(
    """
def residual(point):
    x, y = point[0], point[1]
    u = (1 - x**2) * (1 - y**2) * model(stack([x, y]))[0]
    source = (1 - 17 * pi**2) * sin(pi * x) * sin(4 * pi * y)
    return d(u, x, x) + d(u, y, y) + u - source

mean(weight**2 * vmap(residual)(points)**2)
""",
    models={"model": NET},
    inputs={"points": 2 * uniform(7, 2) - 1, "weight": uniform(7, seed=1)},
    wrt=["params", "weight"],
)
def helmholtz_hard_boundary_self_adaptive(p: Any, points: Any, weight: Any) -> Any:
    def u(q: Any) -> Any:
        return jnp.prod(1 - q**2) * scalar(p, q)

    def residual(q: Any) -> Any:
        source = (1 - 17 * jnp.pi**2) * jnp.sin(jnp.pi * q[0]) * jnp.sin(4 * jnp.pi * q[1])
        return laplace(u, q) + u(q) - source

    return jnp.mean((weight * vmap(residual)(points)) ** 2), {}


@loss(
    """
def residual(t, x, c):
    u = model(stack([t, x]))[0]
    return d(u, t, t) - c**2 * d(u, x, x)

def start(x):
    t = zeros(())
    u = model(stack([t, x]))[0]
    return stack([u - sin(pi * x), d(u, t)])

pde = mean(vmap(residual)(points[:, 0], points[:, 1], c)**2)
ic = mean(vmap(start)(x0)**2)
pde + 10 * ic
""",
    models={"model": NET},
    inputs={"points": uniform(6, 2), "c": 1 + uniform(6, seed=1), "x0": uniform(4, seed=2)},
    wrt=["params", "c", "x0"],
    terms=["pde", "ic"],
)
def wave_with_a_speed_per_point(p: Any, points: Any, c: Any, x0: Any) -> Any:
    def residual(q: Any, c: Any) -> Any:
        H = hessian(scalar, 1)(p, q)
        return H[0, 0] - c**2 * H[1, 1]

    def start(x: Any) -> Any:
        q = jnp.stack([jnp.zeros_like(x), x])
        return (scalar(p, q) - jnp.sin(jnp.pi * x)) ** 2 + grad(scalar, 1)(p, q)[0] ** 2

    pde, ic = jnp.mean(vmap(residual)(points, c) ** 2), jnp.mean(vmap(start)(x0)) / 2
    return pde + 10 * ic, {"pde": pde, "ic": ic}


@loss(
    """
t = points[:, 0]
x = points[:, 1]
u = model(stack([t, x], axis=1))[:, 0]
flux = a * d(u, x)
mean((d(u, t) - a * d(u, x, x) - slope * d(u, x))**2) + 0.1 * mean(flux**2)
""",
    models={"model": NET},
    inputs={"points": uniform(6, 2), "a": 1 + uniform(6, seed=1), "slope": normal(6, seed=2)},
    wrt=["params", "a", "slope", "points"],
)
def heat_with_a_conductivity_per_point(p: Any, points: Any, a: Any, slope: Any) -> Any:
    def one(q: Any, a: Any, slope: Any) -> Any:
        u_t, u_x = grad(scalar, 1)(p, q)
        u_xx = hessian(scalar, 1)(p, q)[1, 1]
        return (u_t - a * u_xx - slope * u_x) ** 2 + 0.1 * (a * u_x) ** 2

    return jnp.mean(vmap(one)(points, a, slope)), {}


@loss(
    """
u = model(x)[:, 0]
pde = mean(laplacian(u, x)**2)
v = model(edge)[:, 0]
robin = mean((jvp(v, edge, normals) + alpha * v - g)**2)
pde + robin
""",
    models={"model": NET},
    inputs={
        "x": uniform(5, 2),
        "edge": square_walls(3),
        "normals": np.repeat([[-1.0, 0.0], [1.0, 0.0]], 3, axis=0),
        "g": normal(6),
        "alpha": 0.7,
    },
    wrt=["params", "alpha", "normals", "g"],
    terms=["pde", "robin"],
)
def laplace_with_a_robin_boundary(p: Any, x: Any, edge: Any, normals: Any, g: Any, alpha: Any) -> Any:
    def boundary(q: Any, n: Any, g: Any) -> Any:
        return (n @ grad(scalar, 1)(p, q) + alpha * scalar(p, q) - g) ** 2

    pde = jnp.mean(vmap(lambda q: laplace(lambda q: scalar(p, q), q) ** 2)(x))
    robin = jnp.mean(vmap(boundary)(edge, normals, g))
    return pde + robin, {"pde": pde, "robin": robin}


@loss(
    """
def residuals(q):
    fields = model(q)
    u, v, p = fields[0], fields[1], fields[2]
    du, dv, dp = grad(u, q), grad(v, q), grad(p, q)
    x_momentum = u * du[0] + v * du[1] + dp[0] - laplacian(u, q) / Re
    y_momentum = u * dv[0] + v * dv[1] + dp[1] - laplacian(v, q) / Re
    return stack([x_momentum, y_momentum, du[0] + dv[1]])

r = vmap(residuals)(points)
momentum = mean(r[:, :2]**2)
continuity = mean(r[:, 2]**2)
lid = mean((model(top)[:, :2] - stack([1.0, 0.0]))**2)
momentum + continuity + lid
""",
    models={"model": mlp_json(2, 6, 6, 3)},
    inputs={"points": uniform(6, 2), "top": np.stack([uniform(3, seed=1), np.ones(3)], axis=1), "Re": 100.0},
    wrt=["params", "Re", "points"],
    terms=["momentum", "continuity", "lid"],
)
def navier_stokes_cavity(p: Any, points: Any, top: Any, Re: Any) -> Any:
    def residuals(q: Any) -> Any:
        # (w . grad) w - lap w / Re + grad p with w the velocity, and div w.
        J, H = jacfwd(mlp, 1)(p, q), hessian(mlp, 1)(p, q)
        w = mlp(p, q)[:2]
        return J[:2] @ w + J[2] - jnp.trace(H[:2], axis1=1, axis2=2) / Re, J[0, 0] + J[1, 1]

    m, c = vmap(residuals)(points)
    lid = jnp.mean((vmap(mlp, (None, 0))(p, top)[:, :2] - jnp.array([1, 0])) ** 2)
    momentum, continuity = jnp.mean(m**2), jnp.mean(c**2)
    return momentum + continuity + lid, {"momentum": momentum, "continuity": continuity, "lid": lid}


@loss(
    """
def wave(t, x):
    return model(stack([t, x]))

def residual(t, x):
    h = wave(t, x)
    u, v = h[0], h[1]
    size = u**2 + v**2
    return stack([-d(v, t) + 0.5 * d(u, x, x) + size * u, d(u, t) + 0.5 * d(v, x, x) + size * v])

def seam(t, left, right):
    a, b = wave(t, left), wave(t, right)
    return sum((a - b)**2) + sum((jacobian(a, left) - jacobian(b, right))**2)

pde = mean(sum(vmap(residual)(t, x)**2, axis=1))
periodic = mean(vmap(seam)(t, -5.0, 5.0))
ic = mean((vmap(wave)(0.0, x) - stack([2 / cosh(x), zeros_like(x)], axis=1))**2)
pde + periodic + ic
""",
    models={"model": mlp_json(2, 6, 6, 2)},
    inputs={"t": uniform(6), "x": normal(6, seed=1)},
    wrt=["params"],
    terms=["pde", "periodic", "ic"],
)
def schroedinger(p: Any, t: Any, x: Any) -> Any:
    # i h_t + h_xx / 2 + |h|^2 h = 0 for h = u + i v, written with complex numbers.
    def h(t: Any, x: Any) -> Any:
        u, v = mlp(p, jnp.stack([t, x]))
        return u + 1j * v

    def along(f: Any, place: int) -> Any:
        """The derivative of a complex function of two real numbers in one of them."""
        return lambda *q: grad(lambda *q: f(*q).real, place)(*q) + 1j * grad(lambda *q: f(*q).imag, place)(*q)

    h_x = along(h, 1)

    def squared(z: Any) -> Any:
        return z.real**2 + z.imag**2

    def residual(t: Any, x: Any) -> Any:
        return 1j * along(h, 0)(t, x) + along(h_x, 1)(t, x) / 2 + squared(h(t, x)) * h(t, x)

    def seam(t: Any) -> Any:
        return squared(h(t, -5.0) - h(t, 5.0)) + squared(h_x(t, -5.0) - h_x(t, 5.0))

    pde = jnp.mean(squared(vmap(residual)(t, x)))
    periodic = jnp.mean(vmap(seam)(t))
    ic = jnp.mean(squared(vmap(lambda x: h(0.0, x) - 2 / jnp.cosh(x))(x))) / 2
    return pde + periodic + ic, {"pde": pde, "periodic": periodic, "ic": ic}


@loss(
    """
def residual(x):
    u = model(stack([x]))[0]
    return d(u, x, x) + u**2 - f0 * sin(x)

def slope(x):
    return d(residual(x), x)

r = mean(vmap(residual)(x)**2)
enhanced = mean(vmap(slope)(x)**2)
r + w * enhanced
""",
    models={"model": mlp_json(1, 6, 6, 1)},
    inputs={"x": normal(6), "f0": 1.5, "w": 0.01},
    wrt=["params", "f0", "w", "x"],
    terms=["r", "enhanced"],
)
def gradient_enhanced(p: Any, x: Any, f0: Any, w: Any) -> Any:
    def u(x: Any) -> Any:
        return scalar(p, x[None])

    def residual(x: Any) -> Any:
        return grad(grad(u))(x) + u(x) ** 2 - f0 * jnp.sin(x)

    r, enhanced = jnp.mean(vmap(residual)(x) ** 2), jnp.mean(vmap(jacfwd(residual))(x) ** 2)
    return r + w * enhanced, {"r": r, "enhanced": enhanced}


NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


@loss(
    """
y = model(x[:, None])[:, 0]
def integrand(s, x):
    return exp(s - x) * model(stack([s]))[0]
def history(x):
    s = x / 2 * (nodes + 1)
    return x / 2 * dot(weights, vmap(integrand, in_axes=(0, None))(s, x))

ide = mean((d(y, x) + y - vmap(history)(x))**2)
ic = (model(stack([0.0]))[0] - 1)**2
ide + ic
""",
    models={"model": mlp_json(1, 6, 1)},
    inputs={"x": 5 * uniform(5), "nodes": NODES, "weights": WEIGHTS},
    wrt=["params", "x"],
    terms=["ide", "ic"],
)
def volterra_by_quadrature(p: Any, x: Any, nodes: Any, weights: Any) -> Any:
    # y' + y = int_0^x e^{s - x} y(s) ds, the integral by Gauss and Legendre on [0, x].
    def y(x: Any) -> Any:
        return scalar(p, x[None])

    s = x[:, None] / 2 * (nodes + 1)
    integral = x / 2 * ((jnp.exp(s - x[:, None]) * vmap(vmap(y))(s)) @ weights)
    ide = jnp.mean((vmap(grad(y))(x) + vmap(y)(x) - integral) ** 2)
    ic = (y(jnp.zeros((), x.dtype)) - 1) ** 2
    return ide + ic, {"ide": ide, "ic": ic}


@loss(
    """
y = model(x[:, None])[:, 0]
mean((d(y, x) + y - Q @ y)**2)
""",
    models={"model": mlp_json(1, 6, 1)},
    inputs={"x": uniform(5), "Q": normal(5, 5)},
    wrt=["params", "Q", "x"],
)
def integral_as_a_matrix_over_the_points(p: Any, x: Any, Q: Any) -> Any:
    w, b, c = p["layer_1.weight"][:, 0], p["layer_1.bias"], p["layer_2.weight"][0]
    h = jnp.tanh(x[:, None] * w + b)
    y = h @ c + p["layer_2.bias"][0]
    return jnp.mean(((1 - h**2) @ (c * w) + y - Q @ y) ** 2), {}


@loss(
    """
u = model(x)[:, 0]
energy = mean(0.5 * sum(grad(sum(u), x)**2, axis=1) - f * u)
boundary = mean(model(edge)**2)
energy + beta * boundary
""",
    models={
        "model": {
            "layers": [
                {"dense": [2, 5]},
                {
                    "residual": [
                        {"dense": [5, 5], "activation": "softplus"},
                        {"dense": [5, 5], "activation": "softplus"},
                    ]
                },
                {"dense": [5, 1]},
            ]
        }
    },
    inputs={"x": uniform(8, 2), "f": uniform(8, seed=1), "edge": square_walls(2), "beta": 500.0},
    wrt=["params", "x", "f", "beta"],
    terms=["energy", "boundary"],
)
def deep_ritz(p: Any, x: Any, f: Any, edge: Any, beta: Any) -> Any:
    def u(q: Any) -> Any:
        h = p["layer_1.weight"] @ q + p["layer_1.bias"]
        inner = h
        for name in ("layer_2.layer_1", "layer_2.layer_2"):
            inner = jax.nn.softplus(p[f"{name}.weight"] @ inner + p[f"{name}.bias"])
        return (p["layer_3.weight"] @ (h + inner) + p["layer_3.bias"])[0]

    energy = jnp.mean(vmap(lambda q, f: 0.5 * jnp.sum(grad(u)(q) ** 2) - f * u(q))(x, f))
    boundary = jnp.mean(vmap(u)(edge) ** 2)
    return energy + beta * boundary, {"energy": energy, "boundary": boundary}


@loss(
    """
def plate(q):
    def bending(q):
        return laplacian(model(q)[0], q)
    return laplacian(bending(q), q)

mean((vmap(plate)(x) - load)**2)
""",
    models={"model": {"preset": "siren", "sizes": [2, 6, 1], "omega": 3.0}},
    inputs={"x": uniform(4, 2), "load": normal(4)},
    wrt=["params", "load"],
)
def biharmonic_plate(p: Any, x: Any, load: Any) -> Any:
    def u(q: Any) -> Any:
        h = jnp.sin(3 * (p["layer_1.weight"] @ q + p["layer_1.bias"]))
        return (p["layer_2.weight"] @ h + p["layer_2.bias"])[0]

    def plate(q: Any) -> Any:
        # u_xxxx + 2 u_xxyy + u_yyyy
        T = jacfwd(jacfwd(hessian(u)))(q)
        return T[0, 0, 0, 0] + 2 * T[0, 0, 1, 1] + T[1, 1, 1, 1]

    return jnp.mean((vmap(plate)(x) - load) ** 2), {}


@loss(
    """
def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) + speed * d(u, x)

grid = vmap(vmap(residual, in_axes=(None, 0)), in_axes=(0, None))(t, x)
mean(grid**2)
""",
    models={"model": NET},
    inputs={"t": uniform(3), "x": uniform(4, seed=1), "speed": 30.0},
    wrt=["params", "t", "x", "speed"],
)
def advection_on_a_tensor_grid(p: Any, t: Any, x: Any, speed: Any) -> Any:
    points = jnp.stack(jnp.meshgrid(t, x, indexing="ij"), axis=-1).reshape(-1, 2)
    direction = jnp.stack([jnp.ones_like(speed), speed])
    residual = vmap(lambda q: jvp(lambda q: scalar(p, q), (q,), (direction,))[1])(points)
    return jnp.mean(residual**2), {}


@loss(
    """
def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) - d(u, x, x)

pde = mean(vmap(residual)(points[:, 0], points[:, 1])**2)
data = mean((model(seen)[:, 0] - y)**2)
pull = norm(grad(data, model.params))
push = norm(grad(pde, model.params))
balance = stop_gradient((pull + push) / push)
balance * pde + data
""",
    models={"model": NET},
    inputs={"points": uniform(6, 2), "seen": uniform(5, 2, seed=1), "y": normal(5)},
    wrt=["params", "points"],
    terms=["pde", "data", "balance"],
)
def terms_balanced_by_their_gradient_norms(p: Any, points: Any, seen: Any, y: Any) -> Any:
    def pde(p: Any) -> Any:
        def residual(q: Any) -> Any:
            return grad(scalar, 1)(p, q)[0] - hessian(scalar, 1)(p, q)[1, 1]

        return jnp.mean(vmap(residual)(points) ** 2)

    def data(p: Any) -> Any:
        return jnp.mean((vmap(scalar, (None, 0))(p, seen) - y) ** 2)

    pull, push = (jnp.sqrt(sum(jnp.vdot(g, g) for g in grad(f)(p).values())) for f in (data, pde))
    balance = jax.lax.stop_gradient(1 + pull / push)
    return balance * pde(p) + data(p), {"pde": pde(p), "data": data(p), "balance": balance}
