"""What the operator says about inputs: `example=` for one, `inputs=` for several, by name."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from nablad_models.shapes import Shape

RESERVED = ("params", "mode")
"""What a call in the loss language takes beside inputs."""

HOW = 'say the shape of one example, as in example=jnp.zeros(2), or inputs={"x": (2,), "t": ()}'


@dataclass(frozen=True)
class Example:
    """Shape and dtype of one example; None for a shape that is not said, and for any float type."""

    shape: Shape | None
    dtype: Any = None

    def array(self, batch: tuple[int, ...], floats: Any) -> jax.ShapeDtypeStruct:
        """A batch of such examples, floats in the dtype `floats`; the shape must be known."""
        assert self.shape is not None
        sizes = [size for size in self.shape if size is not None]
        return jax.ShapeDtypeStruct((*batch, *sizes), floats if self.dtype is None else self.dtype)

    @property
    def known(self) -> bool:
        """Whether every size is."""
        return self.shape is not None and None not in self.shape


def read_examples(example: Any, inputs: Mapping[str, Any] | None) -> dict[str, Example]:
    """Inputs by name, in order.

    A value is an array, anything else with shape and dtype, a shape (sizes may be None), or None. Whole
    numbers are told by the dtype of an array; a shape stands for floats.

    Raises `ValueError` and `TypeError` that show how to say it.
    """
    if (example is None) == (inputs is None):
        raise ValueError(f"{HOW}{'' if example is None else ', not both'}")
    given = {"x": example} if inputs is None else dict(inputs)
    if not given:
        raise ValueError(f"a model has at least one input; {HOW}")
    return {_name(name): _read(name, value) for name, value in given.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
        raise ValueError(
            f"{name!r} cannot be the name of an input: a program could not write model({name}=...)"
        )
    return name


def _read(name: str, value: Any) -> Example:
    if value is None:
        return Example(None)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        shape, dtype = tuple(value.shape), np.dtype(value.dtype)
        return Example(shape, None if np.issubdtype(dtype, np.floating) else dtype)
    if isinstance(value, tuple | list) and all(
        size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0) for size in value
    ):
        return Example(tuple(value))
    raise TypeError(f"input '{name}' is given as {value!r}; {HOW}")
