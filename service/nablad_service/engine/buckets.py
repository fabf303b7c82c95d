"""One compiled program for all numbers of examples up to a bucket's size, where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from nablad_service.engine.examples import examples_of
from nablad_service.engine.padding import Compared, Unpadded, compared
from nablad_service.engine.placement import Placement
from nablad_service.engine.plan import Plan, PlannedBucket
from nablad_service.engine.values import on_host
from nablad_service.query import Query, Signature
from nablad_service.specs import ArraySpec

if TYPE_CHECKING:
    from nablad_service.engine.executable import Traced


def bucket_of(query: Query) -> tuple[int, int] | None:
    """How many examples a query has, and the least of its buckets that holds them; None where none does."""
    examples = examples_of(query) if query.signature.buckets else None
    if examples is None:
        return None
    sizes = [size for size in query.signature.buckets if size >= examples.number]
    return (examples.number, min(sizes)) if sizes else None


def resized(query: Query, number: int, size: int) -> Query:
    """A query like this one with `size` examples in place of `number`; its arrays have no data."""

    def lengths(spec: Any) -> Any:
        if not isinstance(spec, ArraySpec) or number not in spec.shape:
            return spec
        shape = list(spec.shape)
        shape[shape.index(number)] = size
        return ArraySpec(tuple(shape), spec.dtype)

    specs = {name: lengths(spec) for name, spec in query.signature.inputs}
    inputs = {
        name: np.broadcast_to(np.zeros((), spec.dtype), spec.shape) if isinstance(spec, ArraySpec) else value
        for (name, value), spec in zip(query.inputs.items(), specs.values(), strict=True)
    }
    signature: Signature = replace(query.signature, inputs=tuple(specs.items()), buckets=())
    return replace(query, signature=signature, inputs=inputs)


@dataclass(frozen=True, eq=False)
class Bucket:
    """A program compiled for `size` examples that takes fewer."""

    size: int
    compared: Compared
    large: ClosedJaxpr
    compiled: Any
    placement: Placement

    def fit(self, traced: Traced, number: int) -> InBucket:
        """This program in the place of one that was traced for `number` examples.

        Raises:
            Unpadded: where it cannot stand for it.
        """
        if number == self.size:
            numbers = self.compared.own_numbers()
        else:
            numbers = compared(traced.computation.jaxpr, self.large, number, self.size).numbers(self.compared)
        plan = replace(traced.plan, bucket=PlannedBucket(number, self.size))
        structure = jax.tree.structure(traced.computation.out_info)
        return InBucket(plan, traced.answer_bytes, self, numbers, number, structure)


@dataclass(frozen=True, eq=False)
class InBucket:
    """A bucket's program for one number of examples: called like an `Executable`."""

    plan: Plan
    answer_bytes: int
    bucket: Bucket
    numbers: Any
    number: int
    structure: Any

    def run(self, query: Query) -> dict[str, Any]:
        """The answer's arrays, on the host, as `Executable.run` gives them."""
        flat = self.bucket.compared.large
        axes = self.bucket.compared.axes
        given = [
            self._padded(leaf, axes[value])
            for leaf, value in zip(
                jax.tree.leaves(self.bucket.placement.arguments(query)), flat.arguments, strict=True
            )
        ]
        made = on_host(self.bucket.compiled(given, self.numbers, np.int32(self.number)))
        found = [self._first(leaf, axes[value]) for leaf, value in zip(made, flat.results, strict=True)]
        return jax.tree.unflatten(self.structure, found)

    def _first(self, leaf: Any, axis: int | None) -> Any:
        return leaf if axis is None else leaf[(slice(None),) * axis + (slice(self.number),)]

    def _padded(self, leaf: Any, axis: int | None) -> Any:
        """More of the last example: its numbers are known to be bearable."""
        missing = self.bucket.size - self.number
        if axis is None or not missing:
            return leaf
        leaf = np.asarray(leaf)
        last = np.take(leaf, [-1], axis)
        return np.concatenate([leaf, np.repeat(last, missing, axis)], axis)

    @cached_property
    def document(self) -> dict[str, Any]:
        """The plan as it travels in an answer, the same in all of them."""
        return self.plan.document()


def bucket(trace: Callable[[int], Traced], size: int, placement: Placement) -> Bucket:
    """The program for `size` examples and fewer, compiled; `trace` gives it for any number of them.

    Raises:
        Unpadded: where it is not known to be exact.
    """
    large = trace(size)
    found = _first(trace, large, size, (size - 1, size - 2))
    avals = large.computation.jaxpr.in_avals
    given = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in avals]
    count = jax.ShapeDtypeStruct((), np.int32)
    run = jax.jit(lambda given, numbers, count: found.run(given, numbers, count))
    compiled = run.trace(given, found.own_numbers(), count).lower().compile()
    return Bucket(size, found, large.computation.jaxpr, compiled, placement)


def _first(trace: Callable[[int], Traced], large: Traced, size: int, others: Sequence[int]) -> Compared:
    """The comparison with the first of some smaller numbers of examples that can be compared.

    A number that happens to be a length of something else too can not.
    """
    reason = Unpadded("a bucket of one example holds no fewer")
    for number in others:
        if number > 0:
            try:
                return compared(trace(number).computation.jaxpr, large.computation.jaxpr, number, size)
            except Unpadded as why:
                reason = why
    raise reason
