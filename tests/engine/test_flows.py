"""Flows that are easily lost: what a derivative holds fixed, evaluates again and captures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import ENGINE, MODELS, NESTINGS, agree, agree_tree, by_jax, evaluate, gradient, host, rng

from nablad.messages import CheckRequest
from nablad.problems import Refusal
from nablad_service.requests.validation import gradient_query

SMALL = {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"dense": [3, 1]}]}
TRAIN = 'u = model(p, mode="train")[0]'
NORMED = {"layers": [{"dense": [2, 3]}, {"batchnorm": 3}]}
X = rng(4, 2)


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"]) @ p["layer_2.weight"].T + p["layer_2.bias"]


def test_a_model_handed_to_a_def_keeps_its_own_parameters() -> None:
    host("one", SMALL, seed=1)
    q = host("two", SMALL, seed=2)
    program = """
def size(model):
    return norm(model.params) + sum(model(x, params=model.params)**2)
def slope(m):
    return norm(grad(sum(m(x)**2), m.params["layer_1.weight"]))
alias = disc
size(disc) + slope(disc) + norm(alias.params) + 0 * norm(model.params)
"""
    found = gradient(program, {"x": X}, models={"model": "one", "disc": "two"}, wrt=["disc.params"])

    def loss(q: Any) -> Any:
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in q.values()))
        slope = jax.grad(lambda q: jnp.sum(net(q, X) ** 2))(q)["layer_1.weight"]
        return 2 * norm + jnp.sum(net(q, X) ** 2) + jnp.sqrt(jnp.sum(slope**2))

    value, expected = by_jax(loss)(q)
    agree(found["value"], value)
    agree_tree(found["gradients"]["disc.params"], expected)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_a_leaf_inside_and_the_tree_outside_and_the_reverse(nesting: str) -> None:
    p = host("leafy", SMALL, seed=3)
    program = """
y = sum(model(x)**2)
g = grad(y, model.params["layer_1.weight"])
h = sum(g**2) + y
tree = grad(h, model.params)
whole = grad(y, model.params)
leaf = grad(norm(whole)**2, model.params["layer_2.weight"])
norm(tree)**2 + sum(leaf**2)
"""

    def y(p: Any) -> Any:
        return jnp.sum(net(p, X) ** 2)

    def loss(p: Any) -> Any:
        h = lambda p: jnp.sum(jax.grad(y)(p)["layer_1.weight"] ** 2) + y(p)  # noqa: E731
        size = lambda p: sum(jnp.sum(leaf**2) for leaf in jax.grad(y)(p).values())  # noqa: E731
        tree = jax.grad(h)(p)
        return sum(jnp.sum(v**2) for v in tree.values()) + jnp.sum(jax.grad(size)(p)["layer_2.weight"] ** 2)

    found = gradient(program, {"x": X}, model="leafy", nesting=nesting)
    value, expected = by_jax(loss)(p)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], expected)


def test_a_leaf_that_the_value_does_not_read_is_refused() -> None:
    host("leafy", SMALL, seed=3)
    program = 'a = sum(model.params["layer_1.bias"]**2)\ngrad(a, model.params["layer_1.weight"])'
    with pytest.raises(Refusal, match="independent"):
        evaluate(program, {}, model="leafy")


def test_a_derivative_sees_the_running_state_that_its_value_saw() -> None:
    host("stateful", NORMED, seed=4)
    before = 'a = sum(w * model(x, mode="eval"))\ng = grad(a, x)\ng'
    after = 'a = sum(w * model(x, mode="eval"))\nb = model(x)\ng = grad(a, x)\ng + 0 * sum(b)'
    data = {"x": X, "w": rng(4, 3, seed=1)}
    agree(*(evaluate(program, data, model="stateful", mode="train") for program in (after, before)))


def test_calls_on_a_path_update_the_state_once() -> None:
    host("stateful", NORMED, seed=4)
    program = """
z = s * x
b = 0 * sum(model(z))
a = sum((model(x0, mode="eval") * s)**2) + b
g = grad(a, s)
(a, g)
"""
    data = {"x": X, "x0": rng(4, 2, seed=2), "s": np.array(1.0)}
    a, g = evaluate(program, data, model="stateful", mode="train")
    agree(g, 2 * a)


def test_the_state_of_two_calls_is_that_of_one_after_the_other() -> None:
    host("stateful", NORMED, seed=4)
    other = rng(4, 2, seed=2)
    first = gradient("sum(model(x)**2)", {"x": X}, model="stateful", mode="train")["state"]["model"]
    both = gradient("sum(model(x)**2) + sum(model(z))", {"x": X, "z": other}, model="stateful", mode="train")
    again = {"model": {"name": "stateful", "mode": "train", "state": dict(first)}}
    chained = gradient("sum(model(z)**2)", {"z": other}, models=again)
    agree_tree(both["state"]["model"], chained["state"]["model"])


def test_a_tuple_is_no_variable() -> None:
    with pytest.raises(Refusal, match=r"stack\(\[a, b\]\)"):
        evaluate("xs = (a, b)\ngrad(sum(xs[0] * xs[1]), xs)", {"a": X, "b": X})


@pytest.mark.parametrize("order", [("gen", "disc"), ("disc", "gen")])
def test_check_compares_the_right_entries_of_several_models(order: tuple[str, str]) -> None:
    host("gen", {"layers": [{"dense": [2, 2], "activation": "tanh"}]}, seed=5)
    host("disc", SMALL, seed=6)
    request = CheckRequest(
        loss="sum(disc(gen(x))**2)", models={name: name for name in order}, inputs={"x": X}, wrt=["params"]
    )
    report = ENGINE.compile_check(gradient_query(request, MODELS.get, dtype="float64"))()
    assert report["arguments"]["params"]["relative"] < 1e-10


@pytest.mark.parametrize("power", [2, 3, 4])
def test_whole_powers_have_all_derivatives_at_zero(power: int) -> None:
    for exponent in (str(power), f"{power}.0"):
        derivatives = ", ".join("x" * 4)
        expected = 24.0 if power == 4 else 0.0
        assert float(evaluate(f"d(x**{exponent}, {derivatives})", {"x": np.array(0.0)})) == expected


def test_positions_out_of_range_give_nan() -> None:
    for program in ("x[i]", "take(x, i)"):
        found = evaluate(program, {"x": X[0], "i": np.array([0, 7])})
        assert found[0] == X[0, 0]
        assert np.isnan(found[1])


def test_dropout_draws_a_mask_an_example_and_a_run_and_derivatives_see_the_same() -> None:
    host("noisy", {"layers": [{"dense": [8, 8]}, {"dropout": 0.5}]}, seed=7)
    x = np.ones((6, 8))
    mapped = evaluate("vmap(model)(x)", {"x": x}, model="noisy", mode="train") == 0
    assert len({tuple(row) for row in mapped}) > 1
    program = "def body(i, c):\n    return c + (model(x[0]) == 0) * 10.0**i\nfori(3, body, zeros(8))"
    runs = evaluate(program, {"x": x}, model="noisy", mode="train")
    assert len(set(runs.tolist())) > 2
    program = "y = model(x)\nJ = jacobian(y[0], x)[:, 0]\n(y[0] == 0, sum(abs(J), axis=1) == 0)"
    dropped, flat = evaluate(program, {"x": x}, model="noisy", mode="train")
    assert 0 < dropped.sum() < 8
    assert np.array_equal(dropped, flat)


def test_a_column_that_meets_a_row_is_cautioned() -> None:
    found = gradient("mean((c - r)**2)", {"c": rng(4, 1), "r": rng(4)}, wrt=["c"])
    (caution,) = found["plan"].cautions
    assert caution.text == "c - r"
    assert "(4, 1)" in caution.message
    assert not gradient("mean((c[:, 0] - r)**2)", {"c": rng(4, 1), "r": rng(4)}, wrt=["c"])["plan"].cautions


TRAINED = {
    "dropout": {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"dropout": 0.5}, {"dense": [3, 1]}]},
    "plain": SMALL,
}
AROUND = {
    "vmap": f"def f(p):\n    {TRAIN}\n    return sum({{g}}**2)\nsum(vmap(f)(x))",
    "fori": f"def f(i, p):\n    {TRAIN}\n    return p - 0.1 * {{g}}\nsum(fori(3, f, x[0])**2)",
}


@pytest.mark.parametrize("g", ["grad(u, p)", "vjp(u * ones(2), p, ones(2))"])
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", TRAINED)
def test_train_mode_inside_a_map_or_a_loop_has_inner_gradients_in_every_nesting(
    kind: str, around: str, g: str
) -> None:
    host(f"trained_{kind}", TRAINED[kind])
    program = AROUND[around].format(g=g)
    asked = {"model": f"trained_{kind}", "wrt": ["params", "x"]}
    plain = gradient(program, {"x": X}, nesting="reverse_over_reverse", **asked)
    for nesting in ("auto", "forward_over_reverse"):
        found = gradient(program, {"x": X}, nesting=nesting, **asked)
        agree(found["value"], plain["value"])
        agree(found["gradients"]["x"], plain["gradients"]["x"])
        agree_tree(found["gradients"]["params"], plain["gradients"]["params"])


def test_train_mode_of_batchnorm_inside_a_map_has_inner_gradients() -> None:
    host("trained_normed", NORMED)
    program = (
        'def f(b):\n    y = model(b, mode="train")\n    return sum(grad(sum(y**3), b)**2)\n'
        "sum(vmap(f)(stack([x, x + x**2])))"
    )
    plain = gradient(program, {"x": X}, model="trained_normed", nesting="reverse_over_reverse")
    found = gradient(program, {"x": X}, model="trained_normed")
    agree(found["value"], plain["value"])
    agree_tree(found["gradients"]["params"], plain["gradients"]["params"])
