"""`POST /v1/plan`: what would run and why, from costs that were counted and times that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from nablad.plans import Candidate
from nablad_service.engine.costs import Cost
from nablad_service.engine.derivatives import TABLE
from nablad_service.engine.plan import Plan, PlannedDerivative
from nablad_service.engine.planner import EXAMPLES, Variant
from nablad_service.planning.learned_plans import LearnedPlan

Change: TypeAlias = "tuple[tuple[int, str], ...]"
"""(derivative, strategy) where they differ from the default's."""


@dataclass(frozen=True)
class Planned:
    """A plan, its cost, and what it was chosen from."""

    plan: Plan
    cost: Cost
    default: Plan
    """By the static rules alone: the first of `variants`."""
    variants: list[Variant]
    skipped: Mapping[Change, str]
    """Changes without figures, and why."""
    learned: LearnedPlan | None
    number: int | None = None
    """Of examples among the inputs."""


def plan_document(planned: Planned) -> dict[str, Any]:
    """The answer: the plan, what it costs, and the candidates of each derivative.

    A candidate is the whole program with this one derivative done another way; its milliseconds are there
    once the program has been called often enough to be timed.
    """
    learned = planned.learned
    times = {one.choices: one.milliseconds for one in learned.variants} if learned else {}
    chosen = learned.variants[learned.chosen].choices if learned else ()
    found = {one.choices[0]: one for one in planned.variants if len(one.choices) == 1}
    # A derivative done as by default is no change at all.
    found |= {(one.leader, one.strategy): planned.variants[0] for one in planned.default.derivatives}
    derivatives = []
    for one in planned.plan.derivatives:
        strategies = sorted([one.strategy, *one.alternatives], key=list(TABLE[one.operator].strategies).index)
        candidates = []
        for strategy in strategies:
            variant = found.get((one.leader, strategy))
            candidates.append(
                _candidate(
                    strategy,
                    strategy == one.strategy,
                    variant.cost if variant else None,
                    times.get(variant.choices) if variant else None,
                    _note(planned, one, strategy, variant, times),
                )
            )
        derivatives.append(
            {
                "line": one.line,
                "column": one.column,
                "text": one.text,
                "operator": one.operator,
                "wrt": one.wrt,
                "order": one.order,
                "strategy": one.strategy,
                "reason": one.reason,
                "candidates": candidates,
            }
        )
    return {
        "plan": planned.plan.document(),
        "flops": planned.cost.flops,
        "peak_bytes": planned.cost.peak_bytes,
        "milliseconds": times.get(chosen),
        "derivatives": derivatives,
        "examples": _examples(planned, dict(chosen), times),
        "measured": learned is not None,
    }


def _candidate(
    strategy: str, chosen: bool, cost: Cost | None, milliseconds: float | None, note: str = ""
) -> dict[str, Any]:
    """One way to compute, as it travels: a `nablad.plans.Candidate`."""
    flops, peak_bytes = (cost.flops, cost.peak_bytes) if cost else (None, None)
    return asdict(Candidate(strategy, chosen, flops, peak_bytes, milliseconds, note))


def _examples(
    planned: Planned, chosen: dict[int, str], times: Mapping[Change, float | None]
) -> dict[str, Any] | None:
    """How many examples go at once, and what other numbers would cost with the strategies as chosen."""
    if planned.number is None:
        return None
    fitted = planned.plan.examples
    strategies = {node: strategy for node, strategy in chosen.items() if node != EXAMPLES}
    known = planned.learned.variants if planned.learned else ()
    costs = {one.choices: one.cost for one in planned.variants}
    costs |= {one.choices: Cost(one.flops, one.peak_bytes) for one in known}
    candidates = []
    for choices, cost in sorted(costs.items(), key=lambda one: -int(dict(one[0]).get(EXAMPLES, 10**9))):
        given = dict(choices)
        at_once = given.pop(EXAMPLES, None)
        if given == strategies:
            name = f"{at_once} at a time" if at_once else "all at once"
            now = (int(at_once) if at_once else None) == (fitted.at_once if fitted else None)
            candidates.append(_candidate(name, now, cost, times.get(choices)))
    if fitted is not None and not any(one["chosen"] for one in candidates):
        candidates = [_candidate(f"{fitted.at_once} at a time", True, planned.cost, None)]
    if len(candidates) == 1 and fitted is None:
        return None  # there is nothing to choose
    return {
        "number": planned.number,
        "at_once": fitted.at_once if fitted else planned.number,
        "reason": fitted.reason if fitted else "nothing else is known to be faster",
        "candidates": candidates,
    }


def _note(
    planned: Planned,
    derivative: PlannedDerivative,
    strategy: str,
    variant: Variant | None,
    times: Mapping[Change, float | None],
) -> str:
    """What is to be said of a candidate beside its figures; nothing where they speak for themselves."""
    if strategy == derivative.strategy:
        return derivative.reason
    if variant is None:
        signature = planned.plan.signature
        if any(operator == derivative.operator for operator, _ in signature.strategies):
            return "not counted: another strategy is asked for"
        if signature.nesting != "auto":
            return f"not counted: nesting is '{signature.nesting}'"
        return planned.skipped.get(((derivative.leader, strategy),), "")
    if variant.same_as is not None:
        return "the same computation as another"
    if planned.learned and variant.choices in times and times[variant.choices] is None:
        return "not timed: it counts more operations"
    return ""
