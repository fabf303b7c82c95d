"""An NNX module: an object that holds its own variables, split into a graph and its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from nablad_models.named_leaves import by_name
from nablad_models.python.examples import Example
from nablad_models.python.flax_batches import batched
from nablad_models.python.flax_module import mode_arguments
from nablad_models.python.identity import digest_of, written_in
from nablad_models.python.model import (
    Call,
    PythonModel,
    finite,
    float_type,
    floats_only,
    in_float_type,
    tried,
)


def from_nnx(nnx: Any, module: Any, examples: Mapping[str, Example]) -> PythonModel:
    """See `from_flax`; `nnx` is the module `flax.nnx`."""
    what = written_in(module)
    graph, params, randomness, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    leaves, states = by_name(nnx.to_pure_dict(params)), by_name(nnx.to_pure_dict(rest))

    def forward(
        params_by_name: Mapping[str, Array], state: Mapping[str, Array], inputs: Sequence[Array], call: Call
    ) -> tuple[Any, Mapping[str, Array]]:
        floats = float_type([*params_by_name.values(), *inputs])
        state_now = [in_float_type(state[name], floats) for name in states]
        ours = nnx.merge(
            graph,
            jax.tree.unflatten(jax.tree.structure(params), [params_by_name[name] for name in leaves]),
            _drawn_from(call.key, randomness),
            jax.tree.unflatten(jax.tree.structure(rest), state_now),
        )
        ours.train() if call.train else ours.eval()

        def run(arrays: Sequence[Array]) -> tuple[Any, Any]:
            answer = ours(*arrays, **mode_arguments(module, call.train))
            return answer, nnx.to_pure_dict(nnx.split(ours, nnx.Param, nnx.RngState, ...)[3])

        answer, new = batched(run, examples, inputs, call)
        updated = by_name(new)
        return answer, {name: updated[name].astype(state[name].dtype) for name in states}

    model = PythonModel(
        digest=digest_of("nnx", type(module), str(graph), floats_only(leaves), examples, [*states]),
        source={"python": what},
        input_shapes={name: one.shape for name, one in examples.items()},
        parameter_shapes=floats_only(leaves),
        state_shapes={name: tuple(jnp.shape(leaf)) for name, leaf in states.items()},
        first_params=lambda seed: leaves,
        first_state=lambda: states,
        forward=forward,
    )
    finite(leaves)
    return tried(model, examples, float_type(leaves.values()), what)


def _drawn_from(key: Array | None, randomness: Any) -> Any:
    """The module's streams with keys that come from `key`, each its own."""
    if key is None:
        return randomness
    typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    flat, structure = jax.tree.flatten(randomness)
    keys = [
        jax.random.fold_in(typed, place) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for place, leaf in enumerate(flat)
    ]
    return jax.tree.unflatten(structure, keys)
