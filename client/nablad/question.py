"""What a program is asked about, and the request that it becomes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nablad.arrays import Encoding, encode_array
from nablad.halves import Floats
from nablad.handles import Handle
from nablad.tracing import trace

Loss: TypeAlias = "str | Callable[..., Any]"
# Arrays, numbers, lists, handles, or mappings of them; a dict literal of several kinds is typed as one of
# objects.
Inputs: TypeAlias = "Mapping[str, object]"
Terms: TypeAlias = "Sequence[str] | Mapping[str, float]"
Models: TypeAlias = "Mapping[str, str | Mapping[str, Any]]"
Tree: TypeAlias = "Mapping[str, ArrayLike | Handle] | Handle"
Encode: TypeAlias = "Callable[[str, NDArray[Any]], Any]"
"""An array's travelling form, given its place in the request and itself."""


def plainly(encoding: Encoding, floats: Floats | None = None) -> Encode:
    """Every array itself, wherever it stands."""
    return lambda place, array: encode_array(array, encoding, floats)


@dataclass(frozen=True)
class Question:
    """What a program is asked about: models, inputs and how to compute."""

    inputs: Inputs
    model: str | None = None
    models: Models | None = None
    params: Tree | Mapping[str, Tree] | None = None
    state: Tree | Mapping[str, Tree] | None = None
    mode: str | None = None
    nesting: str = "auto"
    seed: int = 0
    deadline_ms: float | None = None
    strategies: Mapping[str, str] | None = None
    tune: bool = True
    examples_at_once: int | None = None
    memory_limit: int | None = None
    batch: bool = True
    buckets: Sequence[int] = ()

    def members(self, member: str, program: Loss, encode: Encode) -> dict[str, Any]:
        """The members of a request about `program`, which is its `member`."""
        models = self.bindings(encode)
        text, inputs = written(program, self.inputs, list(models))
        return {
            member: text,
            "models": models,
            "inputs": {name: sent(f"inputs.{name}", value, encode) for name, value in inputs.items()},
            "nesting": self.nesting,
            "strategies": dict(self.strategies or {}),
            "tune": self.tune,
            "examples_at_once": self.examples_at_once,
            "memory_limit": self.memory_limit,
            "seed": self.seed,
            "deadline_ms": self.deadline_ms,
            "batch": self.batch,
            "buckets": list(self.buckets),
        }

    def bindings(self, encode: Encode) -> dict[str, Any]:
        """`models` of the request: `model="net"` binds the hosted model `net` to the name `model`."""
        if self.model is not None and self.models is not None:
            raise ValueError("give model= for one model or models= for several, not both")
        given = self.models if self.models is not None else {"model": self.model} if self.model else {}
        bindings: dict[str, Any] = {}
        for name, bound in given.items():
            binding: dict[str, Any] = {"name": bound} if isinstance(bound, str) else dict(bound)
            for part, trees in (("params", self.params), ("state", self.state)):
                tree = _tree_for(name, trees, len(given))
                if tree is not None:
                    binding[part] = tree
                if binding.get(part) is not None:
                    binding[part] = sent(f"{name}.{part}", binding[part], encode)
            if self.mode is not None:
                binding.setdefault("mode", self.mode)
            bindings[name] = binding
        if (self.params is not None or self.mode is not None) and not bindings:
            raise ValueError("params= and mode= belong to a model: give model= or models= too")
        return bindings


def written(
    program: Loss, inputs: Inputs, models: Sequence[str], beside: Inputs = MappingProxyType({})
) -> tuple[str, dict[str, Any]]:
    """A program's text, and its inputs with the constants of a traced function.

    `beside` are inputs that the server has already, or draws itself.
    """
    if not callable(program):
        # Programs in triple quotes are indented like the code around them; lines keep their numbers.
        return textwrap.dedent(program), dict(inputs)
    known = {name: _stand_in(value) for name, value in {**beside, **inputs}.items()}
    traced = trace(program, inputs=known, models=models)
    return traced.text, {**inputs, **_like_inputs(traced.constants, known)}


def sent(place: str, value: Any, encode: Encode) -> Any:
    """A value's travelling form; plain numbers and lists go without a dtype and take the program's.

    NumPy's scalars are arrays without axes, `np.float64` too, which is a `float` by inheritance.
    """
    if isinstance(value, Handle):
        return {"handle": value.handle}
    if isinstance(value, Mapping):
        return {str(name): sent(f"{place}.{name}", leaf, encode) for name, leaf in value.items()}
    if isinstance(value, bool | int | float | list | tuple) and not _has_dtype(value):
        return value
    return encode(place, np.asarray(value))


def without_data(body: Any) -> Any:
    """A body whose arrays say only what they are: enough to compile for them."""
    if not isinstance(body, Mapping):
        return body
    if set(body) == {"dtype", "shape", "data"}:
        return {"dtype": body["dtype"], "shape": body["shape"]}
    return {name: without_data(value) for name, value in body.items()}


def _has_dtype(value: Any) -> bool:
    """Whether `value` is NumPy's, or a list with something of NumPy's in it."""
    if isinstance(value, list | tuple):
        return any(_has_dtype(item) for item in value)
    return isinstance(value, np.ndarray | np.generic)


def _stand_in(value: Any) -> Any:
    """What tracing may look at in place of what the server keeps."""
    if isinstance(value, Handle):
        return value.stand_in()
    if isinstance(value, Mapping):
        return {name: _stand_in(leaf) for name, leaf in value.items()}
    return value


def _like_inputs(constants: Mapping[str, NDArray[Any]], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Constants of a traced function in the float type of the inputs.

    NumPy makes float64 of nearly everything; a constant must not turn a float32 loss into a float64 one.
    Without float arrays among the inputs it goes as plain numbers, which take the parameters' type.
    """
    leaves = [leaf for value in inputs.values() for leaf in _leaves(value)]
    floats = [leaf.dtype for leaf in leaves if isinstance(leaf, np.ndarray | np.floating)]
    floats = [dtype for dtype in floats if dtype.kind == "f"]

    def like(constant: NDArray[Any]) -> Any:
        if constant.dtype.kind != "f":
            return constant
        return constant.astype(np.result_type(*floats)) if floats else constant.tolist()

    return {name: like(constant) for name, constant in constants.items()}


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _tree_for(name: str, trees: Any, count: int) -> Any:
    """Parameters for one binding: a flat tree when there is one model, else trees by name."""
    if trees is None:
        return None
    if not isinstance(trees, Handle) and trees and all(_is_tree(value) for value in trees.values()):
        return trees.get(name)
    if count != 1:
        raise ValueError("several models are bound: give params={'u': {...}, 'v': {...}}")
    return trees


def _is_tree(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, Handle) and value.tree is not None)
