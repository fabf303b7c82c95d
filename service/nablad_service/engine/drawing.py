"""The probes that an estimate draws for itself: how many, of which kind, from which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine import values
from nablad_service.engine.derivatives import Drawn, hutch_plus_plus
from nablad_service.engine.environment import Environment
from nablad_service.engine.operators.random import PROBES, seeded
from nablad_service.language import graph

if TYPE_CHECKING:
    from nablad_service.engine.evaluation import Evaluation


def drawn(evaluation: Evaluation, node: graph.Derivative, environment: Environment, x: jax.Array) -> Drawn:
    """What `node.drawing` says, its numbers checked.

    Raises:
        Refusal: a count that is not known while tracing or less than one, a limit that is not positive.
    """
    assert node.drawing is not None
    drawing, known = node.drawing, environment.values
    most = values.static_int(known[drawing.probes], "probes")
    if most < 1:
        raise Refusal("wrong_kind", f"probes says how many are drawn, at least one, not {most}")
    if most < 2 and node.operator == "hutchinson":
        detail = "hutchinson needs probes=2 or more for a standard error"
        raise Refusal("wrong_kind", f"{detail}, not {most}; hutchinson_trace takes one")
    if drawing.kind == hutch_plus_plus.KIND:
        _need_one_trace(node.operator, most, environment, x)
    if most > evaluation.meaning.limits.iterations:
        limit = evaluation.meaning.limits.iterations
        raise Refusal("limit", f"{node.operator} draws up to {most} probes; the limit is {limit}")
    until = None if drawing.until is None else _positive(known[drawing.until])
    key = seeded(environment.key, known[drawing.seed])
    probes = PROBES["rademacher" if drawing.kind == hutch_plus_plus.KIND else drawing.kind]

    def draw(count: int, batch: Any = None) -> jax.Array:
        own = key if batch is None else jax.random.fold_in(key, batch)
        return probes(own, (count, *x.shape), x.dtype)

    beforehand = until is None and drawing.kind != hutch_plus_plus.KIND
    return Drawn(drawing.kind, most, until, draw, beforehand)


def _need_one_trace(operator: str, most: int, environment: Environment, x: jax.Array) -> None:
    """Hutch++ needs enough products for a basis and what is beside it, and one matrix."""
    least, what = (4, "a standard error") if operator == "hutchinson" else (3, "a basis and one probe")
    if most < least:
        detail = f"{operator} of the kind 'hutch++' needs probes={least} or more for {what}"
        raise Refusal("wrong_kind", f"{detail}, best a multiple of three, not {most}")
    if x.ndim > 1 or environment.maps:
        here = f"for each example of shape {x.shape[-1:]}" if x.ndim > 1 else "for each example of a vmap"
        detail = f"the kind 'hutch++' finds the range of one matrix, and here is one {here}"
        hint = "take another kind, or the trace in a parameter tree or in one vector, z = ravel(x)"
        raise Refusal("wrong_kind", f"{detail}; {hint}")


def _positive(until: Any) -> Any:
    if values.is_static(until) and not until > 0:
        detail = f"until is a standard error to stay below, a positive number, not {until}"
        raise Refusal("wrong_kind", f"{detail}; a fixed number of probes is probes=16")
    limit = values.array(until, "until")
    if limit.shape != () or not jnp.issubdtype(limit.dtype, jnp.number):
        raise Refusal("wrong_kind", f"until is one positive number, not {values.show(until)}")
    return jax.lax.stop_gradient(limit)
