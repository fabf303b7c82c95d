"""`POST /v1/plan`: what would run and why, from costs that were counted and times that were measured."""

from __future__ import annotations

from typing import Any

from nablad_service.engine.derivatives import TABLE
from nablad_service.engine.engine import Traced
from nablad_service.engine.planner import Variant
from nablad_service.learned_plans import LearnedPlan


def plan_document(
    traced: Traced, default: Traced, variants: list[Variant], learned: LearnedPlan | None
) -> dict[str, Any]:
    """The answer: the plan, what it costs, and the candidates of each derivative.

    A candidate is the whole program with this one derivative done another way; its milliseconds are there
    once the program has been called often enough to be timed. `default` follows the static rules alone: the
    first of `variants`.
    """
    times = {one.choices: one.milliseconds for one in learned.variants} if learned else {}
    cost = traced.cost
    chosen = learned.variants[learned.chosen].choices if learned else ()
    found = {one.choices[0]: one for one in variants if len(one.choices) == 1}
    # A derivative done as by default is no change at all; a strategy without figures could not be traced.
    found |= {(one.node, one.strategy): variants[0] for one in default.plan.derivatives if one.alternatives}
    derivatives = []
    for one in traced.plan.derivatives:
        strategies = sorted([one.strategy, *one.alternatives], key=list(TABLE[one.operator].strategies).index)
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
                "candidates": [
                    {
                        "strategy": strategy,
                        "chosen": strategy == one.strategy,
                        **_figures(found.get((one.node, strategy)), times),
                    }
                    for strategy in strategies
                ],
            }
        )
    return {
        "plan": traced.plan.document(),
        "flops": cost.flops,
        "peak_bytes": cost.peak_bytes,
        "milliseconds": times.get(chosen),
        "derivatives": derivatives,
        "measured": learned is not None,
    }


def _figures(variant: Variant | None, times: dict[Any, float | None]) -> dict[str, Any]:
    if variant is None:
        return {"flops": None, "peak_bytes": None, "milliseconds": None}
    return {
        "flops": variant.cost.flops,
        "peak_bytes": variant.cost.peak_bytes,
        "milliseconds": times.get(variant.choices),
    }
