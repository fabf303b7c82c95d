"""Which names a value of a tree rests on: a derivative reads its variable and what its path captures."""

from __future__ import annotations

from collections.abc import Mapping

from program_tree import Assign, Call, Def, Derivative, Expr, Leaf, Loop, Name, children, root

Definitions = Mapping[str, Expr]


def flows(expression: Expr, definitions: Definitions) -> frozenset[str]:
    """The names that the expression reads at first hand."""
    match expression:
        case Name() | Leaf():
            return frozenset([root(expression)])
        case Derivative(value=value, variables=variables, vectors=vectors):
            found = _of(vectors, definitions)
            reads = flows(value, definitions)
            for variable in variables:
                reads = _captured(reads, root(variable), definitions) | {root(variable)}
            return found | reads
        case Call(function=function) | Loop(function=function):
            return _of(children(expression), definitions) | free(function, definitions)
    return _of(children(expression), definitions)


def _of(expressions: tuple[Expr, ...], definitions: Definitions) -> frozenset[str]:
    return frozenset().union(*(flows(expression, definitions) for expression in expressions))


def free(function: Def, definitions: Definitions) -> frozenset[str]:
    """What a `def` reads from outside."""
    own = local(function) | {argument.name for argument in function.arguments}
    reads, waiting, seen = set[str](), list(_of(function.results, definitions)), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in own:
            reads.add(name)
        elif name in definitions:
            waiting.extend(flows(definitions[name], definitions))
    return frozenset(reads)


def local(function: Def) -> frozenset[str]:
    """The names assigned in a `def` and in the `def`s inside it, and the arguments of these."""
    found = set[str]()
    for statement in function.body:
        if isinstance(statement, Assign):
            found.add(statement.name)
        else:
            found |= local(statement) | {argument.name for argument in statement.arguments}
    return frozenset(found)


def moves(name: str, variable: str, definitions: Definitions) -> bool:
    """Whether `name` is the variable or is computed from it; arguments and inputs stand for themselves."""
    if name == variable:
        return True
    if name not in definitions:
        return False
    return any(moves(read, variable, definitions) for read in flows(definitions[name], definitions))


def depends(expression: Expr, variable: str, definitions: Definitions) -> bool:
    """Whether the variable flows into the expression."""
    return any(moves(read, variable, definitions) for read in flows(expression, definitions))


def _captured(reads: frozenset[str], variable: str, definitions: Definitions) -> frozenset[str]:
    found = set[str]()
    for name in reads:
        if name == variable:
            continue
        if moves(name, variable, definitions):
            found |= _captured(flows(definitions[name], definitions), variable, definitions)
        else:
            found.add(name)
    return frozenset(found)
