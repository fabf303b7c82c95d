"""What of a recorded program is needed, and which of its values must have a name."""

from collections import Counter
from dataclasses import dataclass

from nablad.tracing.graph import NAME, Scope, Variable, leaves


@dataclass(frozen=True)
class Survey:
    """The needed variables and defs, and those variables among them that are assigned rather than inlined."""

    needed: set[Variable | Scope]
    assigned: set[Variable]


def survey(program: Scope) -> Survey:
    """Find what the results and the function's own local variables need.

    A value is assigned where the function named it, where it is read twice, read in another scope, taken a
    derivative with respect to, or given together with others.
    """
    needed: set[Variable | Scope] = set()
    assigned: set[Variable] = set()
    readings: Counter[Variable] = Counter()
    pending: list[Variable | Scope] = [program]
    while pending:
        item = pending.pop()
        if item in needed:
            continue
        needed.add(item)
        if isinstance(item, Scope):
            reader, read = item, [leaf for result in item.results for leaf in leaves(result)]
            assigned.update(item.locals.values())
            pending.extend(item.locals.values())
        else:
            reader, read = item.scope, list(leaves(item.expression)) if item.expression else []
        if isinstance(item, Variable) and item.whole is not None:
            assigned.add(item)
            pending.append(item.whole)
        for leaf, need in read:
            pending.append(leaf)
            if isinstance(leaf, Variable):
                readings[leaf] += 1
                if readings[leaf] > 1 or need == NAME or leaf.scope is not reader:
                    assigned.add(leaf)
    return Survey(needed, assigned)
