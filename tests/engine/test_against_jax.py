"""Programs with models, against JAX written by hand in the test, in float64 and for every nesting."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import NESTINGS, agree, agree_tree, by_jax, evaluate, gradient, host, rng

MLP = {
    "layers": [
        {"dense": [2, 8], "activation": "tanh"},
        {"dense": [8, 8], "activation": "sin"},
        {"dense": [8, 1]},
    ]
}
VECTOR = {"layers": [{"dense": [3, 6], "activation": "softplus"}, {"dense": [6, 3]}]}


@pytest.fixture(scope="module")
def mlp() -> dict[str, Any]:
    return host("mlp", MLP, seed=1)


@pytest.fixture(scope="module")
def field() -> dict[str, Any]:
    return host("field", VECTOR, seed=2)


def net(p: Any, x: Any) -> Any:
    """The MLP for one point, by hand."""
    h = jnp.tanh(p["layer_1.weight"] @ x + p["layer_1.bias"])
    h = jnp.sin(p["layer_2.weight"] @ h + p["layer_2.bias"])
    return (p["layer_3.weight"] @ h + p["layer_3.bias"])[0]


def vector(p: Any, x: Any) -> Any:
    h = jax.nn.softplus(p["layer_1.weight"] @ x + p["layer_1.bias"])
    return p["layer_2.weight"] @ h + p["layer_2.bias"]


@pytest.mark.parametrize("nesting", NESTINGS)
def test_burgers_residual(mlp: dict[str, Any], nesting: str) -> None:
    program = """
def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) + u * d(u, x) - nu * d(u, x, x)
pde = mean(vmap(residual)(points[:, 0], points[:, 1])**2)
ic = mean((model(initial)[:, 0] - u0)**2)
pde + 20 * ic
"""
    data = {"points": rng(6, 2), "initial": rng(3, 2, seed=1), "u0": rng(3, seed=2), "nu": np.array(0.1)}

    def loss(p: Any, nu: Any, points: Any) -> Any:
        def r(q: Any) -> Any:
            g = jax.grad(net, 1)(p, q)
            return g[0] + net(p, q) * g[1] - nu * jax.hessian(net, 1)(p, q)[1, 1]

        fit = jax.vmap(net, (None, 0))(p, data["initial"]) - data["u0"]
        return jnp.mean(jax.vmap(r)(points) ** 2) + 20 * jnp.mean(fit**2)

    found = gradient(
        program, data, model="mlp", wrt=["params", "nu", "points"], terms=["pde", "ic"], nesting=nesting
    )
    value, (gp, gnu, gpoints) = by_jax(loss, (0, 1, 2))(mlp, data["nu"], data["points"])
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp)
    agree(found["gradients"]["nu"], gnu)
    agree(found["gradients"]["points"], gpoints)
    agree(found["terms"]["pde"] + 20 * found["terms"]["ic"], value)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_gradient_penalty_over_a_batch(mlp: dict[str, Any], nesting: str) -> None:
    program = "xh = a * x + (1 - a) * made\ng = grad(sum(model(xh)), xh)\nmean((norm(g, axis=1) - 1)**2)"
    x, made, a = rng(5, 2), rng(5, 2, seed=1), np.abs(rng(5, 1, seed=2)) % 1

    def loss(p: Any, x: Any, a: Any) -> Any:
        xh = a * x + (1 - a) * made
        g = jax.vmap(jax.grad(net, 1), (None, 0))(p, xh)
        return jnp.mean((jnp.sqrt(jnp.sum(g**2, 1)) - 1) ** 2)

    found = gradient(
        program, {"x": x, "made": made, "a": a}, model="mlp", wrt=["params", "x", "a"], nesting=nesting
    )
    value, (gp, gx, ga) = by_jax(loss, (0, 1, 2))(mlp, x, a)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp)
    agree(found["gradients"]["x"], gx)
    agree(found["gradients"]["a"], ga)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_gradients_with_respect_to_parameters_inside_the_loss(mlp: dict[str, Any], nesting: str) -> None:
    """A MAML step: parameters as a value, tree arithmetic, the model at other parameters."""
    program = """
def loss(p, x, y):
    return mean((model(x, params=p)[:, 0] - y)**2)
g = grad(loss(model.params, xs, ys), model.params)
adapted = model.params - alpha * g
loss(adapted, xq, yq)
"""
    data = {"xs": rng(4, 2), "ys": rng(4, seed=1), "xq": rng(3, 2, seed=2), "yq": rng(3, seed=3)}
    alpha = np.array(0.1)

    def inner(p: Any, x: Any, y: Any) -> Any:
        return jnp.mean((jax.vmap(net, (None, 0))(p, x) - y) ** 2)

    def outer(p: Any, alpha: Any) -> Any:
        g = jax.grad(inner)(p, data["xs"], data["ys"])
        return inner({k: p[k] - alpha * g[k] for k in p}, data["xq"], data["yq"])

    found = gradient(program, {**data, "alpha": alpha}, model="mlp", wrt=["params", "alpha"], nesting=nesting)
    value, (gp, ga) = by_jax(outer, (0, 1))(mlp, alpha)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp)
    agree(found["gradients"]["alpha"], ga)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_a_single_parameter_leaf_inside_and_outside(mlp: dict[str, Any], nesting: str) -> None:
    program = """
fit = mean(model(x)**2) + sum(model.params["layer_1.weight"]**2)
g = grad(fit, model.params["layer_1.weight"])
whole = grad(fit, model.params)
sum(g**2) + norm(whole)**2
"""
    x = rng(4, 2)

    def fit(p: Any) -> Any:
        return jnp.mean(jax.vmap(net, (None, 0))(p, x) ** 2) + jnp.sum(p["layer_1.weight"] ** 2)

    def loss(p: Any) -> Any:
        g = jax.grad(fit)(p)
        return jnp.sum(g["layer_1.weight"] ** 2) + sum(jnp.sum(v**2) for v in g.values())

    wrt = ["params", "model.params[layer_2.bias]", "model.params"]
    found = gradient(program, {"x": x}, model="mlp", wrt=wrt, nesting=nesting)
    value, expected = by_jax(loss)(mlp)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], expected)
    agree_tree(found["gradients"]["model.params"], expected)
    agree(found["gradients"]["model.params[layer_2.bias]"], expected["layer_2.bias"])


def test_jacobian_with_respect_to_parameters_has_the_declared_order(mlp: dict[str, Any]) -> None:
    x = rng(3, 2)
    J = evaluate("jacobian(model(x), model.params)", {"x": x}, model="mlp")
    columns = jax.jacrev(lambda p: jax.vmap(net, (None, 0))(p, x))(mlp)
    expected = np.concatenate([np.asarray(columns[k]).reshape(3, -1) for k in mlp], axis=1)
    agree(J, expected)


def test_the_declared_order_survives_nesting(mlp: dict[str, Any]) -> None:
    """JAX sorts the leaves of plain dicts; a Jacobian inside a gradient must not notice."""
    program = "J = jacobian(model(x), model.params)\ng = grad(sum(J @ w), model.params)\ng"
    count = sum(leaf.size for leaf in mlp.values())
    w = rng(count, seed=7)

    def weighted(p: Any, x: Any) -> Any:
        columns = jax.jacrev(lambda p: jax.vmap(net, (None, 0))(p, x))(p)
        J = jnp.concatenate([columns[k].reshape(len(x), -1) for k in mlp], axis=1)
        return jnp.sum(J @ w)

    x = rng(3, 2)
    found = evaluate(program, {"x": x, "w": w}, model="mlp")
    assert list(found) == list(mlp)
    agree_tree(found, jax.jit(jax.grad(weighted))(mlp, x))


def test_hessian_and_hvp_with_respect_to_parameters(mlp: dict[str, Any]) -> None:
    x = rng(3, 2)
    flat, unravel = jax.flatten_util.ravel_pytree(list(mlp.values()))

    def fit(flat: Any) -> Any:
        p = dict(zip(mlp, unravel(flat), strict=True))
        return jnp.mean(jax.vmap(net, (None, 0))(p, x) ** 2)

    H = np.asarray(jax.jit(jax.hessian(fit))(flat))
    v = {k: rng(*leaf.shape, seed=i) for i, (k, leaf) in enumerate(mlp.items())}
    found = evaluate(
        "fit = mean(model(x)**2)\nH = hessian(fit, model.params)\nHv = hvp(fit, model.params, v)\nHv",
        {"x": x, "v": dict(reversed(v.items()))},
        model="mlp",
        outputs=["H", "Hv"],
    )
    agree(found["H"], H)
    flat_v = np.concatenate([leaf.reshape(-1) for leaf in v.values()])
    agree(np.concatenate([np.asarray(found["Hv"][k]).reshape(-1) for k in mlp]), H @ flat_v)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_neural_tangent_kernel_of_a_residual(mlp: dict[str, Any], nesting: str) -> None:
    program = """
def residual(q):
    u = model(q)[0]
    return sum(grad(u, q))
def row(q):
    return jacobian(residual(q), model.params)[0]
rows = vmap(row)(x)
K = rows @ rows.T
trace(K)
"""
    x = rng(3, 2)

    def kernel_trace(p: Any, x: Any) -> Any:
        rows = jax.vmap(jax.grad(lambda p, q: jnp.sum(jax.grad(net, 1)(p, q))), (None, 0))(p, x)
        return sum(jnp.sum(leaf**2) for leaf in rows.values())

    found = gradient(program, {"x": x}, model="mlp", wrt=["params", "x"], nesting=nesting)
    value, (gp, gx) = by_jax(kernel_trace, (0, 1))(mlp, x)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp)
    agree(found["gradients"]["x"], gx)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_two_models_and_a_direction_that_is_a_model(
    mlp: dict[str, Any], field: dict[str, Any], nesting: str
) -> None:
    """A Lyapunov condition: the derivative of one network along another."""
    host("potential", {"layers": [{"dense": [3, 5], "activation": "tanh"}, {"dense": [5, 1]}]}, seed=5)
    program = "V = sum(V_net(x))\nmean(relu(sum(grad(V, x) * f(x), axis=1) + 0.5)**2)"
    x = rng(4, 3)
    bound = {"V_net": "potential", "f": "field"}
    found = gradient(program, {"x": x}, models=bound, wrt=["params", "f.params"], nesting=nesting)
    from ask import MODELS

    pv = dict(MODELS.get("potential").params)

    def V(p: Any, q: Any) -> Any:
        h = jnp.tanh(p["layer_1.weight"] @ q + p["layer_1.bias"])
        return (p["layer_2.weight"] @ h + p["layer_2.bias"])[0]

    def loss(pv: Any, pf: Any) -> Any:
        rate = jax.vmap(lambda q: jax.grad(V, 1)(pv, q) @ vector(pf, q))(x)
        return jnp.mean(jax.nn.relu(rate + 0.5) ** 2)

    value, (gv, gf) = by_jax(loss, (0, 1))(pv, field)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"]["V_net"], gv)
    agree_tree(found["gradients"]["params"]["f"], gf)
    agree_tree(found["gradients"]["f.params"], gf)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_score_matching_with_sliced_probes(field: dict[str, Any], nesting: str) -> None:
    program = """
s = model(x)
slices = sum(v * jvp(s, x, v), axis=1)
mean(slices + 0.5 * sum(v * s, axis=1)**2)
"""
    x, v = rng(4, 3), rng(4, 3, seed=1)

    def loss(p: Any, x: Any, v: Any) -> Any:
        def one(q: Any, w: Any) -> Any:
            s, Jv = jax.jvp(lambda q: vector(p, q), (q,), (w,))
            return w @ Jv + 0.5 * (w @ s) ** 2

        return jnp.mean(jax.vmap(one)(x, v))

    found = gradient(program, {"x": x, "v": v}, model="field", wrt=["params", "x", "v"], nesting=nesting)
    value, (gp, gx, gv) = by_jax(loss, (0, 1, 2))(field, x, v)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp)
    agree(found["gradients"]["x"], gx)
    agree(found["gradients"]["v"], gv)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_lagrangian_network(nesting: str) -> None:
    p = host(
        "lagrangian", {"layers": [{"dense": [4, 6], "activation": "softplus"}, {"dense": [6, 1]}]}, seed=3
    )
    program = """
def acceleration(q, v):
    L = model(concat([q, v]))[0]
    M = hessian(L, v) + eye(2)
    force = grad(L, q) - jvp(grad(L, v), q, v)
    return solve(M, force)
mean((vmap(acceleration)(q, v) - a)**2)
"""
    q, v, a = rng(3, 2), rng(3, 2, seed=1), rng(3, 2, seed=2)

    def L(p: Any, q: Any, v: Any) -> Any:
        h = jax.nn.softplus(p["layer_1.weight"] @ jnp.concatenate([q, v]) + p["layer_1.bias"])
        return (p["layer_2.weight"] @ h + p["layer_2.bias"])[0]

    def loss(p: Any) -> Any:
        def acceleration(q: Any, v: Any) -> Any:
            M = jax.hessian(L, 2)(p, q, v) + jnp.eye(2)
            mixed = jax.jacfwd(jax.grad(L, 2), 1)(p, q, v)
            return jnp.linalg.solve(M, jax.grad(L, 1)(p, q, v) - mixed @ v)

        return jnp.mean((jax.vmap(acceleration)(q, v) - a) ** 2)

    found = gradient(program, {"q": q, "v": v, "a": a}, model="lagrangian", nesting=nesting)
    value, expected = by_jax(loss)(p)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], expected, 1e-11)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_batchnorm_in_train_mode_couples_examples(nesting: str) -> None:
    p = host(
        "normed", {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"batchnorm": 3}, {"dense": [3, 2]}]}
    )
    x = rng(5, 2)

    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"])
        h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) * p["layer_2.scale"] + p["layer_2.bias"]
        return h @ p["layer_3.weight"].T + p["layer_3.bias"]

    def loss(p: Any, x: Any) -> Any:
        return jnp.sum(jax.jacfwd(apply, 1)(p, x) ** 2) + jnp.sum(
            jax.grad(lambda x: jnp.sum(apply(p, x) ** 3))(x) ** 2
        )

    program = "y = model(x)\nsum(jacobian(y, x)**2) + sum(grad(sum(y**3), x)**2)"
    found = gradient(program, {"x": x}, model="normed", mode="train", wrt=["params", "x"], nesting=nesting)
    value, (gp, gx) = by_jax(loss, (0, 1))(p, x)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp, 1e-11)
    agree(found["gradients"]["x"], gx, 1e-11)
    h = np.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"])
    state = found["state"]["model"]
    agree(state["layer_2.running_mean"], 0.1 * h.mean(0))
    agree(state["layer_2.running_var"], 0.9 + 0.1 * h.var(0, ddof=1))


def test_state_is_updated_though_only_a_derivative_reads_the_model() -> None:
    host("seldom", {"layers": [{"dense": [2, 3]}, {"batchnorm": 3}]})
    found = gradient("sum(jacobian(model(x), x)**2)", {"x": rng(5, 2)}, model="seldom", mode="train")
    assert np.abs(found["state"]["model"]["layer_2.running_mean"]).max() > 0


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_towers_of_partials_agree_with_nested_jax(mlp: dict[str, Any], order: int) -> None:
    program = f"""
def r(t, x):
    u = model(stack([t, x]))[0]
    return d(u, {", ".join("x" * order)}) * d(u, t)
mean(vmap(r)(q[:, 0], q[:, 1])**2)
"""
    q = rng(4, 2)

    def loss(p: Any, q: Any) -> Any:
        def r(t: Any, x: Any) -> Any:
            f = lambda x: net(p, jnp.stack([t, x]))  # noqa: E731
            for _ in range(order):
                f = jax.grad(f)
            return f(x) * jax.grad(lambda t: net(p, jnp.stack([t, x])))(t)

        return jnp.mean(jax.vmap(r)(q[:, 0], q[:, 1]) ** 2)

    found = gradient(program, {"q": q}, model="mlp", wrt=["params", "q"])
    value, (gp, gq) = by_jax(loss, (0, 1))(mlp, q)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp)
    agree(found["gradients"]["q"], gq)


def test_elementwise_partials_need_no_vmap(mlp: dict[str, Any]) -> None:
    """The design's first reading: columns as variables of their own."""
    program = (
        "t = p[:, 0]\nx = p[:, 1]\nu = model(stack([t, x], axis=1))[:, 0]\nmean((d(u, t) - d(u, x, x))**2)"
    )
    mapped = """
def r(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) - d(u, x, x)
mean(vmap(r)(p[:, 0], p[:, 1])**2)
"""
    p = rng(6, 2)
    one, other = (gradient(text, {"p": p}, model="mlp", wrt=["params", "p"]) for text in (program, mapped))
    agree(one["value"], other["value"])
    agree_tree(one["gradients"]["params"], other["gradients"]["params"])
    agree(one["gradients"]["p"], other["gradients"]["p"])


def test_a_column_batch_works_like_a_flat_one(mlp: dict[str, Any]) -> None:
    program = "u = model(concat([t, x], axis=1))\nmean(d(u, t)**2)"
    t, x = rng(5, 1), rng(5, 1, seed=1)
    found = gradient(program, {"t": t, "x": x}, model="mlp")
    expected = jax.grad(
        lambda p: jnp.mean(jax.vmap(lambda q: jax.grad(net, 1)(p, q)[0] ** 2)(jnp.concatenate([t, x], 1)))
    )(mlp)
    agree_tree(found["gradients"]["params"], expected)
