"""Functions that the operator of the server registered: what a text cannot say, called like operators."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import MODELS, agree, agree_tree, by_jax, host, rng
from my_functions import conjugate_gradients, odeint, root

from nablad.messages import EvaluateRequest, GradientRequest
from nablad.problems import Refusal
from nablad_service.engine.engine import Engine
from nablad_service.requests.validation import evaluate_query, gradient_query

TABLE = jnp.linspace(0.0, 1.0, 5)


def table_at(x: Any) -> Any:
    """A table of the server, interpolated."""
    return jnp.interp(x, TABLE, TABLE**2)


def clumsy(x: Any) -> Any:
    """Always fails."""
    raise RuntimeError("the disk is full\nand more")


@jax.custom_vjp
def guarded(x: Any) -> Any:
    """x squared, with a reverse rule of its own."""
    return x**2


guarded.defvjp(lambda x: (x**2, x), lambda x, bar: (2 * x * bar,))

ENGINE = Engine.start(
    functions={
        "odeint": partial(odeint, rtol=1e-11, atol=1e-11),
        "root": partial(root, tol=1e-13),
        "conjugate_gradients": partial(conjugate_gradients, tol=1e-13),
        "table_at": table_at,
        "clumsy": clumsy,
        "guarded": guarded,
        "twice": lambda f, a, b: (f(a), f(b)),
        "squares": lambda p: jax.jit(lambda p: {name: leaf**2 for name, leaf in p.items()})(p),
        "counted": lambda x, n=2: jax.lax.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * x), (0, x)
        )[1],
    }
)
NET = {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"dense": [3, 2]}]}


def gradient(loss: str, inputs: dict[str, Any], **asked: Any) -> dict[str, Any]:
    query = gradient_query(GradientRequest(loss=loss, inputs=inputs, **asked), MODELS.get)
    executable = ENGINE.compile(ENGINE.trace(query))
    return {**executable.run(query), "plan": executable.plan}


def evaluate(program: str, inputs: dict[str, Any]) -> Any:
    query = evaluate_query(EvaluateRequest(program=program, inputs=inputs), MODELS.get)
    return ENGINE.compile(ENGINE.trace(query)).run(query)["outputs"]["result"]


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"]) @ p["layer_2.weight"].T + p["layer_2.bias"]


def test_an_adaptive_solve_of_a_linear_equation_and_its_gradients_are_the_matrix_exponential() -> None:
    a, z0 = 0.3 * rng(3, 3), rng(3, seed=1)
    program = "def f(t, y):\n    return a @ y\nsum(odeint(f, z0, 1.5)**2)"
    found = gradient(program, {"a": a, "z0": z0}, wrt=["a", "z0"])
    value, (of_a, of_z0) = by_jax(lambda a, z: jnp.sum((jax.scipy.linalg.expm(1.5 * a) @ z) ** 2), (0, 1))(
        a, z0
    )
    agree(found["value"], value, 1e-9)
    agree(found["gradients"]["a"], of_a, 1e-8)
    agree(found["gradients"]["z0"], of_z0, 1e-8)


def test_a_neural_equation_with_a_divergence_inside_agrees_with_many_small_steps() -> None:
    p = host("registered_net", NET, seed=3)
    z0 = rng(2, seed=2)
    program = """
def f(t, state):
    z, log_density = state
    v = model(z)
    return (v, -divergence(v, z))
z1, change = odeint(f, (z0, 0.0), 1.0)
0.5 * sum(z1**2) - change
"""
    found = gradient(program, {"z0": z0}, models={"model": "registered_net"}, wrt=["params", "z0"])

    def loss(p: Any, z0: Any) -> Any:
        def field(s: Any) -> Any:
            return net(p, s[0]), -jnp.trace(jax.jacfwd(lambda z: net(p, z))(s[0]))

        h = 1 / 400

        def step(s: Any, _: Any) -> Any:
            moved = lambda k, c: jax.tree.map(lambda a, b: a + c * h * b, s, k)  # noqa: E731
            k1 = field(s)
            k2 = field(moved(k1, 0.5))
            k3 = field(moved(k2, 0.5))
            k4 = field(moved(k3, 1.0))
            sums = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return moved(sums, 1.0), None

        (z1, change), _ = jax.lax.scan(step, (z0, jnp.zeros(())), None, length=400)
        return 0.5 * jnp.sum(z1**2) - change

    value, (of_p, of_z0) = by_jax(loss, (0, 1))(p, z0)
    agree(found["value"], value, 1e-9)
    agree_tree(found["gradients"]["params"], of_p, 1e-8)
    agree(found["gradients"]["z0"], of_z0, 1e-8)


def test_an_implicit_layer_has_the_gradients_of_the_implicit_function_theorem() -> None:
    w, x = 0.4 * rng(3, 3, seed=4), rng(3, seed=5)
    program = "def residual(z):\n    return z - tanh(w @ z + x)\nz = root(residual, zeros(3))\nsum(z**2)"
    found = gradient(program, {"w": w, "x": x}, wrt=["w", "x"])

    z = np.zeros(3)
    for _ in range(200):
        z = np.tanh(w @ z + x)
    slope = 1 - z**2
    pulled = np.linalg.solve((np.eye(3) - slope[:, None] * w).T, 2 * z) * slope
    agree(found["value"], np.sum(z**2), 1e-10)
    agree(found["gradients"]["x"], pulled, 1e-9)
    agree(found["gradients"]["w"], np.outer(pulled, z), 1e-9)


def test_a_def_of_hessian_products_can_be_handed_to_a_linear_solver() -> None:
    a, b, x = rng(4, 4, seed=6), rng(4, seed=7), rng(4, seed=8)
    program = """
energy = sum(exp(0.3 * x)) + 0.5 * sum((a @ x)**2)
def product(v):
    return hvp(energy, x, v)
step = conjugate_gradients(product, b)
dot(step, b)
"""
    found = gradient(program, {"a": a, "b": b, "x": x}, wrt=["a", "b", "x"])

    def loss(a: Any, b: Any, x: Any) -> Any:
        hessian = jnp.diag(0.09 * jnp.exp(0.3 * x)) + a.T @ a
        return b @ jnp.linalg.solve(hessian, b)

    value, expected = by_jax(loss, (0, 1, 2))(a, b, x)
    agree(found["value"], value, 1e-9)
    for name, array in zip("abx", expected, strict=True):
        agree(found["gradients"][name], array, 1e-8)


def test_constants_of_the_server_enter_compiled_programs() -> None:
    x = np.array([0.1, 0.6])
    found = gradient("sum(table_at(x)**2)", {"x": x}, wrt=["x"])
    value, expected = by_jax(lambda x: jnp.sum(table_at(x) ** 2))(x)
    agree(found["value"], value)
    agree(found["gradients"]["x"], expected)


OVER_GUARDED = {
    "grad": ("sum(grad(sum(guarded(x) * x), x)**2)", lambda x: jnp.sum(9 * x**4)),
    "d": ("sum(d(guarded(x) * x, x, x)**2)", lambda x: jnp.sum(36 * x**2)),
    "jvp": ("sum(jvp(guarded(x) * x, x, x)**2)", lambda x: jnp.sum(9 * x**6)),
    "vjp": ("sum(vjp(guarded(x) * x, x, x)**2)", lambda x: jnp.sum(9 * x**6)),
    "hvp": ("sum(hvp(sum(guarded(x) * x), x, x)**2)", lambda x: jnp.sum(36 * x**4)),
    "hessian": ("sum(hessian(sum(guarded(x) * x), x)**2)", lambda x: jnp.sum(36 * x**2)),
    "laplacian": ("laplacian(sum(guarded(x) * x), x)**2", lambda x: jnp.sum(6 * x) ** 2),
    "divergence": ("divergence(guarded(x) * x, x)**2", lambda x: jnp.sum(3 * x**2) ** 2),
    "jacobian": ("sum(jacobian(guarded(x) * x, x)**2)", lambda x: jnp.sum(9 * x**4)),
    "batched_jacobian": (
        "sum(batched_jacobian(guarded(x) * x, x)**2)",
        lambda x: jnp.sum(9 * x**4),
    ),
    "hutchinson_trace": (
        "hutchinson_trace(guarded(x) * x, x, ones_like(x))**2",
        lambda x: jnp.sum(3 * x**2) ** 2,
    ),
}


@pytest.mark.parametrize("operator", OVER_GUARDED)
def test_every_operator_works_in_reverse_alone_over_code_with_a_rule_of_its_own(operator: str) -> None:
    program, closed_form = OVER_GUARDED[operator]
    x = np.array([0.5, -1.5, 2.0])
    found = gradient(program, {"x": x}, wrt=["x"])
    value, expected = by_jax(closed_form)(x)
    agree(found["value"], value)
    agree(found["gradients"]["x"], expected)
    over_reverse = (
        "grad",
        "vjp",
        "hvp",
        "hessian",
        "jacobian",
    )  # these push the pullback forward, not the rule
    assert operator in over_reverse or "no forward mode" in found["plan"].explain()


REFUSED = {
    "an unknown argument": ("odeint(x, x, 1, tol=1)", "arity", "no argument 'tol'"),
    "a function with too few arguments": (
        "def f(t):\n    return t\nsum(odeint(f, x, 1.0))",
        "arity",
        "'odeint' calls the function it is given with 2 arguments, not 1",
    ),
    "a failure of the function": (
        "sum(clumsy(x))",
        "function_failed",
        "clumsy failed on the server: Runtime",
    ),
    "an operator that takes functions itself": ("sum(root(grad, x))", "wrong_kind", "write a def"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_call_is_refused_in_its_place(case: str) -> None:
    program, code, words = REFUSED[case]
    with pytest.raises(Refusal, match=words) as refused:
        evaluate(program, {"x": np.ones(2)})
    assert refused.value.code == code
    assert refused.value.where is not None


def test_a_loop_without_reverse_mode_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match="while_loop") as refused:
        gradient("sum(counted(x))", {"x": np.ones(2)}, wrt=["x"])
    assert refused.value.code == "not_differentiable"
    agree(evaluate("counted(x)", {"x": np.full(2, 3.0)}), np.full(2, 27.0))
    agree(evaluate("sum(jvp(counted(x), x, x))", {"x": np.full(2, 3.0)}), 162.0)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("sin", table_at, "is an operator already"),
        ("for", table_at, "not a name"),
        ("f", lambda **more: more, "names of its arguments"),
        ("f", lambda x, y=TABLE: x, "no literal"),
        ("f", 3, "no function"),
    ],
)
def test_a_function_that_programs_cannot_call_is_refused_at_start(
    name: str, function: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Engine.start(functions={name: function})


def test_a_solver_that_gives_up_on_these_values_says_so() -> None:
    program = "def f(t, y):\n    return -10000 * (y - sin(t))\nodeint(f, x, 1000.0)"
    with pytest.raises(Refusal, match="maximum number of solver steps") as refused:
        evaluate(program, {"x": np.ones(3)})
    assert refused.value.code == "function_failed"


@pytest.mark.parametrize(
    "body",
    ["u = sum(x) * x\n    return d(u, x)", "return divergence(x * sum(x, axis=0, keepdims=True), x)"],
)
def test_a_def_that_is_called_with_several_shapes_is_checked_for_each(body: str) -> None:
    program = f"def f(x):\n    {body}\na, b = twice(f, one, many)\nsum(b) + 0 * sum(a)"
    one, many = (np.array(2.0), rng(3)) if "d(u" in body else (rng(1, 2), rng(5, 2))
    evaluate(program.replace("many)", "one)"), {"one": one})
    with pytest.raises(Refusal) as refused:
        evaluate(program, {"one": one, "many": many})
    assert refused.value.code == "couples_examples"


def test_a_tree_that_comes_back_sorted_by_name_has_the_models_order() -> None:
    p = host("registered_net", NET, seed=3)
    program = "P = squares(model.params)\n{}"
    request = {"inputs": {}, "models": {"model": "registered_net"}}
    found = gradient(program.format("divergence(P, model.params)"), **request)
    agree(found["value"], 2 * sum(leaf.sum() for leaf in p.values()), 1e-12)
    weights = np.arange(1.0, 1 + sum(leaf.size for leaf in p.values()))
    request["inputs"] = {"w": weights}
    found = gradient(program.format("sum(w * ravel(P)) + 0 * norm(model.params, eps=1)"), **request)
    agree(found["value"], weights @ np.concatenate([leaf.ravel() ** 2 for leaf in p.values()]), 1e-12)


def test_a_value_where_a_function_is_wanted_is_said_so() -> None:
    with pytest.raises(Refusal, match="give a def or a model") as refused:
        evaluate("odeint(x, x, 1.0)", {"x": np.ones(2)})
    assert refused.value.code == "function_failed"
