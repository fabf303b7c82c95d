"""Names for what is printed: the function's own where they are free, `t1`, `t2`, ... for the rest."""

import keyword
from collections.abc import Collection, Iterator

from nablad.tracing.graph import Part, Scope, Variable, leaves, words
from nablad.tracing.survey import Survey

Names = dict[Variable, str]


def unique(wish: str, taken: Collection[str]) -> str:
    """Return `wish`, or the first of `wish_1`, `wish_2`, ... that is not taken."""
    name, number = wish, 0
    while name in taken or keyword.iskeyword(name):
        number += 1
        name = f"{wish}_{number}"
    return name


def name_constants(constants: Collection[Variable], given: Collection[str]) -> Names:
    """Name the array constants `constant_1`, ... beside the inputs and models."""
    names: Names = {}
    number = 0
    for variable in constants:
        number += 1
        while f"constant_{number}" in given:
            number += 1
        names[variable] = f"constant_{number}"
    return names


def name_scope(scope: Scope, found: Survey, names: Names, taken: set[str], first: int = 1) -> int:
    """Add the names of the scope's arguments and assigned variables to `names` and `taken`.

    Names without a wish are numbered from `first`; returns the next free number.
    """
    wishes = {argument: argument.wish for argument in scope.arguments}
    wishes |= {variable: name for name, variable in scope.locals.items()}
    assigned = [item for item in scope.items if isinstance(item, Variable) and _has_a_name(item, found)]
    wished = [variable for variable in (*scope.arguments, *assigned) if variable in wishes]
    for variable in wished:
        if variable not in names:
            names[variable] = unique(wishes[variable], taken)
            taken.add(names[variable])
    for variable in assigned:
        if variable not in wishes:
            while f"t{first}" in taken:
                first += 1
            names[variable] = f"t{first}"
            taken.add(names[variable])
    return first


def names_read(scope: Scope, found: Survey, names: Names) -> set[str]:
    """Return what a scope must not hide: the outer names and operators that it and its defs read."""
    read: set[str] = set()
    for part in _parts(scope, found):
        read.update(words(part))
        read.update(
            names[leaf]
            for leaf, _ in leaves(part)
            if isinstance(leaf, Variable) and not leaf.scope.within(scope)
        )
    return read


def _parts(scope: Scope, found: Survey) -> Iterator[Part]:
    yield from scope.results
    for item in scope.items:
        if item not in found.needed:
            continue
        if isinstance(item, Scope):
            yield from _parts(item, found)
        elif item.expression is not None:
            yield item.expression


def _has_a_name(variable: Variable, found: Survey) -> bool:
    # Values given together are all named, needed or not.
    return variable in found.assigned or (variable.whole is not None and variable.whole in found.needed)
