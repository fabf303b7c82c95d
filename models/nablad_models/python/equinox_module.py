"""An Equinox module as a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from nablad_models.batches import one_batch_axis, unfolded
from nablad_models.named_leaves import by_name, dotted
from nablad_models.python.examples import read_examples
from nablad_models.python.identity import digest_of, written_in
from nablad_models.python.model import (
    Call,
    Forward,
    PythonModel,
    finite,
    float_type,
    floats_only,
    in_float_type,
    tried,
)
from nablad_models.shapes import Shape

BATCH_AXIS = "batch"
"""The name that layers like BatchNorm know the batch by."""


def from_equinox(
    module: Any,
    *,
    example: Any = None,
    inputs: Mapping[str, Any] | None = None,
    state: eqx.nn.State | None = None,
) -> PythonModel:
    """A module that is written for one example, `module(x)`; batch axes are mapped.

    `example` is one example of the only input, called x in programs; `inputs` names several, in the order of
    the call. Either gives arrays or shapes.

    Parameters are the module's inexact JAX arrays, under the dotted names of their places: `layers.0.weight`.
    All else, NumPy arrays too, is part of the code. A module whose call takes `key` gets one in train mode.
    Train and eval mode are `eqx.nn.inference_mode` off and on.

    `state` comes from `eqx.nn.make_with_state`; then `module(x, state)` gives answer and state, and layers
    find all batch axes, as one, under `axis_name="batch"`.

    The first parameters are those that the module has, for every seed.

    Raises `TypeError` and `ValueError` when the module does not work with the example, gives no array, or
    holds NaN.
    """
    if not isinstance(module, eqx.Module) or not callable(module):
        raise TypeError(f"from_equinox takes an Equinox module that can be called, got {module!r}")
    examples = read_examples(example, inputs)
    indices = _indices(module)
    if bool(indices) != (state is not None):
        how = "net, state = eqx.nn.make_with_state(Net)(...); from_equinox(net, state=state, ...)"
        raise ValueError(f"the module {'has' if indices else 'has no'} state; {how}")

    params, rest = eqx.partition(module, eqx.is_inexact_array)
    leaves = by_name(params)
    shapes = {name: one.shape for name, one in examples.items()}
    states = {} if state is None else _named(state, indices)
    one_example = _one_example(params, rest)
    what = written_in(module)
    model = PythonModel(
        digest=digest_of("equinox", rest, floats_only(leaves), examples, [*states]),
        source={"python": what},
        input_shapes=shapes,
        parameter_shapes=floats_only(leaves),
        state_shapes={name: tuple(jnp.shape(leaf)) for name, leaf in states.items()},
        first_params=lambda seed: leaves,
        first_state=lambda: states,
        forward=_mapped(one_example, shapes)
        if state is None
        else _with_state(one_example, shapes, state, indices),
    )
    finite(leaves)
    return tried(model, examples, float_type(leaves.values()), what)


def _one_example(params: Any, rest: Any) -> Any:
    """`module(*arguments, key)` with the parameters by name, in train or eval mode."""
    structure = jax.tree.structure(params)
    key_taken = inspect.signature(rest.__call__).parameters.get("key")

    def run(leaves: Mapping[str, Array], arguments: Sequence[Any], key: Array | None, train: bool) -> Any:
        module = eqx.combine(jax.tree.unflatten(structure, list(leaves.values())), rest)
        module = eqx.nn.inference_mode(module, value=not train)
        if key_taken is None:
            return module(*arguments)
        if key is None and key_taken.default is inspect.Parameter.empty:
            key = jax.random.key(0)  # in eval mode nothing is drawn
        return module(*arguments, key=key)

    names = [*by_name(params)]
    return lambda leaves, *how: run({name: leaves[name] for name in names}, *how)


def _mapped(one_example: Any, shapes: Mapping[str, Shape | None]) -> Forward:
    """A stateless module. Maps are nested, one a batch axis: the traced computation shows which is which."""

    def forward(
        params: Mapping[str, Array], state: Mapping[str, Array], inputs: Sequence[Array], call: Call
    ) -> tuple[Any, Mapping[str, Array]]:
        arrays, axes = [], []
        for shape, x in zip(shapes.values(), inputs, strict=True):
            alone = shape is None or x.ndim == len(shape)
            arrays.append(
                x if alone else jnp.broadcast_to(x, (*call.batch, *x.shape[x.ndim - len(shape or ()) :]))
            )
            axes.append(None if alone else 0)

        def mapped(key: Array | None, *examples: Array) -> Any:
            return one_example(params, examples, key, call.train)

        for _ in call.batch:
            mapped = jax.vmap(mapped, in_axes=(None if call.key is None else 0, *axes))
        return mapped(_keys(call), *arrays), state

    return forward


def _with_state(
    one_example: Any, shapes: Mapping[str, Shape | None], first: eqx.nn.State, indices: Mapping[str, Any]
) -> Forward:
    """A module with state. All batch axes are one, so that there is one mean over them."""
    flat_first, structure = jax.tree.flatten(first)
    # Which leaf of the flat state goes by which name: ask for the places by the indices of the module.
    places = _named(jax.tree.unflatten(structure, range(len(flat_first))), indices)

    def forward(
        params: Mapping[str, Array], state: Mapping[str, Array], inputs: Sequence[Array], call: Call
    ) -> tuple[Any, Mapping[str, Array]]:
        batch = call.batch or (1,)
        floats = float_type([*params.values(), *inputs])
        flat = list(flat_first)
        for name, place in places.items():
            flat[place] = in_float_type(state[name], floats)
        arrays = [
            one_batch_axis(x, shape or (), batch) for x, shape in zip(inputs, shapes.values(), strict=True)
        ]

        def one(key: Array | None, tree: eqx.nn.State, *examples: Array) -> Any:
            return one_example(params, (*examples, tree), key, call.train)

        axes = (None if call.key is None else 0, None, *(0 for _ in arrays))
        keys = None if call.key is None else jax.random.split(call.key, arrays[0].shape[0])
        mapped = jax.vmap(one, in_axes=axes, out_axes=(0, None), axis_name=BATCH_AXIS)
        answer, new = mapped(keys, jax.tree.unflatten(structure, flat), *arrays)
        new_flat = jax.tree.leaves(new)
        new_state = {name: new_flat[place].astype(state[name].dtype) for name, place in places.items()}
        return jax.tree.map(lambda y: unfolded(y, call.batch) if call.batch else y[0], answer), new_state

    return forward


def _keys(call: Call) -> Array | None:
    """A key an example."""
    if call.key is None or not call.batch:
        return call.key
    return jax.random.split(call.key, call.batch)


def _indices(module: Any) -> dict[str, eqx.nn.StateIndex[Any]]:
    """What in the module points into the state, by its place there."""
    found = jax.tree_util.tree_leaves_with_path(
        module, is_leaf=lambda leaf: isinstance(leaf, eqx.nn.StateIndex)
    )
    return {dotted(path): leaf for path, leaf in found if isinstance(leaf, eqx.nn.StateIndex)}


def _named(state: eqx.nn.State, indices: Mapping[str, Any]) -> dict[str, Any]:
    return by_name({name: state.get(index) for name, index in indices.items()})
