"""Which strategies to try: the default, one change at a time, and the best changes together.

Trying all combinations would trace a program exponentially often, and derivatives seldom interact: what is
best for one is best whatever the others do, but for merged subexpressions. So each derivative is varied
alone, the costs are counted without compiling, and what cannot win is dropped. Counting alone picks badly,
because two computations of equal operations can differ several times in speed; it only says what need not be
timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nablad_service.engine.costs import Cost

Choices = Mapping[int, str]
"""Strategies by derivative, where they are not the default's."""

MOST_TRACED = 24
"""Variants whose cost is counted for one program."""
MOST_KEPT = 4
"""Variants worth compiling and timing, the default among them."""
HOPELESS = 4.0
"""Times the operations of the cheapest at which a variant is not timed.

Wide, since loops that send one tangent through after the other count more and were measured to be fastest:
a Laplacian in ten dimensions took a third of the time with twice the operations.
"""


@dataclass(frozen=True)
class Variant:
    """One way to compute a program."""

    choices: tuple[tuple[int, str], ...]
    """(derivative, strategy), in order; empty for the default."""
    cost: Cost
    same_as: int | None = None
    """An earlier variant that is the same computation."""


def variants(
    alternatives: Mapping[int, tuple[str, ...]], count: Callable[[Choices], tuple[Cost, str]]
) -> list[Variant]:
    """The default, then every derivative changed alone, then the changes that were cheaper, together.

    `count` gives the cost of a choice and a text that equal computations share; it raises `LookupError` where
    the choice cannot be traced.
    """
    found: list[Variant] = []
    texts: dict[str, int] = {}

    def add(choices: Choices) -> Variant | None:
        ordered = tuple(sorted(choices.items()))
        if len(found) >= MOST_TRACED or any(one.choices == ordered for one in found):
            return None
        try:
            counted, text = count(choices)
        except LookupError:
            return None
        variant = Variant(ordered, counted, texts.get(text))
        texts.setdefault(text, len(found))
        found.append(variant)
        return variant

    default = add({})
    if default is None:
        return found
    cheapest: dict[int, tuple[float, str]] = {}
    for derivative, strategies in alternatives.items():
        for strategy in strategies:
            variant = add({derivative: strategy})
            if variant is None or variant.same_as is not None:
                continue
            best, _ = cheapest.get(derivative, (default.cost.flops, ""))
            if variant.cost.flops < best:
                cheapest[derivative] = (variant.cost.flops, strategy)
    if len(cheapest) > 1:
        add({derivative: strategy for derivative, (_, strategy) in cheapest.items()})
    return found


def worth_timing(found: list[Variant], memory_limit: int | None) -> list[int]:
    """Positions of the variants to compile: the default first, then by operations."""
    different = [
        index
        for index, one in enumerate(found)
        if one.same_as is None and (memory_limit is None or one.cost.peak_bytes <= memory_limit)
    ]
    if not different:
        return []
    least = min(found[index].cost.flops for index in different)
    hopeful = [index for index in different if index and found[index].cost.flops <= HOPELESS * least]
    hopeful.sort(key=lambda index: found[index].cost.flops)
    start = [0] if 0 in different else []
    return [*start, *hopeful][:MOST_KEPT]
