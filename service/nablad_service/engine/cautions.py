"""What has a meaning and still looks like a mistake: named in the plan before it bites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from nablad_service.engine import derivatives, values
from nablad_service.engine.derivatives import Shapes
from nablad_service.engine.derivatives.hutchinson import number_of_probes
from nablad_service.engine.operators import TABLE
from nablad_service.engine.operators.arithmetic import column_meets_row
from nablad_service.language import graph

INFINITE_SLOPE = {
    "sqrt": "sqrt(x + 1e-12) has a finite one",
    "norm": "norm(x, eps=1e-6) has one, and norm(x)**2 is better written sum(x**2)",
    "norm_of_squares": "norm(x, eps=1e-6) has one, and norm(x)**2 is better written sum(x**2)",
    "std": "sqrt(var(x) + 1e-12) has one",
}
"""Operators whose derivative at zero is infinite or NaN, and what to write."""

PIECEWISE_LINEAR = frozenset({"relu", "relu6", "leaky_relu", "hard_tanh", "hard_sigmoid"})
"""Functions, by JAX's names for them, whose second derivative is zero wherever it exists."""


def of_shapes(node: graph.Apply, arguments: list[Any]) -> str | None:
    """`(n, 1)` against `(n,)` broadcasts to a square."""
    if len(arguments) != 2 or not all(values.is_array(argument) for argument in arguments):
        return None
    if node.operator == "matmul" or TABLE[node.operator].signature.family not in (
        "arithmetic",
        "elementwise",
    ):
        return None
    left, right = arguments
    if not column_meets_row(left, right):
        return None
    return (
        f"shapes {left.shape} and {right.shape} broadcast to a square; if that is not meant, "
        "index the column with [:, 0]"
    )


def of_slopes(program: graph.Program, variables: Collection[int]) -> dict[int, str]:
    """Roots and norms that a derivative passes through without a guard at zero, by node.

    `variables` are the nodes that the outer gradient is taken in.
    """
    found = {}
    for index in sorted(_differentiated(program, variables)):
        node = program.nodes[index]
        if isinstance(node, graph.Apply) and node.operator in INFINITE_SLOPE and not _guarded(program, node):
            remedy = INFINITE_SLOPE[node.operator]
            found[index] = f"where this is zero its derivative is not finite; {remedy}"
    return found


def of_derivative(
    program: graph.Program, node: graph.Derivative, shapes: Shapes, closed: ClosedJaxpr, kinks: dict[int, str]
) -> str | None:
    """A second derivative through a piecewise linear function, or an estimate dearer than the exact value.

    `kinks` holds the derivatives with respect to inputs that went through such a function; it is added to.
    """
    if node.operator in ("hutchinson", "hutchinson_trace"):
        return _dear_estimate(shapes)
    if isinstance(program.nodes[node.wrt], graph.Parameters):
        return None  # weights of several layers multiply: second derivatives in them are not zero
    passed = next((kinks[index] for index in program.inside(node) if index in kinks), None)
    kink = _kink(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    if kink is not None:
        kinks[node.index] = kink
        if derivatives.TABLE[node.operator].signature.order > 1:
            passed = kink
    if passed is None:
        return None
    return f"the second derivative of {passed} is zero wherever it exists; take tanh, softplus, gelu or silu"


def _dear_estimate(shapes: Shapes) -> str | None:
    dimension = shapes.x.shape[-1] if shapes.x.shape else 1
    probes = number_of_probes(shapes)
    if probes < dimension:
        return None
    return (
        f"{probes} probes cost as much as the exact trace, which takes one pass for each of {dimension} "
        "coordinates: divergence(f, x), or laplacian(u, x) of a scalar"
    )


def _differentiated(program: graph.Program, variables: Collection[int]) -> set[int]:
    """Nodes that the outer gradient or an inner derivative passes through."""
    moving = set(variables)
    found: set[int] = set()
    for node in program.nodes:
        # What a body is given is not known here: it counts as moving.
        if isinstance(node, graph.Argument) and variables:
            moving.add(node.index)
        if any(read in moving for read in node.reads):
            moving.add(node.index)
            found.add(node.index)
        if isinstance(node, graph.Derivative):
            found |= program.inside(node)
    return found


def _guarded(program: graph.Program, node: graph.Apply) -> bool:
    """Whether something positive of the text is added before the root is taken."""
    keywords: Mapping[str, int] = dict(node.keywords)
    if node.operator in ("norm", "norm_of_squares"):
        eps = program.nodes[keywords["eps"]] if "eps" in keywords else None
        return eps is not None and not (isinstance(eps, graph.Constant) and eps.value == 0)
    argument = program.nodes[node.arguments[0]]
    return (
        isinstance(argument, graph.Apply)
        and argument.operator == "add"
        and any(
            isinstance(term := program.nodes[read], graph.Constant)
            and isinstance(term.value, int | float)
            and term.value > 0
            for read in argument.arguments
        )
    )


def _kink(jaxpr: Jaxpr, moves: list[bool]) -> str | None:
    """A piecewise linear function that what moves goes through."""
    moving = {atom for atom, one in zip(jaxpr.invars, moves, strict=True) if one}
    for equation in jaxpr.eqns:
        given = [not isinstance(atom, Literal) and atom in moving for atom in equation.invars]
        if not any(given):
            continue
        if (name := str(equation.params.get("name"))) in PIECEWISE_LINEAR:
            return name
        moving.update(equation.outvars)
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if isinstance(inner, Jaxpr):
                # A loop's condition and body take less than the loop: all of it counts as moving there.
                same = len(inner.invars) == len(given)
                if kink := _kink(inner, given if same else [True] * len(inner.invars)):
                    return kink
    return None
