"""A validated request, split into what can be shared and what cannot.

A `Signature` holds names, shapes and dtypes: it is hashable, and two requests of one signature run the same
compiled program. A `Query` adds the values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nablad.arrays import NAMES
from nablad_models import Model
from nablad_service.resident import Leaf, Leaves, Resident
from nablad_service.specs import ArraySpec, TreeSpec


class Variable(NamedTuple):
    """One entry of `wrt`, as written: an input, all parameters (of all models or of one), or one leaf."""

    key: str
    kind: Literal["input", "params", "leaf"]
    name: str | None = None
    """The input, or the model's name in the program; None for the parameters of all models."""
    leaf: str | None = None


class ModelSignature(NamedTuple):
    """A bound model without its values."""

    name: str
    """Its name in the program."""
    digest: str
    mode: Literal["eval", "train"]
    params: TreeSpec
    state: TreeSpec


@dataclass(frozen=True, slots=True)
class Signature:
    """Everything about a request but its values: the key of plans and compiled programs."""

    kind: Literal["gradient", "evaluate"]
    text: str
    models: tuple[ModelSignature, ...]
    inputs: tuple[tuple[str, ArraySpec | TreeSpec], ...]
    wrt: tuple[Variable, ...]
    terms: tuple[str, ...]
    weighted: bool
    """Whether the loss is the weighted sum of the terms; the weights are values."""
    outputs: tuple[str, ...]
    nesting: str
    """`auto`, `default`, or one nesting for every derivative that has it."""
    dtype: str
    """The program's float type."""
    term_gradients: Literal["none", "norms", "full"] = "none"
    strategies: tuple[tuple[str, str], ...] = ()
    """Strategies that the caller pinned, by operator."""
    examples_at_once: int | None = None
    """Examples that the caller wants to be computed at once; None leaves it to the planner."""
    memory_limit: int | None = None
    """Bytes that the caller allows; the server's own limit holds too."""
    buckets: tuple[int, ...] = ()
    """Numbers of examples that the caller wants programs to be compiled for, ascending."""
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        # Every cache on the way asks for it.
        if not self._hash:
            object.__setattr__(self, "_hash", hash((self.text, self.inputs, self.models, self.wrt)) or 1)
        return self._hash


@dataclass(frozen=True)
class Query:
    """A request that can be planned and run."""

    signature: Signature
    models: Mapping[str, Model]
    inputs: Mapping[str, Leaf | Leaves]
    """Arrays and trees; what stays on the server between calls is `Resident`, here and below."""
    params: Mapping[str, Leaves]
    state: Mapping[str, Leaves]
    weights: Mapping[str, float]
    seed: int = 0
    deadline_ms: float | None = None
    tune: bool = True
    """Whether the call counts as one of many that make its program worth tuning."""
    batch: bool = True
    """Whether the call may be computed together with others."""
    resident: tuple[tuple[str, str], ...] = ()
    """What is not the call's own, by section and name: calls with the same leaves there share them."""

    @classmethod
    def of(cls, signature: Signature, models: Mapping[str, Model], **given: Any) -> Query:
        """A query that knows what of it is resident."""
        query = cls(signature, models, **given)
        resident = tuple(
            (section, name)
            for section, name, leaves in query.values()
            if all(isinstance(leaf, Resident) for leaf in leaves)
        )
        return replace(query, resident=resident)

    def with_values(self, **sections: Mapping[str, Any]) -> Query:
        """The same request with other `inputs`, `params` or `state`, resident where these are."""
        # What `dataclasses.replace` does member by member takes a small call longer than viewing its arrays.
        other = object.__new__(Query)
        other.__dict__.update(self.__dict__, **sections)
        return other

    def shared(self) -> Iterator[Leaf]:
        """What is not the call's own."""
        for section, name in self.resident:
            value = getattr(self, section)[name]
            yield from value.values() if isinstance(value, Mapping) else (value,)

    def values(self) -> Iterator[tuple[str, str, tuple[Leaf, ...]]]:
        """Each value that the program takes: its section of the arguments, its name, its leaves."""
        for section, given in (("inputs", self.inputs), ("params", self.params), ("state", self.state)):
            for name, value in given.items():
                yield section, name, tuple(value.values()) if isinstance(value, Mapping) else (value,)


def on_host(resident: Resident) -> Any:
    """A resident array's own memory: enough for shapes and dtypes."""
    return resident.array


def arguments(query: Query, place: Callable[[Resident], Any] = on_host) -> dict[str, Any]:
    """The values of a query as the compiled program takes them; `place` says where resident ones lie.

    Values enter as arguments, never as constants captured by the function: an ahead-of-time compiled
    program would be called with fewer inputs than it was compiled for.
    """

    def leaf(value: Leaf) -> Any:
        return place(value) if isinstance(value, Resident) else value

    def tree(value: Leaf | Leaves) -> Any:
        if isinstance(value, Mapping):
            return OrderedDict((name, leaf(one)) for name, one in value.items())
        return leaf(value)

    return {
        "inputs": {name: tree(value) for name, value in query.inputs.items()},
        "params": {name: tree(value) for name, value in query.params.items()},
        "state": {name: tree(value) for name, value in query.state.items()},
        "seed": seed_of(query),
        "weights": {name: weight_of(query, name) for name in query.weights},
    }


def seed_of(query: Query) -> np.uint32:
    """A query's seed as the compiled program takes it."""
    return np.uint32(query.seed % 2**32)


def weight_of(query: Query, term: str) -> NDArray[Any]:
    """The weight of a term, in the program's float type."""
    return np.asarray(query.weights[term], query.signature.dtype)


def residents_of(query: Query) -> Iterator[Resident]:
    """What a query names of the arrays that stay; one may come several times."""
    for _, _, leaves in query.values():
        yield from (leaf for leaf in leaves if isinstance(leaf, Resident))


def float_type(arrays: Iterable[Leaf]) -> str:
    """The widest float dtype among `arrays`; float32 where there is none."""
    floats = {array.dtype for array in arrays if array.dtype.kind == "f"}
    return "float32" if not floats else NAMES.get(widest := np.result_type(*floats)) or widest.name
