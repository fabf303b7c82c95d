"""The probes that an estimate draws for itself: how many, of which kind, from which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine import values
from nablad_service.engine.derivatives import Drawn
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
    if most > evaluation.meaning.limits.iterations:
        limit = evaluation.meaning.limits.iterations
        raise Refusal("limit", f"{node.operator} draws up to {most} probes; the limit is {limit}")
    until = None if drawing.until is None else _positive(known[drawing.until])
    key = seeded(environment.key, known[drawing.seed])
    probes = PROBES[drawing.kind]

    def draw(count: int, batch: Any = None) -> jax.Array:
        own = key if batch is None else jax.random.fold_in(key, batch)
        return probes(own, (count, *x.shape), x.dtype)

    return Drawn(drawing.kind, most, until, draw)


def _positive(until: Any) -> Any:
    if values.is_static(until) and not until > 0:
        detail = f"until is a standard error to stay below, a positive number, not {until}"
        raise Refusal("wrong_kind", f"{detail}; a fixed number of probes is probes=16")
    limit = values.array(until, "until")
    if limit.shape != () or not jnp.issubdtype(limit.dtype, jnp.number):
        raise Refusal("wrong_kind", f"until is one positive number, not {values.show(until)}")
    return jax.lax.stop_gradient(limit)
