"""The examples of a request, and its computation for some of them at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax

from nablad_service.engine.chunks import Examples, in_chunks
from nablad_service.query import Query, arguments
from nablad_service.specs import ArraySpec


def examples_of(query: Query) -> Examples | None:
    """The examples among the inputs of a query.

    Their number is the length that most arrays have along some axis, the largest of such lengths. A wrong
    guess costs time, never the meaning. Parameters, and trees like them, hold no examples.
    """
    shapes = [spec.shape for _, spec in query.signature.inputs if isinstance(spec, ArraySpec)]
    lengths = Counter(length for shape in shapes for length in set(shape) if length > 1)
    if not lengths:
        return None
    number = max(lengths, key=lambda length: (lengths[length], length))

    def axis(path: Any, leaf: Any) -> int:
        of_an_input = path[0].key == "inputs" and len(path) == 2
        return leaf.shape.index(number) if of_an_input and number in leaf.shape else -1

    axes = jax.tree.leaves(jax.tree_util.tree_map_with_path(axis, arguments(query)))
    return Examples(number, tuple(None if axis < 0 else axis for axis in axes))


def for_some_at_a_time(computation: Any, query: Query, examples: Examples, at_once: int) -> Any:
    """A traced computation of `arguments(query)`, traced again to take `at_once` examples at a time."""
    compute = in_chunks(computation.jaxpr, examples, at_once)
    structure = jax.tree.structure(computation.out_info)

    def answer(given: Any) -> Any:
        return jax.tree.unflatten(structure, compute(*jax.tree.leaves(given)))

    return jax.jit(answer).trace(arguments(query))
