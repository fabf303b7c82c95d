"""`POST /v1/plan`: what would run and why, from costs that were counted and times that were measured."""

from __future__ import annotations

from typing import Any

from nablad_service.engine.engine import Traced
from nablad_service.engine.planner import Variant
from nablad_service.learned_plans import LearnedPlan


def plan_document(traced: Traced, variants: list[Variant], learned: LearnedPlan | None) -> dict[str, Any]:
    """The answer: the plan, what it costs, and the candidates of each derivative.

    A candidate is the whole program with this one derivative done another way; its milliseconds are there
    once the program has been called often enough to be timed.
    """
    times = {one.choices: one.milliseconds for one in learned.variants} if learned else {}
    cost = traced.cost()
    chosen = learned.variants[learned.chosen].choices if learned else ()
    derivatives = []
    for one in traced.plan.derivatives:
        default = dict(chosen).get(one.node) is None
        strategies = [one.strategy, *one.alternatives] if default else [*one.alternatives, one.strategy]
        found = {strategy: _variant(variants, one.node, strategy) for strategy in strategies}
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
                        **_figures(variant, times),
                    }
                    for strategy, variant in found.items()
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


def _variant(variants: list[Variant], node: int, strategy: str) -> Variant | None:
    """The variant that changes this derivative alone; the default where none does."""
    changed = {dict(one.choices).get(node): one for one in variants if len(one.choices) == 1}
    if strategy in changed:
        return changed[strategy]
    varied = any(node in dict(one.choices) for one in variants)
    return variants[0] if variants and varied else None


def _figures(variant: Variant | None, times: dict[Any, float | None]) -> dict[str, Any]:
    if variant is None:
        return {"flops": None, "peak_bytes": None, "milliseconds": None}
    return {
        "flops": variant.cost.flops,
        "peak_bytes": variant.cost.peak_bytes,
        "milliseconds": times.get(variant.choices),
    }
