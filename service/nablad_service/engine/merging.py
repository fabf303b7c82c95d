"""A function whose equal steps are computed once, merged before JAX differentiates or compiles it.

Nested derivatives along one direction are full of equal steps: k nested jvp write down 2ᵏ tangents, of which
k + 1 differ. XLA merges equal steps too, but late: what reverse mode makes of them is not equal any more, for
every copy is pulled back by itself. And it merges less inside a loop.

Figures are in `derivatives/tower.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from nablad_service.engine.jaxprs import equations
from nablad_service.engine.merged import CALLS
from nablad_service.engine.modes import need_no_pushed_rule

INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
"""Calls whose steps are merged with those around them."""
WITH_RULE = "custom_jvp_call"
"""A call with a derivative of its own: merged too where nothing differentiates it any more."""


def merged(function: Callable[..., Any], *, differentiable: bool) -> Callable[..., Any]:
    """`function` of trees of arrays, every equal step computed once.

    Where the result is `differentiable`, functions with a derivative of their own (relu, softplus) stay
    whole: two calls of one are not known to be equal, and are not merged.
    """

    def evaluate(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        closed, result = jax.make_jaxpr(
            lambda *leaves: function(*jax.tree.unflatten(structure, leaves)), return_shape=True
        )(*leaves)
        need_no_pushed_rule(closed)
        inlined = INLINED if differentiable else INLINED | {WITH_RULE}
        found = _Evaluation(inlined).run(closed.jaxpr, closed.consts, leaves)
        return jax.tree.unflatten(jax.tree.structure(result), found)

    return evaluate


class _Evaluation:
    """One evaluation of a traced computation; remembers what it has computed."""

    def __init__(self, inlined: frozenset[str]) -> None:
        self.inlined = inlined
        # With the operands, so that none is forgotten and its identity given to another.
        self.known: dict[Hashable, tuple[list[Any], list[Any]]] = {}

    def run(self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            operands = [value(atom) for atom in equation.invars]
            name = equation.primitive.name
            if name in self.inlined:
                called = equation.params[CALLS[name]]
                results = self.run(called.jaxpr, called.consts, operands)
            else:
                results = self._step(equation, operands)
            values.update(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _step(self, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
        reads = tuple(
            ("literal", repr(atom.val), atom.aval) if isinstance(atom, Literal) else id(operand)
            for atom, operand in zip(equation.invars, operands, strict=True)
        )
        settings = tuple((name, self._key(value)) for name, value in sorted(equation.params.items()))
        key = equation.primitive, reads, settings
        if key not in self.known or equation.effects:
            results = equation.primitive.bind(
                *operands, **equation.primitive.get_bind_params(equation.params)
            )
            self.known[key] = (
                list(results) if equation.primitive.multiple_results else [results],
                operands,
            )
        return self.known[key][0]

    def _key(self, setting: Any) -> Hashable:
        """What equal settings share; others never do."""
        if isinstance(setting, Jaxpr | ClosedJaxpr):
            if WITH_RULE not in self.inlined and any(_has_rule(one) for one in equations(setting)):
                return id(setting)
            # Variables are named in order: equal text, equal computation.
            return str(setting), tuple(id(constant) for constant in getattr(setting, "consts", ()))
        if isinstance(setting, tuple | list):
            return tuple(self._key(one) for one in setting)
        try:
            hash(setting)
        except TypeError:
            return id(setting)
        return setting


def _has_rule(equation: JaxprEqn) -> bool:
    """Whether it has a derivative of its own, which its text does not tell."""
    return equation.primitive.name.startswith("custom_")
