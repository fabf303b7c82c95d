"""Solution operators: a net of functions and a net of places, joined by a product."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import grad, hessian, vmap
from networks import mlp, mlp_json
from reference import Case, check, loss, normal, uniform

import nablad


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


NETS = {"branch": mlp_json(4, 6, 5), "trunk": mlp_json(2, 6, 5)}


def operator(p: Any, u: Any, q: Any) -> Any:
    """G(u)(q) = sum_k b_k(u) t_k(q)."""
    return mlp(p["branch"], u) @ mlp(p["trunk"], q)


@loss(
    """
def residual(f, here, t, x):
    s = sum(branch(f) * trunk(stack([t, x])))
    return d(s, t) - D * d(s, x, x) - k * s**2 - here

def over_points(f, here):
    return vmap(residual, in_axes=(None, 0, 0, 0))(f, here, points[:, 0], points[:, 1])

pde = mean(vmap(over_points)(functions, sources)**2)
ic = mean((branch(functions) @ trunk(initial).T)**2)
pde + ic
""",
    models=NETS,
    inputs={
        "functions": normal(3, 4),
        "sources": normal(3, 5, seed=1),
        "points": uniform(5, 2),
        "initial": uniform(4, 2, seed=2) * [0.0, 1.0],
        "D": 0.01,
        "k": 0.02,
    },
    wrt=["params", "functions", "D", "k"],
    terms=["pde", "ic"],
)
def reaction_and_diffusion(
    p: Any, functions: Any, sources: Any, points: Any, initial: Any, D: Any, k: Any
) -> tuple[Any, dict[str, Any]]:
    def residual(f: Any, here: Any, q: Any) -> Any:
        s, s_t = operator(p, f, q), grad(operator, 2)(p, f, q)[0]
        return s_t - D * hessian(operator, 2)(p, f, q)[1, 1] - k * s**2 - here

    everywhere = vmap(vmap(residual, (None, 0, 0)), (0, 0, None))(functions, sources, points)
    start = vmap(vmap(operator, (None, None, 0)), (None, 0, None))(p, functions, initial)
    pde, ic = jnp.mean(everywhere**2), jnp.mean(start**2)
    return pde + ic, {"pde": pde, "ic": ic}


@loss(
    """
def slope(f, y):
    s = sum(branch(f) * trunk(stack([y]))) - sum(branch(f) * trunk(stack([0.0])))
    return d(s, y)

mean((vmap(slope)(functions, places) - values)**2)
""",
    models={"branch": mlp_json(4, 6, 5), "trunk": mlp_json(1, 6, 5)},
    inputs={"functions": normal(6, 4), "places": uniform(6), "values": normal(6, seed=1)},
    wrt=["params", "places"],
)
def antiderivative_at_aligned_places(p: Any, functions: Any, places: Any, values: Any) -> Any:
    # ds/dy = u(y), the trunk differentiated in closed form: t = C tanh(w y + b) + e.
    w, b = p["trunk"]["layer_1.weight"][:, 0], p["trunk"]["layer_1.bias"]
    C = p["trunk"]["layer_2.weight"]
    slopes = (1 - jnp.tanh(places[:, None] * w + b) ** 2) * w @ C.T
    return jnp.mean(
        (jnp.sum(vmap(mlp, (None, 0))(p["branch"], functions) * slopes, axis=1) - values) ** 2
    ), {}


@loss(
    """
def speed_of(a, x):
    return sum(branch(a) * trunk(stack([x, 0 * x])))

def residual(a, t, x):
    s = sum(branch(a) * trunk(stack([t, x])))
    return d(s, t) + speed_of(a, x) * d(s, x)

grid = vmap(vmap(residual, in_axes=(None, 0, 0)), in_axes=(0, None, None))(functions, t, x)
mean(grid**2)
""",
    models=NETS,
    inputs={"functions": normal(3, 4), "t": uniform(4), "x": uniform(4, seed=1)},
    wrt=["branch.params", "trunk.params[layer_1.weight]", "t"],
)
def advection_by_a_learned_speed(p: Any, functions: Any, t: Any, x: Any) -> Any:
    def residual(a: Any, q: Any) -> Any:
        s_t, s_x = grad(operator, 2)(p, a, q)
        return s_t + operator(p, a, jnp.stack([q[1], jnp.zeros_like(q[1])])) * s_x

    grid = vmap(vmap(residual, (None, 0)), (0, None))(functions, jnp.stack([t, x], axis=1))
    return jnp.mean(grid**2), {}
