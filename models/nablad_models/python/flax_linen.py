"""A Linen module: parameters and collections are a tree outside of it."""

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
from nablad_models.python.model import Call, PythonModel, float_type, floats_only, in_float_type, tried


def from_linen(module: Any, examples: Mapping[str, Example], seed: int) -> PythonModel:
    """See `from_flax`."""
    wide = bool(jax.config.read("jax_enable_x64"))
    what = written_in(module)

    def variables(seed: int) -> dict[str, Any]:
        # As precise as it was where it was written: a server computes in float64 too, and must not widen it.
        with jax.enable_x64(wide):
            arrays = [one.array((1,), jnp.float32) for one in examples.values()]
            zeros = [jnp.zeros(array.shape, array.dtype) for array in arrays]
            return dict(module.init(jax.random.key(seed), *zeros, **mode_arguments(module, False)))

    try:
        shapes = jax.eval_shape(lambda: variables(seed))
    except Exception as problem:
        said = ", ".join(f"{name} {one.shape}" for name, one in examples.items())
        raise ValueError(f"{what} does not begin with examples {said}: {problem}") from problem
    params, collections = shapes.pop("params", {}), shapes
    leaves, states = by_name(params), by_name(collections)

    def rebuilt(tree: Any, arrays: Mapping[str, Array], names: Mapping[str, Any]) -> Any:
        return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in names])

    def forward(
        params_by_name: Mapping[str, Array], state: Mapping[str, Array], inputs: Sequence[Array], call: Call
    ) -> tuple[Any, Mapping[str, Array]]:
        floats = float_type([*params_by_name.values(), *inputs])
        state_now = {name: in_float_type(value, floats) for name, value in state.items()}
        given = {"params": rebuilt(params, params_by_name, leaves), **rebuilt(collections, state_now, states)}
        # Streams of any name fall back to that of "params".
        rngs = None if call.key is None else {"params": call.key, "dropout": call.key}
        mutable = [*collections] if call.train and collections else False

        def run(arrays: Sequence[Array]) -> tuple[Any, Any]:
            found = module.apply(
                given, *arrays, rngs=rngs, mutable=mutable, **mode_arguments(module, call.train)
            )
            return found if mutable else (found, collections)

        answer, new = batched(run, examples, inputs, call)
        if not mutable:
            return answer, state
        # A collection that the module left alone comes back as it was.
        updated = by_name({**rebuilt(collections, state_now, states), **new})
        return answer, {name: updated[name].astype(state[name].dtype) for name in states}

    def first_state() -> Mapping[str, Any]:
        found = variables(seed)
        found.pop("params", None)
        return by_name(found)

    model = PythonModel(
        digest=digest_of("linen", module, floats_only(leaves), examples, [*states]),
        source={"python": what},
        input_shapes={name: one.shape for name, one in examples.items()},
        parameter_shapes=floats_only(leaves),
        state_shapes={name: tuple(leaf.shape) for name, leaf in states.items()},
        first_params=lambda asked: by_name(variables(seed + asked).get("params", {})),
        first_state=first_state,
        forward=forward,
    )
    return tried(model, examples, float_type(leaves.values()), what)
