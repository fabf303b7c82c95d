"""A model whose code is Python on the server, and what all of its kinds share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad_models.batches import common_batch
from nablad_models.model import Output
from nablad_models.python.examples import Example
from nablad_models.shapes import Shape


@dataclass(frozen=True)
class Call:
    """How a model is called, beside its arrays: the common batch axes of its inputs, mode, randomness."""

    batch: tuple[int, ...]
    train: bool
    key: Array | None


class Forward(Protocol):
    """Parameters, state and inputs to the answer and the new state, which matters in train mode only."""

    def __call__(
        self, params: Mapping[str, Array], state: Mapping[str, Array], inputs: Sequence[Array], call: Call, /
    ) -> tuple[Any, Mapping[str, Array]]: ...


@dataclass(frozen=True)
class PythonModel:
    """A model in the operator's Python. Two are equal when their digests are.

    `dataclasses.replace(model, source={"python": "my_models.py:net"})` says where it was found.
    """

    digest: str
    source: dict[str, Any] = field(compare=False)
    input_shapes: Mapping[str, Shape | None] = field(compare=False)
    parameter_shapes: Mapping[str, tuple[int, ...]] = field(compare=False)
    state_shapes: Mapping[str, tuple[int, ...]] = field(compare=False)
    first_params: Callable[[int], Mapping[str, Any]] = field(compare=False, repr=False)
    first_state: Callable[[], Mapping[str, Any]] = field(compare=False, repr=False)
    forward: Forward = field(compare=False, repr=False)

    @property
    def derivative_order(self) -> None:
        """JAX differentiates to any order what is written in it."""

    def initial_params(self, seed: int = 0) -> dict[str, NDArray[Any]]:
        """First parameters, in the dtypes that the code gives them.

        Flax modules and pairs of functions draw them from the seed. An Equinox module and an NNX module have
        theirs already: the same for every seed.

        Raises `ValueError` where one of them is not finite.
        """
        return finite(self.first_params(seed))

    def initial_state(self) -> dict[str, NDArray[Any]]:
        """First state, in its own dtypes."""
        return {name: np.asarray(value) for name, value in self.first_state().items()}

    def apply(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        *inputs: Array,
        train: bool,
        key: Array | None = None,
    ) -> tuple[Output, dict[str, Array]]:
        """The answer and the new state, which is the old one in eval mode.

        Computes in the dtypes of `params` and `inputs`, as far as the code follows them.

        Raises `Refusal("shape_mismatch")` when an input does not end in an example, or when a model with
        state finds no batch in train mode; `TypeError` when the code gives no array.
        """
        call = Call(common_batch(self.input_shapes, inputs), train, key)
        if train and state and not call.batch and None not in self.input_shapes.values():
            raise Refusal(
                "shape_mismatch",
                "this model has state, which a batch updates in train mode; it got one example.",
            )
        answer, new_state = self.forward(params, state, [jnp.asarray(x) for x in inputs], call)
        return checked_answer(answer), dict(new_state if train else state)


def checked_answer(answer: Any) -> Output:
    """An array, or a dict of them; raises `TypeError` for anything else."""
    if isinstance(answer, jax.Array):
        return answer
    if isinstance(answer, Mapping) and answer:
        for name, part in answer.items():
            if not isinstance(name, str) or not isinstance(part, jax.Array):
                raise TypeError(f"a model gives arrays by name; under {name!r} it gives {_kind(part)}")
        return dict(answer)
    raise TypeError(f"a model gives one array, or a dict of arrays by name; this one gives {_kind(answer)}")


def finite(params: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """`params` on the host; raises `ValueError` naming one that holds NaN or infinity."""
    found = {name: np.asarray(value) for name, value in params.items()}
    for name, value in found.items():
        if not np.isfinite(value.astype(np.float64)).all():
            raise ValueError(f"parameter {name} begins with NaN or infinity in it")
    return found


def floats_only(leaves: Mapping[str, Any], what: str = "parameter") -> dict[str, tuple[int, ...]]:
    """The shapes of `leaves`; raises `TypeError` for one that is no float array."""
    shapes = {}
    for name, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{what} {name} is {_kind(leaf) if dtype is None else dtype}; "
                f"{what}s are arrays of floats, what is fixed belongs into the code"
            )
        shapes[name] = tuple(leaf.shape)
    return shapes


def float_type(arrays: Iterable[Any]) -> Any:
    """The widest float dtype among `arrays`, float32 where there is none."""
    found = [jnp.dtype(array.dtype) for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    return max(found, key=lambda dtype: dtype.itemsize, default=jnp.dtype("float32"))


def in_float_type(array: Any, floats: Any) -> Array:
    """`array` in the dtype `floats` where it holds floats: state at rest may have another precision."""
    array = jnp.asarray(array)
    return array.astype(floats) if jnp.issubdtype(array.dtype, jnp.floating) else array


def tried(model: PythonModel, examples: Mapping[str, Example], floats: Any, what: str) -> PythonModel:
    """`model`, traced in both modes with two examples and with one.

    Open sizes cannot be made up: then nothing is tried, and the first call finds out.

    Raises `ValueError` with what the code says about examples of these shapes, `TypeError` for no array.
    """
    if not all(example.known for example in examples.values()):
        return model
    params = {name: jax.ShapeDtypeStruct(shape, floats) for name, shape in model.parameter_shapes.items()}
    for train, batch in ((False, (2,)), (False, ()), (True, (2,))):
        arrays = [example.array(batch, floats) for example in examples.values()]
        key = jax.random.key(0) if train else None

        def apply(params: Any, state: Any, *inputs: Any, train: bool = train, key: Any = key) -> Any:
            return model.apply(params, state, *inputs, train=train, key=key)

        try:
            _, state = jax.eval_shape(apply, params, model.initial_state(), *arrays)
        except Exception as problem:
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(examples, arrays, strict=True))
            kind = TypeError if isinstance(problem, TypeError) else ValueError
            raise kind(
                f"{what} does not work with {shapes}{' in train mode' * train}: {problem}"
            ) from problem
        wrong = [name for name, shape in model.state_shapes.items() if state[name].shape != shape]
        if wrong:
            raise ValueError(f"{what} changes the shape of its state {wrong[0]} in train mode")
    return model


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
