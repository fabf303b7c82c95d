"""Which derivatives are replaced by the squares or products that a program reads of them, and which stay."""

from __future__ import annotations

import pytest

from nablad_service.engine.derivatives import HIDDEN
from nablad_service.engine.fusing import asked_for, fused
from nablad_service.engine.operators import SIGNATURES
from nablad_service.language import graph, parse
from nablad_service.language.places import place
from nablad_service.routes.operators import operator_table

J = "J = jacobian(model(x), model.params)\n"
G = "g = grad(sum(model(x)), model.params)\n"


def operators(text: str, kept: tuple[str, ...] = ()) -> list[str]:
    """The derivatives of a program, in order, after what can be replaced was."""
    return [node.operator for node in derivatives(text, kept)[1]]


def derivatives(text: str, kept: tuple[str, ...] = ()) -> tuple[graph.Program, list[graph.Derivative]]:
    program = parse(text, inputs=["x", "v"], models={"model": ["w", "b"]}, operators=SIGNATURES)
    after = fused(program, set(asked_for(program, kept)), {"jacobian", "grad"})
    assert [node.index for node in after.nodes] == list(range(len(program.nodes)))
    assert [node.span for node in after.nodes if not isinstance(node, graph.Derivative)] == [
        node.span for node in program.nodes if not isinstance(node, graph.Derivative)
    ]
    return after, [node for node in after.nodes if isinstance(node, graph.Derivative)]


REPLACED = {
    J + "sum(J**2)": "jacobian_norms",
    J + "sum(J**2.0, axis=1)": "jacobian_norms",
    J + "S = J * J\nsum(sum(S, axis=-1)) + sum(S)": "jacobian_norms",
    J + "norm(J)**2 + norm(J, axis=1)[0]": "jacobian_norms",
    J + "mean(J**2)": "jacobian_mean_squares",
    J + "K = J\n(K @ J.T)[0, 0]": "jacobian_gram",
    J + "sum(v * sum(J**2, axis=1))": "jacobian_norms",
    'sum(jacobian(model(x), model.params["w"])**2)': "jacobian_norms",
    G + "norm(g)": "gradient_norm",
    G + "dot(g, g)": "gradient_norm",
    G + "sum(ravel(g * g))": "gradient_norm",
    'g = grad(sum(model(x)), model.params["w"])\nsum(g**2)': "gradient_norm",
}


@pytest.mark.parametrize("text", REPLACED)
def test_what_only_squares_are_read_of_is_replaced(text: str) -> None:
    assert operators(text) == [REPLACED[text]]


STAYS = {
    "another reader": J + "sum(J**2) + J[0, 0]",
    "one of two readers is no square": J + "sum(J**2) + sum(J)",
    "another power": J + "sum(J**3)",
    "columns": J + "sum(sum(J**2, axis=0))",
    "both sums and means": J + "sum(J**2) + mean(J**2)",
    "kept axes": J + "sum(sum(J**2, axis=1, keepdims=True))",
    "shape": J + "sum(J**2) / J.shape[0]",
    "squares of their own": J + "max(J**2)",
    "the other product": J + "sum(J.T @ J)",
    "a square product": J + "sum((J @ J.T) + sum(J))",
    "rows of a leaf": 'J = jacobian(model(x), model.params["w"])\nsum(norm(J, axis=1))',
    "a transpose with axes": J + "sum(J @ transpose(J, (1, 0)))",
    "an input": "J = jacobian(model(x), x)\nsum(J**2)",
    "a tree has no sum": G + "sum(g**2)",
    "the result": "jacobian(model(x), model.params)",
    "the variable of another": J + "sum(grad(sum(J**2), J))",
    "a vector of another": G + "norm(g) + norm(hvp(sum(model(x)), model.params, g))",
    "a loop's start": J + "def f(i, c):\n    return 2 * c\nsum(fori(3, f, J)**2)",
    "the result of a body": "def f(x):\n    return grad(model(x), model.params)\nnorm(vmap(f)(x))",
}


@pytest.mark.parametrize("case", STAYS)
def test_what_is_read_otherwise_stays(case: str) -> None:
    assert not {row.signature.name for row in HIDDEN} & set(operators(STAYS[case]))


@pytest.mark.parametrize("kept", ["J", "S", "K"])
def test_a_value_that_is_asked_back_stays(kept: str) -> None:
    text = J + "S = J**2\nK = J\nn = sum(S, axis=1)\nsum(n) + norm(K)**2"
    assert operators(text, (kept,)) == ["jacobian"]
    assert operators(text, ("n",)) == ["jacobian_norms"]


def test_paths_and_bodies_stay_what_they_are() -> None:
    text = "def f(p):\n    return norm(grad(sum(model(p)), model.params))**2\n"
    text += "s = sum(vmap(f)(x))\nsum(grad(s, x)**2)"
    plain = parse(text, inputs=["x", "v"], models={"model": ["w", "b"]}, operators=SIGNATURES)
    after, (inner, outer) = derivatives(text)
    assert (inner.operator, outer.operator) == ("gradient_norm", "grad")
    for before, node in zip(plain.nodes, after.nodes, strict=True):
        assert node.bodies == before.bodies
        if isinstance(node, graph.Derivative) and isinstance(before, graph.Derivative):
            assert (node.path, node.captured, node.wrt) == (before.path, before.captured, before.wrt)


def test_the_plan_shows_the_whole_piece() -> None:
    program, (node,) = derivatives(J + "sum(J**2, axis=1)[0]")
    assert node.span is not None
    assert place(program.text, node.span).text == "sum(J**2, axis=1)"


def test_no_text_can_call_them_and_no_list_shows_them() -> None:
    names = {row.signature.name for row in HIDDEN} | {"norm_of_squares"}
    assert not names & set(SIGNATURES)
    assert not names & {one.name for one in operator_table()}
