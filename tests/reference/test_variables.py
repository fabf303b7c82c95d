"""What a derivative is taken in, and what it holds fixed: columns, leaves, hidden and stopped values."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import grad, hessian, jacfwd, vmap
from jax.lax import stop_gradient
from networks import mlp, mlp_json, scalar
from reference import Case, check, loss, normal, uniform

import nablad

NET = mlp_json(2, 5, 1)


def test_the_service_agrees_with_jax_by_hand(client: nablad.Client, case: Case, dtype: str) -> None:
    check(client, case, dtype)


@loss(
    """
x = table[:, 0]
rest = table[:, 1:]
price = model(concat([x[:, None], rest], axis=1))[:, 0]
slope = d(price, x)
bend = d(price, x, x)
mean(relu(-slope)**2 + relu(-bend)**2 + (price - seen)**2)
""",
    models={"model": mlp_json(3, 5, 1)},
    inputs={"table": normal(6, 3), "seen": normal(6, seed=1)},
    wrt=["params", "table"],
)
def monotone_and_convex_in_one_column(p: Any, table: Any, seen: Any) -> Any:
    # One hidden layer: price = c . tanh(W q + b), differentiated in the first entry of q.
    W, b, c = p["layer_1.weight"], p["layer_1.bias"], p["layer_2.weight"][0]
    h = jnp.tanh(table @ W.T + b)
    price, slope = h @ c + p["layer_2.bias"][0], (1 - h**2) @ (c * W[:, 0])
    bend = -2 * (h * (1 - h**2)) @ (c * W[:, 0] ** 2)
    return jnp.mean(jnp.minimum(slope, 0) ** 2 + jnp.minimum(bend, 0) ** 2 + (price - seen) ** 2), {}


@loss(
    """
h = first(x)
y = second(h)
g = grad(sum(y**2), h)
J = batched_jacobian(y, h)
mean(sum(g**2, axis=1)) + mean(J**2)
""",
    models={"first": mlp_json(2, 4, 3), "second": mlp_json(3, 4, 2)},
    inputs={"x": normal(5, 2)},
    wrt=["first.params", "second.params", "x"],
)
def derivative_in_a_hidden_value(p: Any, x: Any) -> Any:
    def one(x: Any) -> Any:
        h = mlp(p["first"], x)
        y, J = mlp(p["second"], h), jacfwd(mlp, 1)(p["second"], h)
        return 4 * jnp.sum((J.T @ y) ** 2) + jnp.mean(J**2)

    return jnp.mean(vmap(one)(x)), {}


@loss(
    """
fit = sum((model(x)[:, 0] - y)**2)
g = grad(fit, model.params["layer_2.weight"])
curved = hessian(fit, model.params["layer_2.weight"])
trace(reshape(curved, (5, 5))) + sum(g**2)
""",
    models={"model": NET},
    inputs={"x": normal(5, 2), "y": normal(5, seed=1)},
    wrt=["model.params[layer_1.weight]", "model.params[layer_2.weight]", "y"],
)
def derivative_in_one_leaf(p: Any, x: Any, y: Any) -> Any:
    # The output layer is linear: gradient 2 h' r and Hessian 2 h' h in its weights.
    h = jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"])
    r = h @ p["layer_2.weight"][0] + p["layer_2.bias"][0] - y
    return 2 * jnp.sum(h**2) + jnp.sum((2 * h.T @ r) ** 2), {}


@loss(
    """
def left_slope(y):
    x = zeros(())
    u = model(stack([x, y]))[0]
    return d(u, x)

def right_slope(y, x):
    u = model(stack([x, y]))[0]
    return d(u, x)

corner = stack([0.0, 1.0])
at_corner = grad(model(corner)[0], corner)
mean((vmap(left_slope)(y) - vmap(right_slope)(y, 1.0))**2) + sum(at_corner**2)
""",
    models={"model": NET},
    inputs={"y": uniform(5)},
    wrt=["params", "y"],
)
def slopes_at_fixed_places(p: Any, y: Any) -> Any:
    def slopes(x: float) -> Any:
        points = jnp.stack([jnp.full_like(y, x), y], axis=1)
        return vmap(grad(lambda q: scalar(p, q)))(points)[:, 0]

    corner = grad(scalar, 1)(p, jnp.array([0, 1], y.dtype))
    return jnp.mean((slopes(0.0) - slopes(1.0)) ** 2) + jnp.sum(corner**2), {}


@loss(
    """
inner_stopped = grad(sum(stop_gradient(w * x) * x**2), x)
outer_stopped = stop_gradient(grad(sum(w * x**3), x))
free = grad(sum(w * x**3), x)
first = sum(inner_stopped * x)
second = sum(outer_stopped * x)
third = sum(free * x)
first + second + third
""",
    inputs={"w": normal(4), "x": 1 + uniform(4)},
    wrt=["x", "w"],
    terms=["first", "second", "third"],
)
def stopped_gradients_in_closed_form(w: Any, x: Any) -> Any:
    # d/dx [s x^2] with s = w x fixed is 2 s x; the outer derivative sees neither s nor what was stopped.
    first = jnp.sum(2 * stop_gradient(w * x) * x * x)
    second = jnp.sum(stop_gradient(3 * w * x**2) * x)
    third = jnp.sum(3 * w * x**3)
    return first + second + third, {"first": first, "second": second, "third": third}


@loss(
    """
def pair(a, b):
    u = model(stack([a, b]))[0]
    return d(u, a) * d(u, b) - u * d(u, a, b)

table = vmap(vmap(pair, in_axes=(None, 0)), in_axes=(0, None))(a, b)
row = sum(table, axis=1)
mean(row**2) + table[0, 1]
""",
    models={"model": NET},
    inputs={"a": normal(3), "b": normal(4, seed=1)},
    wrt=["params", "a", "b"],
)
def two_mapped_axes(p: Any, a: Any, b: Any) -> Any:
    # u_a u_b - u u_ab vanishes where u is a product of functions of a and of b.
    def pair(q: Any) -> Any:
        g, H = grad(scalar, 1)(p, q), hessian(scalar, 1)(p, q)
        return g[0] * g[1] - scalar(p, q) * H[0, 1]

    table = vmap(pair)(jnp.stack([jnp.repeat(a, 4), jnp.tile(b, 3)], axis=1)).reshape(3, 4)
    return jnp.mean(jnp.sum(table, axis=1) ** 2) + table[0, 1], {}


@loss(
    """
def free_energy(rho, T):
    return T * rho * log(rho) - a * rho**2 + rho * model(stack([rho, T]))[0]

def state(rho, T):
    f = free_energy(rho, T)
    mu = d(f, rho)
    pressure = rho * mu - f
    entropy = -d(f, T)
    compressibility = d(pressure, rho)
    return stack([pressure, entropy, relu(-compressibility)])

mean((vmap(state)(rho, T) - measured)**2)
""",
    models={"model": NET},
    inputs={"rho": 0.5 + uniform(5), "T": 1 + uniform(5, seed=1), "measured": normal(5, 3), "a": 0.4},
    wrt=["params", "a", "rho", "T"],
)
def thermodynamics_from_a_free_energy(p: Any, rho: Any, T: Any, measured: Any, a: Any) -> Any:
    # With f = rho (T log rho + n) - a rho^2: pressure = rho T + rho^2 n_rho - a rho^2.
    def state(rho: Any, T: Any) -> Any:
        q = jnp.stack([rho, T])
        n_rho, n_T = grad(scalar, 1)(p, q)
        pressure = rho * T + rho**2 * (n_rho - a)
        slope = T + 2 * rho * (n_rho - a) + rho**2 * hessian(scalar, 1)(p, q)[0, 0]
        return jnp.stack([pressure, -rho * (jnp.log(rho) + n_T), jnp.maximum(-slope, 0)])

    return jnp.mean((vmap(state)(rho, T) - measured) ** 2), {}


@loss(
    """
def value(s, t):
    return s * model(stack([log(s / strike), t]))[0]

def black_scholes(s, t):
    v = value(s, t)
    theta, delta, gamma = d(v, t), d(v, s), d(v, s, s)
    return theta + 0.5 * sigma**2 * s**2 * gamma + rate * s * delta - rate * v

pde = mean(vmap(black_scholes)(s, t)**2)
payoff = mean((vmap(value)(s, 1.0) - maximum(s - strike, 0))**2)
pde + payoff
""",
    models={"model": NET},
    inputs={"s": 0.5 + uniform(6), "t": uniform(6, seed=1), "strike": 1.0, "sigma": 0.3, "rate": 0.05},
    wrt=["params", "sigma", "rate", "strike"],
    terms=["pde", "payoff"],
)
def black_scholes(p: Any, s: Any, t: Any, strike: Any, sigma: Any, rate: Any) -> Any:
    # In x = log(s / strike), with v = s n(x, t): s v_s = s (n + n_x), s^2 v_ss = s (n_x + n_xx).
    def residual(s: Any, t: Any) -> Any:
        q = jnp.stack([jnp.log(s / strike), t])
        (n_x, n_t), n_xx = grad(scalar, 1)(p, q), hessian(scalar, 1)(p, q)[0, 0]
        return s * (n_t + sigma**2 / 2 * (n_x + n_xx) + rate * n_x)

    def end(s: Any) -> Any:
        q = jnp.stack([jnp.log(s / strike), jnp.ones_like(s)])
        return s * scalar(p, q) - jnp.maximum(s - strike, 0)

    pde, payoff = jnp.mean(vmap(residual)(s, t) ** 2), jnp.mean(vmap(end)(s) ** 2)
    return pde + payoff, {"pde": pde, "payoff": payoff}
