"""Plans that are asked for twice, that nothing can follow, or that would take too long to make."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from nablad.messages import GradientRequest
from nablad.problems import Refusal
from nablad_service.engine import planner
from nablad_service.engine.engine import Engine
from nablad_service.hosting import ModelStore
from nablad_service.language import Limits
from nablad_service.planning.documents import plan_document
from nablad_service.planning.learned_plans import LearnedPlan, LearnedPlans, Timed
from nablad_service.planning.programs import Programs
from nablad_service.query import Query
from nablad_service.requests.validation import gradient_query

LAPLACE = "mean(laplacian(sum(sin(x)**2, axis=1), x)**2)"
X = np.random.default_rng(0).standard_normal((8, 3))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the engine traced and compiled."""
    calls: Counter[str] = Counter()

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            calls[name] += 1
            return work(*given)

        return call

    for name in ("trace", "compile"):
        monkeypatch.setattr(Engine, name, counted(name, getattr(Engine, name)))
    return calls


def query(loss: str, **members: Any) -> Query:
    request = GradientRequest(loss=loss, wrt=["x"], **{"inputs": {"x": X}, **members})
    return gradient_query(request, ModelStore(max_models=1).get)


def planning(*asked: Query, limits: Limits | None = None, learn: Any = None) -> list[dict[str, Any]]:
    """The documents of the plans of `asked`, one after the other."""

    async def ask() -> list[dict[str, Any]]:
        programs = Programs(Engine.start(limits), LearnedPlans(None, "test"), limit=4, threads=1)
        found = []
        try:
            for one in asked:
                found.append(plan_document(await programs.planned(one)))
                if learn:
                    programs.learned.put(learn(programs.learned.key(one.signature)))
        finally:
            programs.close()
        return found

    return asyncio.run(ask())


def refused(asked: Query, limits: Limits | None = None) -> Refusal:
    async def ask() -> None:
        programs = Programs(Engine.start(limits), LearnedPlans(None, "test"), limit=4, threads=1)
        try:
            await programs.executable(asked)
        finally:
            programs.close()

    with pytest.raises(Refusal) as found:
        asyncio.run(ask())
    return found.value


def test_a_plan_that_is_asked_for_again_is_equal_and_traces_nothing(used: Counter[str]) -> None:
    first, again, other = planning(query(LAPLACE), query(LAPLACE), query(f"2 * {LAPLACE}"))
    assert first == again
    assert other["flops"] > first["flops"]
    once = Counter(used)
    planning(query(LAPLACE), query(f"2 * {LAPLACE}"))
    assert used["trace"] == 2 * once["trace"]
    assert used["compile"] == 0


def test_a_plan_is_made_anew_when_something_was_learned() -> None:
    def lesson(key: str) -> LearnedPlan:
        variants = (Timed((), 1.0, 1, 4.0), Timed(((node, "reverse_over_reverse"),), 1.0, 1, 2.0))
        return LearnedPlan(key, LAPLACE, "cpu", variants, 1)

    engine = Engine.start()
    (node,) = (one.node for one in engine.trace(query(LAPLACE)).plan.derivatives)
    before, after = planning(query(LAPLACE), query(LAPLACE), learn=lesson)
    assert before["measured"] is False
    assert after["measured"] is True
    assert after["derivatives"][0]["strategy"] == "reverse_over_reverse"
    assert after["milliseconds"] == 2.0


HARD: Mapping[str, tuple[dict[str, Any], str, list[str]]] = {
    "a strategy that does not apply": (
        {
            "loss": "sum(jacobian(sin(x), x)**2)",
            "inputs": {"x": X[0]},
            "strategies": {"jacobian": "forward_chunked"},
        },
        "strategy",
        ["does not apply: it needs 3 passes", "these do: forward, reverse"],
    ),
    "a strategy that does not exist": (
        {"loss": "sum(grad(sum(grad(sum(x**4), x)**2), x))", "strategies": {"grad": "remat_everything"}},
        "strategy",
        ["grad has no strategy 'remat_everything'", "it has", "forward_over_reverse"],
    ),
    "a misspelt strategy": (
        {"loss": LAPLACE, "strategies": {"laplacian": "forward_over_revers"}},
        "strategy",
        ["did you mean 'forward_over_reverse'"],
    ),
    "a misspelt operator": (
        {"loss": LAPLACE, "strategies": {"laplasian": "forward_over_reverse"}},
        "strategy",
        ["did you mean 'laplacian'"],
    ),
    "an operator that is not there": (
        {"loss": LAPLACE, "strategies": {"hessian": "forward_over_reverse"}},
        "strategy",
        ["pinned for hessian", "does not use", "it has laplacian"],
    ),
    "a strategy pinned where nothing is derived": (
        {"loss": "sum(x**2)", "strategies": {"laplacian": "forward_over_reverse"}},
        "strategy",
        ["no inner derivatives"],
    ),
}


@pytest.mark.parametrize("case", HARD)
def test_a_pin_that_nothing_can_follow_is_refused_before_anything_compiles(
    used: Counter[str], case: str
) -> None:
    members, code, words = HARD[case]
    refusal = refused(query(**members))
    assert refusal.code == code
    for word in words:
        assert word in refusal.detail
    assert "\n" not in refusal.detail
    assert used["compile"] == 0


def nested(depth: int) -> str:
    """A sum of derivatives of all orders: each evaluates all that it stands on again."""
    lines = ["a0 = sum(sin(x)**2)"]
    lines += [f"a{n} = a{n - 1} + sum(grad(a{n - 1}, x)**2)" for n in range(1, depth + 1)]
    return "\n".join([*lines, f"a{depth}"])


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(evaluations=200), "more than 200 evaluations"),
        (Limits(derivative_order=4), "derivative"),
        (Limits(nodes=20), "operations"),
    ],
)
def test_a_program_whose_plan_explodes_is_refused_before_it_is_traced(
    used: Counter[str], limits: Limits, words: str
) -> None:
    refusal = refused(query(nested(6)), limits)
    assert refusal.code == "limit"
    assert words in refusal.detail
    assert used["compile"] == 0


def test_a_plan_over_many_derivatives_says_which_it_did_not_count(
    used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MOST_SECONDS", float("inf"))  # however busy the machine is
    monkeypatch.setattr(planner, "MOST_TRACED", 8)
    many = "\n".join(f"a{n} = sum(grad(sum(sin({n + 1} * x)), x)**2)" for n in range(10))
    (document,) = planning(query(f"{many}\n" + " + ".join(f"a{n}" for n in range(10))))
    notes = [
        candidate["note"]
        for one in document["derivatives"]
        for candidate in one["candidates"]
        if candidate["flops"] is None
    ]
    assert notes
    assert set(notes) == {"not counted: the planner counts at most 8 variants of a program"}
    assert used["trace"] <= 8
    assert used["compile"] == 0


def test_a_program_that_traces_slowly_is_planned_by_default_alone(
    used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MOST_SECONDS", 0.0)
    (document,) = planning(query(LAPLACE))
    (derivative,) = document["derivatives"]
    chosen = [one for one in derivative["candidates"] if one["chosen"]]
    others = [one for one in derivative["candidates"] if not one["chosen"]]
    assert chosen[0]["flops"] == document["flops"]
    assert chosen[0]["note"] == derivative["reason"]
    assert others
    for one in others:
        assert one["flops"] is None
        assert one["note"].startswith("not counted: planning takes at most 0 s")
    assert used["trace"] == 1
