"""From a result to the bytes of its answer: the last arrow of the path."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from nablad import wire
from nablad.arrays import Encoding, encode_array, encode_tree
from nablad.frame import Buffer
from nablad.halves import Floats
from nablad_service.answers.templates import AnswerTemplate, template_of
from nablad_service.answers.timing import Timing
from nablad_service.requests.reading import Body
from nablad_service.running.off_loop import off_loop

MOST_KEPT = 512
"""Programs whose answers' common parts are kept."""
DOCUMENTS = ("plan", "dtype", "non_finite")
"""Members of an answer that hold no arrays."""


class Answers:
    """Packs answers; what those of one program share is packed once."""

    def __init__(self) -> None:
        self._templates: dict[tuple[int, str], tuple[Any, AnswerTemplate]] = {}

    async def body(self, result: dict[str, Any], timing: Timing, body: Body) -> list[Buffer]:
        """The answer in pieces, its arrays as they lie; `timing` learns how long that took."""
        small = self._from_template(result, timing, body)
        if small is not None:
            return [small]
        pieces = await off_loop(_bytes(result), lambda: _packed(result, timing, body))
        self._learn(pieces, result, body)
        return pieces

    def _from_template(self, result: dict[str, Any], timing: Timing, body: Body) -> bytes | None:
        """An answer put together from what it shares with others of its program, if that is known."""
        plan = result.get("plan")
        # Programs have one document each, the same object in all their answers.
        known = self._templates.get((id(plan), body.answer))
        if known is None or known[0] is not plan or "non_finite" in result or body.floats:
            return None
        started = time.perf_counter()
        return known[1].body(_arrays(result), partial(_last, timing, started))

    def _learn(self, pieces: list[Buffer], result: dict[str, Any], body: Body) -> None:
        """Remember what other answers of the same program will share with this one."""
        plan = result.get("plan")
        if plan is None or "non_finite" in result or "dtype" in result or body.floats:
            return
        template = template_of(pieces, _arrays(result), body.answer)
        if template is not None:
            self._templates[id(plan), body.answer] = (plan, template)
            while len(self._templates) > MOST_KEPT:
                self._templates.pop(next(iter(self._templates)))


def _arrays(result: dict[str, Any]) -> dict[str, Any]:
    return {name: section for name, section in result.items() if name not in DOCUMENTS}


def _packed(result: dict[str, Any], timing: Timing, body: Body) -> list[Buffer]:
    started = time.perf_counter()
    sections = {
        name: section if name in DOCUMENTS else _encode(section, body.encoding, body.floats)
        for name, section in result.items()
    }
    return wire.encode_with_last(sections, "timing", partial(_last, timing, started), body.answer)


def _last(timing: Timing, started: float) -> dict[str, Any]:
    # Measured when everything before it is packed.
    timing.encode_ms = (time.perf_counter() - started) * 1e3
    return timing.__dict__


# What JAX gives back is made of dicts; asking for a Mapping takes several times as long.
PLAIN = (bool, int, float, str)
SEQUENCES = (tuple, list)


def _encode(section: Any, encoding: Encoding, floats: Floats | None) -> Any:
    if isinstance(section, dict):
        return {name: _encode(item, encoding, floats) for name, item in section.items()}
    if isinstance(section, PLAIN):
        return section
    if isinstance(section, SEQUENCES):
        return encode_tree(section, encoding, floats)
    return encode_array(section, encoding, floats)


def _bytes(section: Any) -> int:
    if isinstance(section, dict):
        return sum(map(_bytes, section.values()))
    if isinstance(section, SEQUENCES):
        return sum(map(_bytes, section))
    return int(getattr(section, "nbytes", 0))
