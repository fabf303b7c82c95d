"""Many tangents through one linear map, a few at a time: less memory, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from nablad_service.engine.derivatives.row import Obstacle, Shapes


def in_turn(function: Callable[[Any], Any], xs: Any, *, at_once: int = 1) -> Any:
    """`jax.vmap(function)(xs)`, as a loop over groups of `at_once`.

    What a group needs on the way is forgotten, and computed again when the loop is differentiated in reverse:
    a scan without that (`jax.checkpoint`) keeps the residuals of all groups and saves nothing.
    """
    # Inside a scan nothing can be merged with the first computation, so JAX need not prevent it.
    forgetting = jax.checkpoint(function, prevent_cse=False)
    return jax.lax.map(forgetting, xs, batch_size=at_once if at_once > 1 else None)


def one_group(count: Callable[[Shapes], int], at_once: int = 1) -> Obstacle:
    """The obstacle that all go at once anyway."""

    def obstacle(shapes: Shapes, value: ClosedJaxpr) -> str | None:
        del value
        number = count(shapes)
        if number > at_once:
            return None
        return f"it needs {number} passes, and sends {at_once} through at once"

    return obstacle
