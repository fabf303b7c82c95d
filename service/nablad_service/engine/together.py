"""Several requests of one program as one computation: the traced program under `vmap`.

What all of them share (resident parameters) enters once, everything else stacked. Each request keeps its
seed, and random numbers are functions of the seed alone, so each draws what it would draw by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from nablad.quantities import scaled
from nablad_service.engine.costs import cost
from nablad_service.engine.jaxprs import equations
from nablad_service.engine.placement import Placement
from nablad_service.engine.values import on_host
from nablad_service.query import Query, arguments, seed_of, weight_of


class Unfit(Exception):
    """Why requests are computed one by one, or not so many at once."""

    def __init__(self, why: str, *, at_any_size: bool = True) -> None:
        super().__init__(why)
        self.at_any_size = at_any_size


Place: TypeAlias = "tuple[str, str, str | None]"
"""Where a leaf of the arguments is: section, name, and leaf of a tree."""


@dataclass(frozen=True, eq=False)
class Together:
    """A program compiled for up to `size` requests at once."""

    size: int
    compiled: Any
    places: tuple[tuple[Place, bool], ...]
    """Of each leaf of the arguments, and whether all requests have the same one."""
    unflatten: Callable[[Sequence[Any]], dict[str, Any]]
    """One answer of its leaves."""
    placement: Placement
    """Where the resident ones among the values are."""

    def run(self, queries: Sequence[Query]) -> list[dict[str, Any]]:
        """The answer's arrays of each of the requests, on the host, as `Executable.run` gives them."""
        first = self.placement.arguments(queries[0])
        given = [
            read(first, place) if shared else self._stacked(own(queries, place))
            for place, shared in self.places
        ]
        made = on_host(self.compiled(*given))
        return [self.unflatten(leaves) for leaves in zip(*made, strict=True)][: len(queries)]

    def _stacked(self, leaves: list[Any]) -> Any:
        # What is missing is made up of the last request: its numbers are known to be bearable.
        missing = self.size - len(leaves)
        if missing:
            leaves += leaves[-1:] * missing
        shape = np.shape(leaves[0])
        return np.concatenate(leaves).reshape(self.size, *shape) if shape else np.asarray(leaves)


def own(queries: Sequence[Query], place: Place) -> list[Any]:
    """One leaf of the arguments of each query; the others are not made for it."""
    section, name, leaf = place
    if section == "seed":
        return [seed_of(query) for query in queries]
    if section == "weights":
        return [weight_of(query, name) for query in queries]
    values = [getattr(query, section)[name] for query in queries]
    return values if leaf is None else [tree[leaf] for tree in values]


def read(given: Any, place: Place) -> Any:
    """One leaf of the arguments."""
    section, name, leaf = place
    found = given[section]
    if name:
        found = found[name]
    return found if leaf is None else found[leaf]


def together(computation: Any, query: Query, size: int, limit: int, placement: Placement) -> Together:
    """`computation`, traced for `arguments(query)`, compiled for `size` requests like it.

    Raises:
        Unfit: where it calls back into Python, has a step that cannot be mapped, or would take more than
            `limit` bytes.
    """
    closed = computation.jaxpr
    for equation in equations(closed):
        if "callback" in equation.primitive.name:
            raise Unfit(f"it calls back into Python ({equation.primitive.name})")

    leaves = jax.tree_util.tree_leaves_with_path(arguments(query))
    places = [place_of(path) for path, _ in leaves]
    shared = [place[:2] in query.resident for place in places]
    one = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for _, leaf in leaves]
    stacked = [
        leaf if alike else jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype)
        for leaf, alike in zip(one, shared, strict=True)
    ]
    mapped = jax.vmap(jaxpr_as_fun(closed), in_axes=[None if alike else 0 for alike in shared])
    try:
        traced = jax.jit(mapped).trace(*stacked)
    except Exception as error:  # a primitive without a rule may raise anything
        reason = str(error).strip().split("\n")[0]
        raise Unfit(f"a step of it cannot be mapped ({reason})") from error
    needed = cost(traced.jaxpr).peak_bytes
    if needed > limit:
        detail = f"{size} at once would take {scaled(needed, 'B')}, the limit is {scaled(limit, 'B')}"
        raise Unfit(detail, at_any_size=False)
    structure: Any = jax.tree.structure(computation.out_info)
    return Together(
        size,
        traced.lower().compile(),
        tuple(zip(places, shared, strict=True)),
        structure.unflatten,
        placement,
    )


def place_of(path: Any) -> Place:
    """Where a leaf of the arguments lies, from its path in their tree."""
    section, *names = (str(step.key) for step in path)
    return section, names[0] if names else "", names[1] if len(names) > 1 else None
