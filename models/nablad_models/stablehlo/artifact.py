"""What the bytes of `jax.export` say about themselves, read and checked: an artifact, ready to be called.

The order of its operands is that of the exported function's arguments, `f(params, *inputs)`, with the
parameters in JAX's order (sorted by name).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import export

from nablad_models.shapes import Shape
from nablad_models.stablehlo.names import Names


@dataclass(frozen=True)
class Order:
    """One function of the chain: the model (order 0), or the vjp of the order before."""

    exported: export.Exported
    batched_operands: tuple[bool, ...]
    """Which operands have the batch axis first."""
    batched_answers: tuple[bool, ...]
    float_operands: tuple[bool, ...]

    def __call__(self, *operands: Any) -> list[Any]:
        """Flat answers to flat operands; the empty cotangents (float0) of whole numbers are left out."""
        full = [aval for aval in self.exported.in_avals if not is_empty(aval)]
        # An empty cotangent is shaped like the whole numbers it belongs to: those are among the operands.
        sizes = {str(aval.shape): x.shape for aval, x in zip(full, operands, strict=True)}
        given = iter(operands)
        flat = [
            np.zeros(sizes[str(aval.shape)], aval.dtype) if is_empty(aval) else next(given)
            for aval in self.exported.in_avals
        ]
        args, kwargs = jax.tree.unflatten(self.exported.in_tree, flat)
        answers = jax.tree.leaves(self.exported.call(*args, **kwargs))
        return [y for y, aval in zip(answers, self.exported.out_avals, strict=True) if not is_empty(aval)]


@dataclass(frozen=True)
class Artifact:
    """A function and its nested vjps. Two are equal when their bytes are, and what was found about them."""

    digest: str
    orders: tuple[Order, ...] = field(compare=False, repr=False)
    names: Names = field(compare=False)
    dtype: str = field(compare=False)
    """The one float type of parameters and inputs."""
    batch: str | None = field(compare=False)
    """The name of the batch axis, None where there is none."""

    @property
    def order(self) -> int:
        """How many derivatives the bytes hold."""
        return len(self.orders) - 1

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters."""
        avals = self.orders[0].exported.in_avals
        return {name: tuple(avals[at].shape) for name, at in self.names.parameters.items()}

    def input_shapes(self) -> dict[str, Shape]:
        """Shapes of one example of each input, without the batch axis."""
        first = self.orders[0]
        return {
            name: tuple(
                size if isinstance(size, int) else None
                for size in first.exported.in_avals[at].shape[first.batched_operands[at] :]
            )
            for name, at in self.names.inputs.items()
        }

    def out_of_derivatives(self) -> str:
        """The sentence for one derivative too many."""
        return (
            f"this takes derivative {self.order + 1} of a StableHLO artifact that holds {self.order}; "
            f"export it with a higher order, as in export_model(..., derivative_order={self.order + 1}) or "
            f"exported.serialize(vjp_order={self.order + 1})"
        )


def is_empty(aval: Any) -> bool:
    """Whether this is the cotangent of whole numbers, which holds nothing."""
    return bool(aval.dtype == jax.dtypes.float0)
