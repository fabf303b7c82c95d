"""Writing an artifact: a JAX function and its nested vjps as bytes, to be hosted elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from nablad_models.stablehlo.code import check_code
from nablad_models.stablehlo.names import check_input_name
from nablad_models.stablehlo.reading import invalid, read


def export_model(
    apply: Callable[..., Any],
    params: Any,
    inputs: Mapping[str, Any],
    *,
    derivative_order: int = 2,
    platforms: Sequence[str] = ("cpu", "cuda"),
) -> bytes:
    """`apply(params, *inputs)` as an artifact that a nablad server hosts.

    `params` is a dict of float arrays, also nested, or of their shapes and dtypes: only those are kept,
    values travel beside the artifact. `inputs` gives an example of each input by name, in the order of
    `apply`'s arguments, as an array or a `jax.ShapeDtypeStruct`, without batch axes. `apply` takes batches,
    `(batch, *example)`, of any size, and gives an array or a dict of arrays with the batch axis first; wrap
    one that takes a single example as `jax.vmap(apply, in_axes=(None, 0))`.

    `derivative_order` is how many derivatives of the model a program may take in all: 1 for a plain gradient,
    2 for the gradient of a loss with a gradient in it, 3 where the loss has second derivatives, as those of
    most PDEs. The bytes double with each, and so does the time to make them.

    All floats share one dtype, the only one that the artifact computes in.

    Raises `Refusal("invalid_artifact")` for what a server would refuse, among it functions that need LAPACK.
    What JAX cannot export raises JAX's own errors: Python code that needs to know the size of the batch, or a
    `while_loop`, which has no reverse mode.
    """
    for name in inputs:
        check_input_name(name)
    (batch,) = export.symbolic_shape("b")
    examples = [
        {name: jax.ShapeDtypeStruct((batch, *jnp.shape(example)), example.dtype)}
        for name, example in inputs.items()
    ]

    def named(params: Any, *named_inputs: Mapping[str, Any]) -> Any:
        return apply(params, *(x for one in named_inputs for x in one.values()))

    named.__name__ = getattr(apply, "__name__", type(apply).__name__)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), params)
    exported = export.export(jax.jit(named), platforms=platforms)(shapes, *examples)
    try:
        data = bytes(exported.serialize(vjp_order=derivative_order))
    except ImportError as problem:
        raise invalid("writing artifacts needs flatbuffers: pip install flatbuffers") from problem
    check_code(read(data, platforms[0]))
    return data
