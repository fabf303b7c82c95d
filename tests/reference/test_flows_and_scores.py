"""Densities: continuous and residual flows, score matching, diffusion."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import grad, hessian, jacfwd, jvp, vjp, vmap
from networks import batch_norm, leaves, mlp, mlp_json, scalar
from reference import Case, check, loss, normal, uniform

import nablad

FIELD = mlp_json(3, 6, 3)
SCORE = mlp_json(3, 6, 6, 3)
ENERGY = mlp_json(3, 6, 6, 1)


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


def at_time(p: Any, t: Any, z: Any) -> Any:
    """A net of a point of the plane and the time."""
    return mlp(p, jnp.concatenate([z, jnp.reshape(t, 1)]))


@loss(
    """
def path(x):
    def step(i, carry):
        z, gained = carry
        t = i / 4
        k1 = model(concat([z, stack([t])]))
        middle = z + k1 / 8
        k2 = model(concat([middle, stack([t + 0.125])]))
        return (z + k2 / 4, gained + divergence(k2, middle) / 4)
    z1, gained = fori(4, step, (x, 0.0))
    return 0.5 * sum(z1**2) + log(2 * pi) - gained

mean(vmap(path)(x))
""",
    models={"model": mlp_json(3, 6, 2)},
    inputs={"x": normal(5, 2)},
    wrt=["params", "x"],
)
def ffjord_with_the_exact_trace(p: Any, x: Any) -> Any:
    # -log N(z_1) - int tr df/dz dt by the midpoint rule with four steps.
    def path(z: Any) -> Any:
        gained = jnp.zeros((), z.dtype)
        for t in (0.0, 0.25, 0.5, 0.75):
            middle = z + at_time(p, jnp.asarray(t, z.dtype), z) / 8
            later = jnp.asarray(t + 0.125, z.dtype)
            gained += jnp.trace(jacfwd(at_time, 2)(p, later, middle)) / 4
            z = z + at_time(p, later, middle) / 4
        return z @ z / 2 + jnp.log(2 * jnp.pi) - gained

    return jnp.mean(vmap(path)(x)), {}


@loss(
    """
def path(x, eps):
    def step(carry, t):
        z, gained, kinetic, bend = carry
        f = model(concat([z, stack([t])]))
        eJ = vjp(f, z, eps)
        change = (z + h * f, gained + h * dot(eJ, eps), kinetic + h * sum(f**2), bend + h * sum(eJ**2))
        return (change, 0)
    last, unused = scan(step, (x, 0.0, 0.0, 0.0), times)
    z1, gained, kinetic, bend = last
    return stack([0.5 * sum(z1**2) - gained, kinetic, bend])

parts = mean(vmap(path)(x, eps), axis=0)
nll = parts[0]
kinetic = parts[1]
frobenius = parts[2]
nll + 0.01 * kinetic + 0.02 * frobenius
""",
    models={"model": mlp_json(3, 6, 2)},
    inputs={"x": normal(5, 2), "eps": np.sign(normal(5, 2, seed=1)), "times": np.arange(4) / 4, "h": 0.25},
    wrt=["params", "x", "h"],
    terms=["nll", "kinetic", "frobenius"],
)
def rnode(p: Any, x: Any, eps: Any, times: Any, h: Any) -> Any:
    def path(z: Any, eps: Any) -> Any:
        gained = kinetic = bend = jnp.zeros((), z.dtype)
        for t in times:
            f, J = at_time(p, t, z), jacfwd(at_time, 2)(p, t, z)
            gained, kinetic = gained + h * eps @ J @ eps, kinetic + h * f @ f
            bend, z = bend + h * jnp.sum((J.T @ eps) ** 2), z + h * f
        return z @ z / 2 - gained, kinetic, bend

    nll, kinetic, frobenius = (jnp.mean(each) for each in vmap(path)(x, eps))
    terms = {"nll": nll, "kinetic": kinetic, "frobenius": frobenius}
    return nll + 0.01 * kinetic + 0.02 * frobenius, terms


@loss(
    """
def path(x):
    def step(i, carry):
        z, log_det, cost, hjb = carry
        t = i / 3
        phi = model(concat([z, stack([t])]))[0]
        slope = grad(phi, z)
        drift = 0.5 * sum(slope**2)
        bent = hjb + abs(d(phi, t) - drift) / 3
        return (z - slope / 3, log_det - laplacian(phi, z) / 3, cost + drift / 3, bent)
    z1, log_det, cost, hjb = fori(3, step, (x, 0.0, 0.0, 0.0))
    return stack([0.5 * sum(z1**2) - log_det, cost, hjb])

parts = mean(vmap(path)(x), axis=0)
likelihood = parts[0]
transport = parts[1]
hamilton_jacobi = parts[2]
likelihood + transport + hamilton_jacobi
""",
    models={"model": mlp_json(3, 6, 1)},
    inputs={"x": normal(4, 2)},
    wrt=["params", "x"],
    terms=["likelihood", "transport", "hamilton_jacobi"],
)
def ot_flow(p: Any, x: Any) -> Any:
    # The velocity is -grad Phi: Onken et al. (2021), eqs. 3, 6 and 8, by Euler's method with three steps.
    def path(z: Any) -> Any:
        log_det = cost = hjb = jnp.zeros((), z.dtype)
        for i in range(3):
            s = jnp.concatenate([z, jnp.full(1, i / 3, z.dtype)])
            g, H = grad(scalar, 1)(p, s), hessian(scalar, 1)(p, s)
            kinetic = g[:2] @ g[:2] / 2
            log_det, cost = log_det - (H[0, 0] + H[1, 1]) / 3, cost + kinetic / 3
            hjb, z = hjb + jnp.abs(g[2] - kinetic) / 3, z - g[:2] / 3
        return z @ z / 2 - log_det, cost, hjb

    likelihood, transport, hjb = (jnp.mean(each) for each in vmap(path)(x))
    terms = {"likelihood": likelihood, "transport": transport, "hamilton_jacobi": hjb}
    return likelihood + transport + hjb, terms


@loss(
    """
s = model(x)
mean(divergence(s, x) + 0.5 * sum(s**2, axis=1))
""",
    models={"model": SCORE},
    inputs={"x": normal(6, 3)},
    wrt=["params", "x"],
)
def score_matching_exact(p: Any, x: Any) -> Any:
    def one(x: Any) -> Any:
        return jnp.trace(jacfwd(mlp, 1)(p, x)) + jnp.sum(mlp(p, x) ** 2) / 2

    return jnp.mean(vmap(one)(x)), {}


@loss(
    """
s = model(x)
mean(divergence(s, x) + 0.5 * sum(s**2, axis=1))
""",
    models={"model": {"layers": [{"dense": [3, 3]}]}},
    inputs={"x": normal(8, 3)},
    wrt=["params", "x"],
)
def score_matching_of_a_gaussian(p: Any, x: Any) -> Any:
    # s = A x + b: tr A + 1/2 (tr A C A' + |A m + b|^2) with m, C the mean and the covariance of the data.
    A, b = p["layer_1.weight"], p["layer_1.bias"]
    m = jnp.mean(x, axis=0)
    C = (x - m).T @ (x - m) / len(x)
    return jnp.trace(A) + (jnp.trace(A @ C @ A.T) + jnp.sum((A @ m + b) ** 2)) / 2, {}


@loss(
    """
E = model(x)[:, 0]
s = -grad(sum(E), x)
mean(-laplacian(E, x) + 0.5 * sum(s**2, axis=1))
""",
    models={"model": ENERGY},
    inputs={"x": normal(5, 3)},
    wrt=["params"],
)
def score_matching_of_an_energy(p: Any, x: Any) -> Any:
    def one(x: Any) -> Any:
        slope = grad(scalar, 1)(p, x)
        return slope @ slope / 2 - jnp.trace(hessian(scalar, 1)(p, x))

    return jnp.mean(vmap(one)(x)), {}


@loss(
    """
E = model(x)[:, 0]
s = -grad(sum(E), x)
def slice(v):
    return sum(v * jvp(s, x, v), axis=1) + 0.5 * sum(v * s, axis=1)**2
mean(vmap(slice)(v))
""",
    models={"model": ENERGY},
    inputs={"x": normal(5, 3), "v": normal(2, 5, 3, seed=1)},
    wrt=["params", "x", "v"],
)
def score_matching_sliced(p: Any, x: Any, v: Any) -> Any:
    # -v' H v + (v' grad E)^2 / 2, with samples x and projections v: Song et al. (2019), eq. 8.
    def one(x: Any, v: Any) -> Any:
        return (v @ grad(scalar, 1)(p, x)) ** 2 / 2 - v @ hessian(scalar, 1)(p, x) @ v

    return jnp.mean(vmap(vmap(one), (None, 0))(x, v)), {}


@loss(
    """
s = model(x)
trace, error = hutchinson(s, x, v)
fit = mean(trace + 0.5 * sum(s**2, axis=1))
spread = mean(error)
fit + 0.1 * spread
""",
    models={"model": SCORE},
    inputs={"x": normal(4, 3), "v": np.sign(normal(3, 4, 3, seed=1))},
    wrt=["params", "x"],
    terms=["fit", "spread"],
)
def score_matching_by_hutchinson(p: Any, x: Any, v: Any) -> Any:
    def one(x: Any, v: Any) -> Any:
        s, J = mlp(p, x), jacfwd(mlp, 1)(p, x)
        estimates = jnp.einsum("pi,ij,pj->p", v, J, v)
        n = len(v)
        variance = jnp.sum((estimates - jnp.mean(estimates)) ** 2) / (n - 1)
        return jnp.mean(estimates) + s @ s / 2, jnp.sqrt(variance / n)

    fits, errors = vmap(one, (0, 1))(x, v)
    fit, spread = jnp.mean(fits), jnp.mean(errors)
    return fit + 0.1 * spread, {"fit": fit, "spread": spread}


@loss(
    """
noisy = x + sigma * noise
score = -grad(sum(model(noisy)), noisy)
0.5 * mean(sum((sigma * score + noise)**2, axis=1))
""",
    models={"model": ENERGY},
    inputs={"x": normal(5, 3), "noise": normal(5, 3, seed=1), "sigma": 0.3},
    wrt=["params", "sigma", "x"],
)
def denoising_score_matching_of_an_energy(p: Any, x: Any, noise: Any, sigma: Any) -> Any:
    def one(x: Any, noise: Any) -> Any:
        slope = grad(scalar, 1)(p, x + sigma * noise)
        return jnp.sum((noise - sigma * slope) ** 2) / 2

    return jnp.mean(vmap(one)(x, noise)), {}


MEAN, VAR = normal(5), 0.5 + uniform(5, seed=1)


@loss(
    """
def drift(z, t):
    beta = 0.1 + 19.9 * t
    return -0.5 * beta * (z + model(concat([z, broadcast_to(t, (z.shape[0], 1))], axis=1)))

def step(i, carry):
    z, gained = carry
    t = i / 3
    f = drift(z, t)
    return (z + 0.01 * f, gained + 0.01 * hutchinson_trace(f, z, eps))

z1, gained = fori(3, step, (x, zeros(x.shape[0])))
prior = -0.5 * sum(z1**2, axis=1) - 0.5 * x.shape[1] * log(2 * pi)
bits = -mean(prior + gained) / (x.shape[1] * log(2.0))
bits
""",
    models={
        "model": {
            "layers": [{"dense": [3, 5]}, {"batchnorm": 5, "activation": "silu"}, {"dense": [5, 2]}],
        }
    },
    state={"model": {"layer_2.running_mean": MEAN, "layer_2.running_var": VAR}},
    inputs={"x": normal(4, 2), "eps": np.sign(normal(4, 2, seed=1))},
    wrt=["x"],
    terms=["bits"],
)
def diffusion_likelihood_with_running_statistics(p: Any, x: Any, eps: Any) -> Any:
    # The probability flow of a variance preserving diffusion: Song et al. (2021), eqs. 13 and 39.
    def score(z: Any, t: float) -> Any:
        h = p["layer_1.weight"] @ jnp.concatenate([z, jnp.full(1, t, z.dtype)]) + p["layer_1.bias"]
        h = batch_norm(leaves(p, "layer_2"), h, MEAN.astype(z.dtype), VAR.astype(z.dtype))
        return p["layer_3.weight"] @ (h * jax.nn.sigmoid(h)) + p["layer_3.bias"]

    def log_likelihood(z: Any, eps: Any) -> Any:
        gained = jnp.zeros((), z.dtype)
        for t in (0, 1 / 3, 2 / 3):
            beta = 0.1 + 19.9 * t
            f, pull = vjp(lambda z, t=t, beta=beta: -beta / 2 * (z + score(z, t)), z)
            gained, z = gained + 0.01 * pull(eps)[0] @ eps, z + 0.01 * f
        return gained - z @ z / 2 - jnp.log(2 * jnp.pi)

    bits = -jnp.mean(vmap(log_likelihood)(x, eps)) / (2 * np.log(2.0).item())
    return bits, {"bits": bits}


@loss(
    """
def log_density(x):
    g = model(x)
    z = x + 0.5 * g
    logdet = slogdet(eye(3) + 0.5 * jacobian(g, x))[1]
    return logdet - 0.5 * sum(z**2)

-mean(vmap(log_density)(x))
""",
    models={"model": FIELD},
    inputs={"x": normal(5, 3)},
    wrt=["params", "x"],
)
def residual_flow_with_its_determinant(p: Any, x: Any) -> Any:
    # f = x + g / 2; log det through the eigenvalues of f'^T f', whose determinant is that of f' squared.
    def f(x: Any) -> Any:
        return x + mlp(p, x) / 2

    def log_density(x: Any) -> Any:
        J = jacfwd(f)(x)
        return jnp.sum(jnp.log(jnp.linalg.eigvalsh(J.T @ J))) / 2 - jnp.sum(f(x) ** 2) / 2

    return -jnp.mean(vmap(log_density)(x)), {}


@loss(
    """
def log_det(x, v):
    g = 0.3 * model(x)
    def term(w, k):
        next = vjp(g, x, w)
        return (next, (-1.0)**(k + 1) / k * dot(next, v))
    last, series = scan(term, v, 1.0 * orders)
    return sum(series)

z = x + 0.3 * model(x)
mean(0.5 * sum(z**2, axis=1) - vmap(log_det)(x, v))
""",
    models={"model": FIELD},
    inputs={"x": normal(4, 3), "v": normal(4, 3, seed=1), "orders": np.arange(1, 7)},
    wrt=["params", "x", "v"],
)
def residual_flow_by_a_power_series(p: Any, x: Any, v: Any, orders: Any) -> Any:
    # log det (1 + J) = sum_k (-1)^(k + 1) tr J^k / k, the traces by one probe, six terms.
    def log_det(x: Any, v: Any) -> Any:
        J = 0.3 * jacfwd(mlp, 1)(p, x)
        powers = [jnp.linalg.matrix_power(J, k) for k in range(1, 7)]
        return sum((-1) ** (k + 1) / k * v @ power @ v for k, power in enumerate(powers, start=1))

    z = x + 0.3 * vmap(mlp, (None, 0))(p, x)
    return jnp.mean(jnp.sum(z**2, axis=1) / 2 - vmap(log_det)(x, v)), {}


@loss(
    """
xt = (1 - t) * x0 + t * x1
u = model(concat([xt, t], axis=1))
direct = mean(sum((u - (x1 - x0))**2, axis=1))
def along(z, t):
    f = model(concat([z, stack([t])]))
    return jacobian(f, t) + jvp(f, z, f)
straight = mean(sum(vmap(along)(xt, t[:, 0])**2, axis=1))
direct + 0.1 * straight
""",
    models={"model": mlp_json(3, 6, 2)},
    inputs={"x0": normal(5, 2), "x1": normal(5, 2, seed=1), "t": uniform(5, 1)},
    wrt=["params", "t"],
    terms=["direct", "straight"],
)
def flow_matching_with_straight_paths(p: Any, x0: Any, x1: Any, t: Any) -> Any:
    # The acceleration along a path is the total derivative f_t + J f: one tangent (f, 1).
    def one(x0: Any, x1: Any, t: Any) -> Any:
        z = x0 + t * (x1 - x0)
        f = at_time(p, t, z)
        _, acceleration = jvp(lambda t, z: at_time(p, t, z), (t, z), (jnp.ones_like(t), f))
        return jnp.sum((f - x1 + x0) ** 2), jnp.sum(acceleration**2)

    direct, straight = (jnp.mean(each) for each in vmap(one)(x0, x1, t[:, 0]))
    return direct + 0.1 * straight, {"direct": direct, "straight": straight}
