"""A program within a budget of memory: fewer examples at once, then other strategies, then a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from nablad.place import Place
from nablad.problems import Refusal
from nablad.quantities import scaled
from nablad_service.engine.costs import largest_at_peak
from nablad_service.engine.merged import merged
from nablad_service.engine.planner import EXAMPLES, Choices
from nablad_service.language import graph

if TYPE_CHECKING:
    from nablad_service.engine.executable import Traced


HEADROOM = 1.5
"""What a run in chunks takes, for each byte that is counted.

Measured on two CPU cores, the gradient of a squared Laplacian, width 64: 1.6 with 1024 examples at a time,
1.5 with 5120. XLA says 1.1 for its own buffers; the rest are what it does not tell.
"""


def fitted(
    first: Traced,
    trace: Callable[[Choices], Traced],
    alternatives: Mapping[int, tuple[str, ...]],
    examples: int | None,
    limit: int,
    program: graph.Program,
) -> Traced:
    """The program with as many examples at once as `limit` allows, by the default strategies if they fit.

    `first` is what does not fit; `trace` gives it in other ways; `examples` says how many there are, None
    where they must stay together.

    Raises:
        Refusal: `memory_limit` where nothing fits, with the least estimate and what takes the most.
    """
    least = first
    for choices in _bases(alternatives):
        whole = _or_none(trace, choices) if choices else first
        if whole is None:
            continue
        found = _in_chunks(whole, trace, choices, examples, limit)
        least = min(least, found, key=lambda one: one.cost.peak_bytes)
        if least.cost.peak_bytes <= limit:
            return least
    size, made_in = largest_at_peak(merged(first.computation.jaxpr))
    where = _at_fault(program, made_in)
    detail = (
        f"the program needs {scaled(least.cost.peak_bytes, 'B')} at least, "
        f"{scaled(first.cost.peak_bytes, 'B')} as it stands; the limit is {scaled(limit, 'B')}"
    )
    if where is not None:
        detail += f"; what is here makes the largest array at the peak, {scaled(size, 'B')}"
    hint = "send fewer examples" if examples else "raise memory_limit"
    raise Refusal("memory_limit", f"{detail}; {hint}", where)


def _bases(alternatives: Mapping[int, tuple[str, ...]]) -> Iterable[dict[int, str]]:
    yield {}
    for derivative, strategies in alternatives.items():
        for strategy in strategies:
            yield {derivative: strategy}


def _in_chunks(
    whole: Traced, trace: Callable[[Choices], Traced], choices: Choices, examples: int | None, limit: int
) -> Traced:
    """The largest chunks that fit with some headroom; where none does, what needs least."""
    if whole.cost.peak_bytes <= limit or not examples or examples < 2:
        return whole
    one = _or_none(trace, {**choices, EXAMPLES: "1"})
    if one is None or one.cost.peak_bytes > limit:
        return one or whole
    # Memory grows with the chunk by the same step, but for what the count rounds.
    step = (whole.cost.peak_bytes - one.cost.peak_bytes) / (examples - 1)
    room = limit / HEADROOM
    at_once = int((room - one.cost.peak_bytes) / step) + 1 if step > 0 else 1
    at_once = min(at_once, examples // 2)
    while at_once > 1:
        at_once = _without_rest(at_once, examples)
        found = _or_none(trace, {**choices, EXAMPLES: str(at_once)})
        if found is not None and found.cost.peak_bytes <= room:
            return found
        at_once = at_once * 3 // 4
    return one


def _without_rest(at_once: int, examples: int) -> int:
    """A number, half of `at_once` at least, that divides the examples, where there is one.

    What is beyond whole chunks is a computation of its own, which takes as long to compile as the loop.
    """
    for fewer in range(at_once, at_once // 2, -1):
        if examples % fewer == 0:
            return fewer
    return at_once


def _or_none(trace: Callable[[Choices], Traced], choices: Choices) -> Traced | None:
    try:
        return trace(choices)
    except Refusal:
        return None


def _at_fault(program: graph.Program, made_in: str) -> Place | None:
    """The derivative that a step of the computation comes from, the innermost one; or else the operation.

    `made_in` holds the scopes in which the step was traced, which are named after the nodes of the program.
    """
    nodes = [program.nodes[int(index)] for index in re.findall(r"node_(\d+)", made_in)]
    derivatives = [node for node in nodes if isinstance(node, graph.Derivative)]
    return next((program.place_of(node.index) for node in reversed(derivatives or nodes) if node.span), None)
