"""Which values are assigned only because the line would get too long without."""

from nablad.tracing.expressions import together
from nablad.tracing.graph import ATOM, NAME, Scope, Variable, leaves
from nablad.tracing.rendering import Piece, render
from nablad.tracing.survey import Survey

LONGEST_LINE = 100
_INDENT = 4
_UNNAMED = "t999"  # as long as the names that values without one will get
_WORTH_A_NAME = 12  # a shorter piece of text is no longer than what replaces it, or nearly


def with_lines_kept_short(scope: Scope, found: Survey) -> Survey:
    """Return the survey with more values assigned, so that few lines exceed `LONGEST_LINE`.

    Where a line is too long its longest inlined values get lines of their own; one operator of very many
    short arguments stays as long as it is. Values are taken in order of creation, so a chain of any length
    needs no recursion.
    """
    assigned = set(found.assigned)
    _shorten(scope, found.needed, assigned)
    return Survey(found.needed, assigned)


def _shorten(scope: Scope, needed: set[Variable | Scope], assigned: set[Variable]) -> None:
    named = {variable: name for name, variable in scope.locals.items()}
    inlined: dict[Variable, Piece] = {}

    def spell(leaf: Variable | Scope) -> Piece:
        if isinstance(leaf, Scope):
            return Piece(leaf.title, ATOM)
        return inlined.get(leaf) or Piece(leaf.wish or named.get(leaf, _UNNAMED), NAME)

    steps = [item for item in scope.items if item in needed]
    result = Variable(scope, together(scope.results))
    for item in [*steps, result]:
        if isinstance(item, Scope):
            _shorten(item, needed, assigned)
            continue
        if item.expression is None:
            continue
        room = LONGEST_LINE - _INDENT * scope.depth - len(f"{named.get(item, _UNNAMED)} = ")
        longest = sorted(
            {leaf for leaf, _ in leaves(item.expression) if leaf in inlined and isinstance(leaf, Variable)},
            key=lambda leaf: -len(inlined[leaf].text),
        )
        piece = render(item.expression, spell)
        for leaf in longest:
            if len(piece.text) <= room or len(inlined[leaf].text) <= _WORTH_A_NAME:
                break
            assigned.add(leaf)
            del inlined[leaf]
            piece = render(item.expression, spell)
        if item not in assigned:
            inlined[item] = piece
