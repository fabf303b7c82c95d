"""Building expressions: one table of Python operators, and calls, literals, lists and subscripts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nablad.tracing.graph import ANY, ATOM, COMPARISON, NAME, POWER, PRODUCT, SUM, UNARY, Expression, Part

# name: (template, its precedence, what each operand must at least have). Equal precedence on the right is
# parenthesised: a - (b - c), and also a + (b + c), whose rounding differs from a + b + c.
OPERATIONS: dict[str, tuple[str, int, tuple[int, ...]]] = {
    **{
        name: (f"{{}} {name} {{}}", COMPARISON, (SUM, SUM))  # a chain a < b < c would mean something else
        for name in ("<", "<=", ">", ">=", "==", "!=")
    },
    **{name: (f"{{}} {name} {{}}", SUM, (SUM, PRODUCT)) for name in ("+", "-")},
    **{name: (f"{{}} {name} {{}}", PRODUCT, (PRODUCT, UNARY)) for name in ("*", "/", "//", "%", "@")},
    "negative": ("-{}", UNARY, (POWER,)),
    "**": ("{}**{}", POWER, (ATOM, UNARY)),
}


def literal(text: str, precedence: int = ATOM, words: tuple[str, ...] = ()) -> Expression:
    """Text without holes: a number, a string, `True`."""
    return Expression(text, precedence=precedence, words=words)


def operation(name: str, operands: Sequence[Part]) -> Expression:
    """A Python operator of the table applied to its operands."""
    template, precedence, needs = OPERATIONS[name]
    return Expression(template, tuple(operands), needs, precedence)


def call(
    name: str,
    arguments: Sequence[Part],
    keywords: Mapping[str, Part] | None = None,
    *,
    named: slice = slice(0),
) -> Expression:
    """`name(arguments, keyword=...)`, or an operator of the table; the arguments in `named` must be names."""
    if name in OPERATIONS:
        return operation(name, arguments)
    needs = [ANY] * len(arguments)
    needs[named] = [NAME] * len(needs[named])
    return called(literal(name, words=(name,)), arguments, keywords or {}, needs=needs)


def called(
    callee: Part, arguments: Sequence[Part], keywords: Mapping[str, Part], *, needs: Sequence[int] = ()
) -> Expression:
    """A call of what `callee` spells: an operator, a model, a def or a vmap of one."""
    holes = ["{}"] * len(arguments) + [f"{keyword}={{}}" for keyword in keywords]
    parts = (callee, *arguments, *keywords.values())
    argument_needs = tuple(needs) or (ANY,) * len(arguments)
    return Expression(f"{{}}({', '.join(holes)})", parts, (ATOM, *argument_needs, *(ANY for _ in keywords)))


def listed(items: Sequence[Part]) -> Expression:
    """`[a, b]`."""
    return Expression(f"[{', '.join(['{}'] * len(items))}]", tuple(items), (ANY,) * len(items))


def bracketed(items: Sequence[Part]) -> Expression:
    """`(a, b)`, and `(a,)` for one."""
    holes = ", ".join(["{}"] * len(items)) + ("," if len(items) == 1 else "")
    return Expression(f"({holes})", tuple(items), (ANY,) * len(items))


def together(results: Sequence[Part]) -> Expression:
    """What is returned: the one result, or all of them in parentheses."""
    return Expression("{}", tuple(results), (ANY,)) if len(results) == 1 else bracketed(results)


def subscript(base: Part, index: Part) -> Expression:
    """`base[index]`."""
    return Expression("{}[{}]", (base, index), (ATOM, ANY))


def attribute(base: Part, name: str) -> Expression:
    """`base.name`, for `.T` and `.shape`."""
    return Expression(f"{{}}.{name}", (base,), (ATOM,))


def unassigned(expression: Expression) -> Expression:
    """The same text as a name in its own right: always printed in full, never assigned.

    For `model.params` and its leaves: after `p = model.params`, p is a variable on which no model depends.
    """
    return replace(expression, precedence=NAME)
