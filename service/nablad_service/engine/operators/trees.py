"""Parameter trees as vectors and back, leaves in the model's declared order."""

from __future__ import annotations

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nablad_service.engine.operators.row import row
from nablad_service.engine.values import Value, array, mismatch, show


def ravel(x: Value) -> Value:
    """All entries in one vector."""
    return ravel_pytree(x)[0] if isinstance(x, dict) else array(x).reshape(-1)


def unravel_like(vector: Value, like: Value) -> Value:
    """The entries of a vector in the shape of an array or a tree."""
    entries = array(vector)
    target = like if isinstance(like, dict) else array(like)
    flat, unravel = ravel_pytree(target)
    if entries.shape != flat.shape:
        detail = f"unravel_like needs {flat.size} entries for {show(target)}, not shape {entries.shape}"
        raise mismatch(detail, entries.shape, flat.shape)
    return unravel(jnp.asarray(entries, flat.dtype))


ROWS = (
    row("ravel(x)", "All entries of an array or a parameter tree in one vector.", "shape", ravel),
    row("unravel_like(vector, like)", "A vector in the shape of an array or a tree.", "shape", unravel_like),
)
