"""A program in chunks of its examples is the program: values, terms, gradients, outputs, to rounding."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import ENGINE, MODELS, agree, agree_tree, evaluate, gradient, host, rng

from nablad.messages import EvaluateRequest, GradientRequest
from nablad.problems import Refusal
from nablad_service.engine.chunks import Examples, in_chunks
from nablad_service.engine.executable import Traced
from nablad_service.engine.memory import HEADROOM
from nablad_service.requests.validation import evaluate_query, gradient_query

EXAMPLES = 11
"""Prime, so that a chunk of any other size leaves a rest."""
NETS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"preset": "mlp", "sizes": [3, 6, 6, 3], "activation": "tanh"}, (3,)),
    "norms": ({"layers": [{"dense": [3, 5]}, {"batchnorm": 5}, {"layernorm": 5}, {"dense": [5, 3]}]}, (3,)),
    "conv": (
        {
            "layers": [
                {"conv": [2, 3, 3], "padding": "same", "activation": "gelu"},
                {"conv": [3, 2, 3], "activation": "tanh"},
                {"flatten": True},
                {"dense": [8, 3]},
            ]
        },
        (2, 4, 4),
    ),
    "attention": (
        {
            "input": [None, 3],
            "layers": [
                {"dense": [3, 4], "activation": "tanh"},
                {"attention": {"heads": 2, "size": 4}},
                {"mean": 0},
                {"dense": [4, 3]},
            ],
        },
        (5, 3),
    ),
}
PER_EXAMPLE = "(sum(reshape(q, (x.shape[0], -1))**2, axis=1))"
QUANTITIES = {
    "value": "q = model(x)",
    "grad of a sum": "q = grad(sum(model(x)**2), x)",
    "grad of a mean": "q = grad(mean(model(x)**2), x)",
    "batched_jacobian": "q = batched_jacobian(model(x), x)",
    "vjp": "q = vjp(model(x), x, sin(model(x)))",
    "jvp": "q = jvp(model(x), x, cos(x))",
    "hvp of a mean": "q = hvp(mean(model(x)**2), x, cos(x))",
    "laplacian": "q = laplacian(model(x)[:, 0], x)",
}
OF_POINTS = {
    "divergence": "q = divergence(model(x), x)",
    "hutchinson": "q = hutchinson_trace(model(x), x, rademacher(x, 4, seed=3))",
    "partials": """t = x[:, 0]
s = x[:, 1]
u = model(stack([t, s, t * s], axis=1))[:, 0]
q = d(u, t) + u * d(u, s, s)""",
    "a point at a time": """def f(p):
    u = model(p)[0]
    return laplacian(u, p) + norm(grad(u, p), eps=1e-3)
q = vmap(f)(x)""",
    "a loop": """def f(p):
    def step(i, z):
        return z + 0.1 * model(z)
    return fori(4, step, p)
q = vmap(f)(x)""",
    "divided by their number": "q = model(x) / x.shape[0]",
    "drawn in the text": "q = model(x) * normal(x, seed=5)",
}
LOSSES = {
    "mean": "mean{q}",
    "root of a mean": "sqrt(mean{q} + 1e-3)",
    "mean and parameters": "mean{q} + 0.1 * sum(ravel(model.params)**2)",
    "spread": "var{q}",
    "largest": "max{q}",
    "pairs": "sum((stack([{q}]).T @ stack([{q}]))**2)",
}
CASES = [
    *((quantity, net, "mean") for quantity in QUANTITIES for net in NETS),
    *((quantity, "mlp", "mean") for quantity in OF_POINTS),
    *(("grad of a sum", "mlp", loss) for loss in LOSSES),
    *(("laplacian", net, "root of a mean") for net in ("conv", "norms")),
]


@cache
def hosted(net: str, dtype: str = "float64") -> str:
    host(f"chunks_{net}_{dtype}", NETS[net][0], dtype, seed=2)
    return f"chunks_{net}_{dtype}"


def program(quantity: str, loss: str = "mean") -> str:
    return f"{ {**QUANTITIES, **OF_POINTS}[quantity] }\n{LOSSES[loss].format(q=PER_EXAMPLE)}"


def asked(quantity: str, net: str, loss: str = "mean", dtype: str = "float64", **more: Any) -> dict[str, Any]:
    x = (0.7 * rng(EXAMPLES, *NETS[net][1], seed=1)).astype(dtype)
    return gradient(program(quantity, loss), {"x": x}, model=hosted(net, dtype), wrt=["params", "x"], **more)


@pytest.mark.parametrize(("quantity", "net", "loss"), CASES)
def test_a_program_in_chunks_is_the_program(quantity: str, net: str, loss: str) -> None:
    whole = asked(quantity, net, loss)
    for at_once in (4, 1):
        found = asked(quantity, net, loss, examples_at_once=at_once)
        agree(found["value"], whole["value"])
        agree_tree(found["gradients"]["params"], whole["gradients"]["params"], 1e-11)
        agree(found["gradients"]["x"], whole["gradients"]["x"], 1e-11)
        assert found["plan"].examples.at_once == at_once
    assert whole["plan"].examples is None


@pytest.mark.parametrize("quantity", ["grad of a mean", "laplacian", "partials"])
def test_in_float32_too(quantity: str) -> None:
    exact, found = asked(quantity, "mlp"), asked(quantity, "mlp", dtype="float32", examples_at_once=4)
    agree(found["value"], exact["value"], 5e-6)
    agree_tree(found["gradients"]["params"], exact["gradients"]["params"], 2e-5)


@pytest.mark.parametrize("at_once", [2, 3, 11, 50])
def test_statistics_of_a_batch_are_those_of_all_examples(at_once: int) -> None:
    shape = NETS["norms"][1]
    inputs = {"x": rng(EXAMPLES, *shape, seed=1)}

    def trained(**more: Any) -> dict[str, Any]:
        loss = "mean(model(x)**2 + 0.1 * grad(sum(sin(model(x))), x)**2)"
        return gradient(loss, inputs, model=hosted("norms"), mode="train", wrt=["params", "x"], **more)

    whole, found = trained(), trained(examples_at_once=at_once)
    agree(found["value"], whole["value"])
    agree_tree(found["gradients"]["params"], whole["gradients"]["params"], 1e-11)
    agree_tree(found["state"]["model"], whole["state"]["model"])


def test_terms_their_gradients_and_outputs() -> None:
    loss = """u = model(x)
fit = mean((u - y)**2)
slope = mean(grad(sum(u), x)**2)
total = sum(u, axis=0)
"""
    inputs = {"x": rng(EXAMPLES, 3), "y": rng(EXAMPLES, 3, seed=3)}

    def answer(**more: Any) -> dict[str, Any]:
        names = {"terms": {"fit": 1.0, "slope": 0.1}, "outputs": ["u", "total"]}
        return gradient(
            loss, inputs, model=hosted("mlp"), wrt=["params", "x"], term_gradients="full", **names, **more
        )

    whole, found = answer(), answer(examples_at_once=4)
    for section in ("terms", "outputs"):
        for name, expected in whole[section].items():
            agree(found[section][name], expected)
    for name, expected in whole["term_gradients"].items():
        agree_tree(found["term_gradients"][name]["params"], expected["params"], 1e-11)
        agree(found["term_gradients"][name]["x"], expected["x"], 1e-11)


def test_an_evaluation_in_chunks_gives_every_example_s_value() -> None:
    inputs = {"x": rng(EXAMPLES, 3)}
    asked = {"model": hosted("mlp"), "outputs": ["result", "u"]}
    text = "u = model(x)\nbatched_jacobian(u, x)"
    whole, found = evaluate(text, inputs, **asked), evaluate(text, inputs, **asked, examples_at_once=4)
    for name in ("u", "result"):
        agree(found[name], whole[name])


def test_probes_with_an_axis_of_their_own_are_cut_along_the_examples() -> None:
    inputs = {"x": rng(EXAMPLES, 3), "v": np.sign(rng(4, EXAMPLES, 3, seed=2))}
    loss = "mean(hutchinson_trace(model(x), x, v)**2)"
    whole = gradient(loss, inputs, model=hosted("mlp"), wrt=["params", "v"])
    found = gradient(loss, inputs, model=hosted("mlp"), wrt=["params", "v"], examples_at_once=4)
    agree(found["value"], whole["value"])
    agree(found["gradients"]["v"], whole["gradients"]["v"], 1e-11)


def traced(loss: str, n: int, **more: Any) -> Traced:
    request = GradientRequest(loss=loss, inputs={"x": rng(n, 3)}, models={"model": hosted("mlp")}, **more)
    return ENGINE.trace(gradient_query(request, MODELS.get))


@pytest.mark.parametrize("loss", ["mean", "root of a mean", "mean and parameters"])
@pytest.mark.parametrize("quantity", [*QUANTITIES, *OF_POINTS])
def test_memory_follows_the_chunk(quantity: str, loss: str) -> None:
    text = program(quantity, loss)
    whole = traced(text, 1000).cost
    found = traced(text, 1000, examples_at_once=10).cost
    kept = 1000 * (3 + 4 * (quantity in ("hutchinson", "drawn in the text"))) * 8 * 5
    assert found.peak_bytes < 0.35 * whole.peak_bytes + kept * (
        quantity in ("hutchinson", "drawn in the text")
    )
    # A sum that must be known first costs a second pass, never more.
    assert found.flops < (1.05 if loss != "root of a mean" else 2.05) * whole.flops


def test_sums_are_added_up_over_rows_of_any_pure_jax() -> None:
    def function(x: Any, w: Any) -> Any:
        def step(carry: Any, k: Any) -> tuple[Any, Any]:
            z, total = carry
            z = jnp.tanh(z @ w) * k
            return (z, total + z.T @ z), jnp.sum(z)

        (z, total), ys = jax.lax.scan(step, (x, jnp.zeros((3, 3))), jnp.arange(1.0, 4.0))
        ranked = jnp.sort(z[:, 0])
        return total, ys, jnp.cumsum(ranked), jnp.max(z), jax.lax.cond(total[0, 0] > 0, jnp.sin, jnp.cos, z)

    x, w = rng(10, 3), rng(3, 3, seed=1)
    compute = in_chunks(jax.make_jaxpr(function)(x, w), Examples(10, (0, None)), 4)
    for found, expected in zip(jax.jit(compute)(x, w), jax.tree.leaves(function(x, w)), strict=True):
        agree(found, expected)


def test_the_caller_s_number_is_refused_where_there_are_no_examples() -> None:
    with pytest.raises(Refusal, match="no input is an array of examples"):
        gradient("a**2", {"a": 1.5}, wrt=["a"], examples_at_once=2)


LIMITED = "mean(laplacian(model(x)[:, 0], x)**2)"


def test_a_memory_limit_makes_chunks_as_large_as_fit() -> None:
    whole = traced(LIMITED, 500)
    sizes = []
    for share in (2, 10, 40):
        limit = whole.cost.peak_bytes // share
        found = traced(LIMITED, 500, memory_limit=limit)
        room = limit / HEADROOM
        assert found.cost.peak_bytes <= room
        assert found.plan.examples is not None
        at_once = found.plan.examples.at_once
        assert 500 % at_once == 0, "nothing is left over, which would be compiled by itself"
        assert traced(LIMITED, 500, examples_at_once=2 * at_once).cost.peak_bytes > room
        assert found.plan.examples.reason == "so that it fits in memory"
        sizes.append(at_once)
    assert sizes == sorted(sizes, reverse=True)
    assert traced(LIMITED, 500, memory_limit=whole.cost.peak_bytes).plan.examples is None


def test_where_examples_stay_together_other_strategies_save_memory() -> None:
    loss = "mean(jacobian(model(a * x), a)**2)"
    request: dict[str, Any] = {"inputs": {"x": rng(3), "a": rng(400, 1)}, "models": {"model": hosted("mlp")}}
    whole = ENGINE.trace(gradient_query(GradientRequest(loss=loss, **request), MODELS.get))
    limit = int(0.8 * whole.cost.peak_bytes)
    fitted = gradient_query(GradientRequest(loss=loss, **request, memory_limit=limit), MODELS.get)
    assert ENGINE.trace(fitted).cost.peak_bytes <= limit


def test_a_limit_that_nothing_meets_is_refused_with_what_is_needed_and_where() -> None:
    with pytest.raises(Refusal) as caught:
        traced(LIMITED, 500, memory_limit=2000)
    refusal = caught.value
    assert refusal.code == "memory_limit"
    assert refusal.where is not None
    assert refusal.where.text == "laplacian(model(x)[:, 0], x)"
    assert re.search(r"the program needs [\d.]+ kB at least, [\d.]+ MB as it stands", refusal.detail)
    assert "the limit is 2 kB" in refusal.detail


def test_the_server_s_limit_holds_for_evaluations_too() -> None:
    request = EvaluateRequest(
        program="batched_jacobian(model(x), x)", inputs={"x": rng(200, 3)}, models={"model": hosted("mlp")}
    )
    limited = request.model_copy(update={"memory_limit": 1000})
    ENGINE.trace(evaluate_query(request, MODELS.get))
    with pytest.raises(Refusal, match="memory_limit"):
        ENGINE.trace(evaluate_query(limited, MODELS.get))
