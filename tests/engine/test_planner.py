"""Which variants are tried: every derivative alone, the cheaper changes together, nothing twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ask import ENGINE, MODELS, agree, agree_tree, host, rng

from nablad.messages import GradientRequest
from nablad_service.engine.costs import Cost
from nablad_service.engine.planner import (
    EXAMPLES,
    MOST_KEPT,
    MOST_TRACED,
    Choices,
    chunk_sizes,
    variants,
    worth_timing,
)
from nablad_service.requests.validation import gradient_query

NET = {"preset": "mlp", "sizes": [2, 8, 8, 1]}


def counted(costs: dict[tuple[tuple[int, str], ...], float]) -> Callable[[Choices], tuple[Cost, str]]:
    def count(choices: Choices) -> tuple[Cost, str]:
        key = tuple(sorted(choices.items()))
        if key not in costs:
            raise LookupError(key)
        return Cost(costs[key], int(costs[key])), str(costs[key])

    return count


def test_each_derivative_is_changed_alone_and_the_cheaper_changes_are_joined() -> None:
    costs = {
        (): 10.0,
        ((1, "a"),): 8.0,
        ((1, "b"),): 7.0,
        ((2, "a"),): 9.0,
        ((2, "b"),): 30.0,
        ((1, "b"), (2, "a")): 6.0,
    }
    found = variants({1: ("a", "b"), 2: ("a", "b", "impossible")}, counted(costs))
    assert [one.choices for one in found] == list(costs)
    assert worth_timing(found, None) == [0, 5, 2, 1, 3]


def test_the_same_computation_is_not_timed_twice() -> None:
    found = variants({1: ("a",)}, counted({(): 10.0, ((1, "a"),): 10.0}))
    assert [one.same_as for one in found] == [None, 0]
    assert worth_timing(found, None) == [0]


def test_the_default_and_the_best_changes_are_tried_in_chunks() -> None:
    whole = 64 << 20
    sizes = chunk_sizes(whole, 1024)
    assert sizes == (16, 64)
    assert chunk_sizes(1 << 20, 1000) == ()

    def count(choices: Choices) -> tuple[Cost, str]:
        return Cost(7.0 if 1 in choices else 10.0, whole), str(choices)

    found = variants({1: ("a",)}, count, 1024)
    assert [one.choices for one in found] == [
        (),
        ((EXAMPLES, "16"),),
        ((EXAMPLES, "64"),),
        ((1, "a"),),
        ((EXAMPLES, "16"), (1, "a")),
        ((EXAMPLES, "64"), (1, "a")),
    ]


def test_what_is_over_the_memory_limit_or_hopeless_is_left_out() -> None:
    costs = {(): 100.0, ((1, "a"),): 20.0, ((1, "b"),): 90.0}
    found = variants({1: ("a", "b")}, counted(costs))
    assert worth_timing(found, None) == [0, 1]
    assert worth_timing(found, 95) == [1]
    assert worth_timing(found, 10) == []


def test_the_number_of_variants_is_bounded() -> None:
    many = dict.fromkeys(range(100), ("a", "b"))
    found = variants(many, lambda choices: (Cost(10.0 + len(choices), 1), str(sorted(choices.items()))))
    assert len(found) == MOST_TRACED
    assert len(worth_timing(found, None)) == MOST_KEPT


@pytest.mark.parametrize(
    "loss",
    [
        "u = model(x)[:, 0]\nmean(laplacian(u, x)**2)",
        "g = grad(sum(model(x)), x)\nmean(sum(g**2, axis=1)) + norm(jacobian(model(x), x), eps=1e-9)**2",
        "def f(t, s):\n    u = model(stack([t, s]))[0]\n    return d(u, t) - d(u, s, s)\n"
        "mean(vmap(f)(x[:, 0], x[:, 1])**2)",
        "sum(hvp(sum(model(x)**2), x, x)**2) + sum(batched_jacobian(model(x), x)**2)",
    ],
)
def test_all_variants_of_a_program_agree(loss: str) -> None:
    host("planned", NET)
    request = GradientRequest(loss=loss, inputs={"x": rng(5, 2)}, models={"model": "planned"})
    query = gradient_query(request, MODELS.get)
    found = ENGINE.variants(query)
    assert len(found) > 1
    answers = [ENGINE.compile(ENGINE.trace(query, dict(one.choices))).run(query) for one in found]
    for answer in answers[1:]:
        agree(answer["value"], answers[0]["value"], 1e-12)
        agree_tree(answer["gradients"]["params"], answers[0]["gradients"]["params"], 1e-11)
