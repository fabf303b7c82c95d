"""An artifact as a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad_models.batches import common_batch, one_batch_axis, unfolded
from nablad_models.model import Output
from nablad_models.shapes import Shape, show
from nablad_models.stablehlo.artifact import Artifact
from nablad_models.stablehlo.call import call
from nablad_models.stablehlo.examination import SECONDS, examine
from nablad_models.stablehlo.reading import invalid, read


@dataclass(frozen=True)
class ExportedModel:
    """A function in StableHLO with its nested vjps. Two are equal when their bytes are."""

    artifact: Artifact

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return self.artifact.digest

    @property
    def source(self) -> dict[str, Any]:
        """Digest, name of the function, float type, platforms, whether examples are folded into one call."""
        exported = self.artifact.orders[0].exported
        return {
            "stablehlo": {
                "sha256": self.digest,
                "function": exported.fun_name,
                "dtype": self.artifact.dtype,
                "platforms": list(exported.platforms),
            }
        }

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """Shapes of one example, without the batch axis of the export."""
        return self.artifact.input_shapes()

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, sorted as JAX sorts them."""
        return self.artifact.parameter_shapes()

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Artifacts have no state."""
        return {}

    @property
    def derivative_order(self) -> int:
        """How many nested vjps the bytes hold."""
        return self.artifact.order

    def initial_params(self, seed: int = 0) -> dict[str, NDArray[Any]]:
        """Nothing where there are no parameters; an artifact holds no values of them.

        Raises `Refusal("invalid_params")` where there are: they come with the artifact.
        """
        names = list(self.parameter_shapes)
        if names:
            listed = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
            raise Refusal(
                "invalid_params",
                f"an artifact holds no values of parameters: send params with it ({listed}).",
            )
        return {}

    def initial_state(self) -> dict[str, NDArray[Any]]:
        """Nothing."""
        return {}

    def apply(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        *inputs: Array,
        train: bool,
        key: Array | None = None,
    ) -> tuple[Output, dict[str, Array]]:
        """The answer; `train` and `key` change nothing.

        An input has shape `(*batch, *example)`; the batch axes of all broadcast, and are one axis to the
        artifact. Where it was exported without one, examples go through it one after the other. Parameters
        and float inputs are of the exported float type; whole numbers are cast. Differentiable in reverse, to
        `derivative_order`.

        Raises `Refusal("shape_mismatch")` and `Refusal("wrong_dtype")` when something does not fit, and
        `Refusal("limit")` while a derivative too many is traced.
        """
        del train, key, state
        names, first = self.artifact.names, self.artifact.orders[0]
        operands: list[Any] = [None] * len(first.batched_operands)
        for name, at in names.parameters.items():
            operands[at] = self._checked(f"parameter {name}", params[name], at)
        for (name, at), x in zip(names.inputs.items(), inputs, strict=True):
            operands[at] = self._checked(f"input {name}", x, at)
        batch = common_batch(self.input_shapes, inputs)
        try:
            run = self._in_one_call if self.artifact.batch else self._one_by_one
            answers = run(operands, batch)
        except ValueError as problem:
            # Open sizes that do not agree with each other.
            raise Refusal(
                "shape_mismatch", f"the artifact does not take this: {_first_line(problem)}"
            ) from problem
        if "" in names.answers:
            return answers[0], {}
        return {name: answers[at] for name, at in names.answers.items()}, {}

    def _in_one_call(self, operands: list[Any], batch: tuple[int, ...]) -> list[Array]:
        first = self.artifact.orders[0]
        if 0 in batch:
            raise Refusal("shape_mismatch", "a StableHLO artifact takes at least one example, got none.")
        for (name, shape), at in zip(
            self.input_shapes.items(), self.artifact.names.inputs.values(), strict=True
        ):
            if first.batched_operands[at]:
                operands[at] = one_batch_axis(operands[at], shape, batch)
            elif operands[at].ndim > len(shape):
                raise Refusal(
                    "shape_mismatch",
                    f"input {name} was exported without a batch axis: all examples share one of "
                    f"shape {show(shape)}, got {show(operands[at].shape)}.",
                )
        answers = call(self.artifact, operands)
        return [unfolded(y, batch) if batch else y[0] for y in answers]

    def _one_by_one(self, operands: list[Any], batch: tuple[int, ...]) -> list[Array]:
        axes: list[int | None] = [None] * len(operands)
        for shape, at in zip(self.input_shapes.values(), self.artifact.names.inputs.values(), strict=True):
            if operands[at].ndim > len(shape):
                operands[at], axes[at] = one_batch_axis(operands[at], shape, batch), 0
        run = partial(call, self.artifact)
        if not batch:
            return run(operands)
        return [unfolded(y, batch) for y in jax.vmap(run, in_axes=(axes,))(operands)]

    def _checked(self, what: str, array: Array, at: int) -> Array:
        """`array` in the dtype of operand `at`: whole numbers are cast, floats are not."""
        wanted = self.artifact.orders[0].exported.in_avals[at].dtype
        if array.dtype == wanted:
            return array
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array.astype(wanted)
        if str(wanted) != self.artifact.dtype:
            raise Refusal("wrong_dtype", f"{what} of the artifact is {wanted}, got {array.dtype}.")
        raise Refusal(
            "wrong_dtype",
            f"the artifact computes in {wanted}, and {what} is {array.dtype} in this program: "
            f"send all inputs and parameters in {wanted}, or export the model in {array.dtype}.",
        )


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0]


def load_exported(data: bytes, *, max_bytes: int, seconds: float = SECONDS) -> ExportedModel:
    """The model in the bytes that `jax.export` serializes, with the vjps in them.

    The bytes are tried in a process of their own first, which takes 2 seconds and the time to compile the
    model and each vjp for the CPU: start this off the event loop. No custom call passes, so an artifact can
    compute and nothing else; it can still compute for long.

    Raises `Refusal("invalid_artifact")` with what is wrong: too large, torn, for another platform or more
    than one device, from a newer JAX, with side effects, with custom calls, or not an `f(params, *inputs)`.
    """
    if len(data) > max_bytes:
        raise invalid(f"the artifact has {len(data)} bytes, at most {max_bytes} are taken")
    examine(bytes(data), seconds)
    return ExportedModel(read(bytes(data)))
