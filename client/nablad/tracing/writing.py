"""A recorded program as text of the loss language."""

from collections.abc import Collection
from dataclasses import dataclass

from nablad.tracing.expressions import together
from nablad.tracing.graph import NAME, Scope, Variable
from nablad.tracing.line_lengths import with_lines_kept_short
from nablad.tracing.naming import Names, name_constants, name_scope, names_read, unique
from nablad.tracing.rendering import Piece, render
from nablad.tracing.survey import Survey, survey


@dataclass(frozen=True)
class Written:
    """The text, and the names that the needed array constants have in it."""

    text: str
    constants: Names


def write(program: Scope, given: Collection[str], constants: Collection[Variable]) -> Written:
    """Write the program; `given` are the names of its inputs and models.

    Three passes: what is needed and must be assigned, what is assigned to keep lines short, the text.
    """
    found = with_lines_kept_short(program, survey(program))
    named_constants = name_constants([c for c in constants if c in found.needed], given)
    names = {argument: argument.wish for argument in program.arguments} | named_constants
    taken = {*given, *named_constants.values()}
    return Written("\n".join(_lines(program, found, names, taken, 1)), named_constants)


def _lines(scope: Scope, found: Survey, names: Names, taken: set[str], first: int) -> list[str]:
    taken |= names_read(scope, found, names)
    first = name_scope(scope, found, names, taken, first)
    components = _components(scope)
    written: dict[Variable | Scope, Piece] = {}
    defs: dict[tuple[str, ...], str] = {}
    lines: list[str] = []

    def spell(leaf: Variable | Scope) -> Piece:
        return written.get(leaf) or Piece(names[leaf], NAME)  # type: ignore[index] # defs are always written

    for item in scope.items:
        if item not in found.needed:
            continue
        if isinstance(item, Scope):
            body = _lines(item, found, names, set(), first)
            arguments = ", ".join(names[argument] for argument in item.arguments)
            name = defs.get((item.title, arguments, *body))
            if name is None:  # a def that says the same as an earlier one is that one
                name = defs[(item.title, arguments, *body)] = unique(item.title, taken)
                taken.add(name)
                lines += [f"def {name}({arguments}):", *(f"    {line}" for line in body)]
            written[item] = Piece(name, NAME)
        elif item.expression is not None:
            piece = render(item.expression, spell)
            targets = components.get(item) or ([item] if item in found.assigned else [])
            if targets:
                lines.append(f"{', '.join(names[target] for target in targets)} = {piece.text}")
            else:
                written[item] = piece
    result = render(together(scope.results), spell).text
    return [*lines, f"return {result}" if scope.parent else result]


def _components(scope: Scope) -> dict[Variable, list[Variable]]:
    components: dict[Variable, list[Variable]] = {}
    for item in scope.items:
        if isinstance(item, Variable) and item.whole is not None:
            components.setdefault(item.whole, []).append(item)
    return components
