"""Unknown coefficients and fields of differential equations, learned with their solution."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import grad, hessian, jacfwd, jvp, vmap
from networks import mlp, mlp_json, scalar
from reference import Case, check, loss, normal, uniform

import nablad


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


@loss(
    """
def flow(t, x, y):
    out = model(stack([t, x, y]))
    psi, p = out[0], out[1]
    u, v = d(psi, y), -d(psi, x)
    f = d(u, t) + l1 * (u * d(u, x) + v * d(u, y)) + d(p, x) - l2 * (d(u, x, x) + d(u, y, y))
    g = d(v, t) + l1 * (u * d(v, x) + v * d(v, y)) + d(p, y) - l2 * (d(v, x, x) + d(v, y, y))
    return stack([u, v, f, g])

fields = vmap(flow)(points[:, 0], points[:, 1], points[:, 2])
data = mean((fields[:, :2] - seen)**2)
equations = mean(fields[:, 2:]**2)
data + equations
""",
    models={"model": mlp_json(3, 6, 2)},
    inputs={"points": uniform(5, 3), "seen": normal(5, 2), "l1": 0.9, "l2": 0.05},
    wrt=["params", "l1", "l2"],
    terms=["data", "equations"],
)
def navier_stokes_through_a_stream_function(
    p: Any, points: Any, seen: Any, l1: Any, l2: Any
) -> tuple[Any, dict[str, Any]]:
    def velocity(q: Any) -> Any:
        """(psi_y, -psi_x), the gradient of the stream function turned by a right angle."""
        slope = grad(scalar, 1)(p, q)[1:]
        return jnp.stack([slope[1], -slope[0]])

    def equations(q: Any) -> Any:
        w = velocity(q)
        J, H = jacfwd(velocity)(q), jacfwd(jacfwd(velocity))(q)
        pressure = grad(lambda q: mlp(p, q)[1])(q)[1:]
        return J[:, 0] + l1 * J[:, 1:] @ w + pressure - l2 * (H[:, 1, 1] + H[:, 2, 2])

    data = jnp.mean((vmap(velocity)(points) - seen) ** 2)
    residual = jnp.mean(vmap(equations)(points) ** 2)
    return data + residual, {"data": data, "equations": residual}


@loss(
    """
def residual(x, t):
    y = model(stack([x, t]))[0]
    source = exp(-t) * (pi**2 - 1) * sin(pi * x)
    return d(y, t) - C * d(y, x, x) - source

pde = mean(vmap(residual)(points[:, 0], points[:, 1])**2)
data = mean((model(seen)[:, 0] - y)**2)
pde + data
""",
    models={"model": mlp_json(2, 6, 6, 1)},
    inputs={"points": uniform(6, 2), "seen": uniform(4, 2, seed=1), "y": normal(4), "C": 2.0},
    wrt=["params", "C"],
    terms=["pde", "data"],
)
def diffusion_with_an_unknown_coefficient(p: Any, points: Any, seen: Any, y: Any, C: Any) -> Any:
    def residual(q: Any) -> Any:
        source = jnp.exp(-q[1]) * (jnp.pi**2 - 1) * jnp.sin(jnp.pi * q[0])
        return grad(scalar, 1)(p, q)[1] - C * hessian(scalar, 1)(p, q)[0, 0] - source

    pde = jnp.mean(vmap(residual)(points) ** 2)
    data = jnp.mean((vmap(scalar, (None, 0))(p, seen) - y) ** 2)
    return pde + data, {"pde": pde, "data": data}


@loss(
    """
def flux(q):
    return exp(conductivity(q)[0]) * grad(potential(q)[0], q)

def residual(q, f):
    return divergence(flux(q), q) + f

pde = mean(vmap(residual)(x, f)**2)
data = mean((potential(x)[:, 0] - seen)**2)
pde + data
""",
    models={"conductivity": mlp_json(2, 5, 1), "potential": mlp_json(2, 5, 5, 1)},
    inputs={"x": uniform(6, 2), "f": normal(6), "seen": normal(6, seed=1)},
    wrt=["params", "f"],
    terms=["pde", "data"],
)
def darcy_flow_with_an_unknown_field(p: Any, x: Any, f: Any, seen: Any) -> Any:
    # div(a grad u) = a lap u + grad a . grad u with a = exp(s): a (lap u + grad s . grad u).
    def residual(q: Any, f: Any) -> Any:
        u, s = p["potential"], p["conductivity"]
        curvature = jnp.trace(hessian(scalar, 1)(u, q))
        return jnp.exp(scalar(s, q)) * (curvature + grad(scalar, 1)(s, q) @ grad(scalar, 1)(u, q)) + f

    pde = jnp.mean(vmap(residual)(x, f) ** 2)
    data = jnp.mean((vmap(scalar, (None, 0))(p["potential"], x) - seen) ** 2)
    return pde + data, {"pde": pde, "data": data}


@loss(
    """
t = times
q = model(t[:, None])
S, I, R = q[:, 0], q[:, 1], q[:, 2]
rates = stack([
    d(S, t) + beta * S * I,
    d(I, t) - beta * S * I + gamma * I,
    d(R, t) - gamma * I,
])
ode = mean(rates**2)
conserved = mean((S + I + R - 1)**2)
ode + conserved
""",
    models={"model": mlp_json(1, 6, 3)},
    inputs={"times": uniform(6), "beta": 0.8, "gamma": 0.3},
    wrt=["params", "beta", "gamma", "times"],
    terms=["ode", "conserved"],
)
def epidemic_rates(p: Any, times: Any, beta: Any, gamma: Any) -> Any:
    def at(t: Any) -> Any:
        q, velocity = jvp(lambda t: mlp(p, t[None]), (t,), (jnp.ones_like(t),))
        infected, healed = beta * q[0] * q[1], gamma * q[1]
        return velocity - jnp.stack([-infected, infected - healed, healed]), jnp.sum(q) - 1

    rates, lost = vmap(at)(times)
    ode, conserved = jnp.mean(rates**2), jnp.mean(lost**2)
    return ode + conserved, {"ode": ode, "conserved": conserved}
