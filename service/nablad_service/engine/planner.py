"""Which ways to try: the default, one change at a time, the best changes together, few examples at a time.

Trying all combinations would trace a program exponentially often, and derivatives seldom interact: what is
best for one is best whatever the others do, but for merged subexpressions. So each derivative is varied
alone, the costs are counted without compiling, and what cannot win is dropped. Counting alone picks badly,
because two computations of equal operations can differ several times in speed; it only says what need not be
timed (`race`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nablad_service.engine.costs import Cost

Choices = Mapping[int, str]
"""Strategies by derivative, where they are not the default's; under `EXAMPLES` how many go at once."""
EXAMPLES = -1
"""Stands among derivatives for the examples of the whole program."""

MOST_TRACED = 24
"""Variants whose cost is counted for one program."""
MOST_SECONDS = 20.0
"""Seconds of tracing spent on the variants of one program; a long program takes many for each."""
MOST_KEPT = 8
"""Variants worth compiling and timing, the default among them."""
HOPELESS = 4.0
"""Times the operations of the cheapest at which a variant is not timed.

Wide, since loops that send one tangent through after the other count more and were measured to be fastest:
a Laplacian in ten dimensions took a third of the time with twice the operations.
"""
WORKING_SETS = (1 << 20, 1 << 22)
"""Bytes that a chunk of examples should have at work: near the sizes of caches."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a program."""

    choices: tuple[tuple[int, str], ...]
    """(derivative, strategy), in order; empty for the default."""
    cost: Cost
    same_as: int | None = None
    """An earlier variant that is the same computation."""

    @property
    def strategies(self) -> dict[int, str]:
        """The choices without the number of examples."""
        return {node: strategy for node, strategy in self.choices if node != EXAMPLES}


def chunk_sizes(peak_bytes: int, examples: int) -> tuple[int, ...]:
    """How many examples at once are worth a trial, for a computation with such a peak for all of them."""
    each = max(peak_bytes / examples, 1.0)
    sizes = (2 ** max(round(math.log2(room / each)), 0) for room in WORKING_SETS)
    return tuple(dict.fromkeys(size for size in sizes if 2 * size <= examples))


def variants(
    alternatives: Mapping[int, tuple[str, ...]],
    count: Callable[[Choices], tuple[Cost, str]],
    examples: int | None = None,
    *,
    skipped: Callable[[Choices, str], None] = lambda choices, why: None,
    seconds: float | None = None,
) -> list[Variant]:
    """The default, then every derivative changed alone, then the changes that were cheaper, together.

    The default and the last of these also in chunks of its `examples`, where it has any. `count` gives the
    cost of a choice and a text that equal computations share; it raises `LookupError` where the choice cannot
    be traced. `skipped` is told of each choice that is not among the variants, and why. When `seconds`
    (`MOST_SECONDS` by default) would be over, no further variant is begun.
    """
    seconds = MOST_SECONDS if seconds is None else seconds
    started = time.monotonic()
    longest = 0.0
    found: list[Variant] = []
    texts: dict[str, int] = {}

    def add(choices: Choices) -> Variant | None:
        nonlocal longest
        ordered = tuple(sorted(choices.items()))
        if any(one.choices == ordered for one in found):
            return None
        if len(found) >= MOST_TRACED:
            skipped(choices, f"not counted: the planner counts at most {MOST_TRACED} variants of a program")
            return None
        begun = time.monotonic()
        # The default is always counted; of the others none whose like would end too late.
        if found and begun - started + longest > seconds:
            skipped(
                choices, f"not counted: planning takes at most {seconds:g} s, and this program traces slowly"
            )
            return None
        try:
            counted, text = count(choices)
        except LookupError as error:
            skipped(choices, f"cannot be traced: {error.args[0]}")
            return None
        finally:
            longest = max(longest, time.monotonic() - begun)
        variant = Variant(ordered, counted, texts.get(text))
        texts.setdefault(text, len(found))
        found.append(variant)
        return variant

    default = add({})
    if default is None:
        return found
    sizes = chunk_sizes(default.cost.peak_bytes, examples) if examples else ()
    for size in sizes:
        add({EXAMPLES: str(size)})
    cheapest: dict[int, tuple[float, str]] = {}
    for derivative, strategies in alternatives.items():
        for strategy in strategies:
            variant = add({derivative: strategy})
            if variant is None or variant.same_as is not None:
                continue
            best, _ = cheapest.get(derivative, (default.cost.flops, ""))
            if variant.cost.flops < best:
                cheapest[derivative] = (variant.cost.flops, strategy)
    together = {derivative: strategy for derivative, (_, strategy) in cheapest.items()}
    if len(together) > 1:
        add(together)
    for size in sizes if together else ():
        add({**together, EXAMPLES: str(size)})
    return found


def worth_timing(found: Sequence[Variant], memory_limit: int | None) -> list[int]:
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
