"""Drawn values under the names that `identities` speaks of, and the two sides of identities as terms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dependence import depends
from drawing import INPUTS, Drawing, Room
from hypothesis import strategies as st
from identities import OF_A_BATCH, OF_A_POINT, OF_ENTRIES, OF_PARAMETERS, Pair
from program_tree import BATCH, EXAMPLES, POINT, SCALAR, Assign, Name, Program, Shape, lines


@dataclass(frozen=True)
class Family:
    """Identities of one kind of variable, and the shapes of the names in them."""

    pairs: Sequence[Pair]
    x: Shape
    u: Shape
    f: Shape
    m: Shape
    apart: bool

    def shape(self, name: str) -> Shape:
        return {"u": self.u, "f": self.f, "g": self.f, "m": self.m, "n": self.m}.get(name, self.x)


FAMILIES = {
    "point": Family(OF_A_POINT, POINT, SCALAR, POINT, POINT, False),
    "batch": Family(OF_A_BATCH, BATCH, EXAMPLES, BATCH, BATCH, True),
    "entries": Family(OF_ENTRIES, EXAMPLES, EXAMPLES, EXAMPLES, EXAMPLES, True),
    "parameters": Family(OF_PARAMETERS, "field", EXAMPLES, BATCH, BATCH, False),
}


@dataclass(frozen=True)
class Fragment:
    """A program that ends with terms `left0`, `right0`, `left1`, ... that weigh the arrays `L0`, `R0`, ..."""

    text: str
    count: int
    program: Program
    """Its statements, without the terms."""
    wrt: tuple[str, ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """As hypothesis shows it: the text, not the tree."""
        printer.text("\n" + self.text)

    @property
    def terms(self) -> dict[str, float]:
        return {f"{side}{i}": 0.5 + i for i in range(self.count) for side in ("left", "right")}

    @property
    def outputs(self) -> list[str]:
        return [f"{side}{i}" for i in range(self.count) for side in ("L", "R")]


def _standing_for(text: str, variable: str, other: str) -> str:
    return re.sub(r"\bz\b", other, re.sub(r"\bX\b", variable, text))


@st.composite
def fragments(draw: Any, family: Family) -> Fragment:
    """Two identities of a family, of values that are drawn."""
    pairs = [draw(st.sampled_from(family.pairs)) for _ in range(2)]
    used = set(re.findall(r"\b[ufgvkmnz]\b", " ".join(map(" ".join, pairs))))
    drawing = Drawing(draw, plain=False)
    room = Room((drawing.top,), 3, 2)
    variable, other = _variables(drawing, room, family, "z" in used)
    around = (variable, other) if "z" in used else (variable,)
    for name in sorted(used - {"z"}):
        apart = family.apart and name in "ufg"
        inside = replace(room, apart=apart, wanted=around, depth=3 if name in "ufg" else 1)
        value = drawing.expression(family.shape(name), inside)
        for one in around if name in "ufg" else ():
            value = drawing.reaching(value, one, apart)
        drawing.definitions[name] = value
        drawing.top.statements.append(Assign(name, value))
    program = Program(tuple(drawing.top.statements), variable, drawing.definitions)
    text = list(lines(drawing.top.statements))
    for i, pair in enumerate(pairs):
        for side, array, identity in zip(("left", "right"), "LR", pair, strict=True):
            text.append(f"{array}{i} = {_standing_for(identity, variable.name, other.name)}")
            text.append(f"r{array}{i} = ravel({array}{i})")
            # Entries weigh differently, so that a transposed result is another number.
            text.append(f"{side}{i} = sum(r{array}{i} * linspace(0.5, 1.5, r{array}{i}.shape[0]))")
    known = [*INPUTS, "field.params", "net.params"]
    values = [Name(name, None) for name in used & {"u", "f", "g"}]
    wrt = tuple(
        name for name in known if any(depends(one, name, drawing.definitions) for one in (variable, *values))
    )
    return Fragment("\n".join(text), len(pairs), program, wrt)


def _variables(drawing: Drawing, room: Room, family: Family, two: bool) -> tuple[Name, Name]:
    if isinstance(family.x, str):
        params = Name(f"{family.x}.params", family.x)
        return params, params
    inputs = [Name(name, shape) for name, shape in INPUTS.items() if shape == family.x]
    variable, *others = drawing.draw(st.permutations(inputs))
    if not two and drawing.draw(st.booleans()):
        variable = drawing.let(family.x, replace(room, depth=2, order=0, apart=family.apart))
    return variable, others[0]
