"""A validated request, split into what can be shared and what cannot.

A `Signature` holds names, shapes and dtypes: it is hashable, and two requests of one signature run the same
compiled program. A `Query` adds the values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nablad.arrays import NAMES
from nablad_models import Model

Arrays = Mapping[str, NDArray[Any]]


# Tuples where nothing more is needed: signatures are hashed and compared at every call.
class ArraySpec(NamedTuple):
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: NDArray[Any]) -> ArraySpec:
        """The spec of `array`."""
        return cls(array.shape, NAMES.get(array.dtype) or array.dtype.name)


TreeSpec = tuple[tuple[str, ArraySpec], ...]


def tree_spec(tree: Arrays) -> TreeSpec:
    """Specs of the leaves, in order."""
    return tuple((name, ArraySpec.of(leaf)) for name, leaf in tree.items())


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
    inputs: Mapping[str, NDArray[Any] | Arrays]
    params: Mapping[str, Arrays]
    state: Mapping[str, Arrays]
    weights: Mapping[str, float]
    seed: int = 0
    deadline_ms: float | None = None
    tune: bool = True
    """Whether the call counts as one of many that make its program worth tuning."""
    batch: bool = True
    """Whether the call may be computed together with others."""
    resident: tuple[tuple[str, str], ...] = ()
    """What is not the call's own: (section of the arguments, name). Others that bring the very same objects
    there share them."""


def arguments(query: Query) -> dict[str, Any]:
    """The values of a query as the compiled program takes them.

    Values enter as arguments, never as constants captured by the function: an ahead-of-time compiled
    program would be called with fewer inputs than it was compiled for.
    """

    def tree(value: Any) -> Any:
        return value if isinstance(value, np.ndarray) else OrderedDict(value)

    return {
        "inputs": {name: tree(value) for name, value in query.inputs.items()},
        "params": {name: tree(value) for name, value in query.params.items()},
        "state": {name: tree(value) for name, value in query.state.items()},
        "seed": np.uint32(query.seed % 2**32),
        "weights": {
            name: np.asarray(weight, query.signature.dtype) for name, weight in query.weights.items()
        },
    }


def float_type(arrays: list[NDArray[Any]]) -> str:
    """The widest float dtype among `arrays`; float32 where there is none."""
    floats = [array.dtype for array in arrays if array.dtype.kind == "f"]
    return "float32" if not floats else NAMES.get(widest := np.result_type(*floats)) or widest.name
