"""A pair of functions, `init(key)` and `apply(params, *inputs)`, as a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from nablad_models.named_leaves import by_name
from nablad_models.python.examples import Example, read_examples
from nablad_models.python.identity import digest_of, written_in
from nablad_models.python.model import Call, PythonModel, float_type, floats_only, tried


def from_functions(
    init: Callable[[Array], Any],
    apply: Callable[..., Any],
    *,
    inputs: Mapping[str, Any] | None = None,
    state: Any = None,
    train: bool = False,
    key: bool = False,
) -> PythonModel:
    """Parameters `init(key)`, any tree of float arrays, and the answer `apply(params, *inputs)`.

    `apply` gets inputs as they are in the program, batch axes and all, and gives one array or a dict of
    arrays. Leaves of the tree go by dotted names: `params["dense"]["w"]` is `dense.w`.

    `inputs` gives one example of each input by name, in the order of the call, as an array or a shape; what
    comes before it counts as batch axes. Without `inputs` the names are those of `apply`'s arguments, and any
    shape will do.

    With `state`, a tree of arrays, it is `apply(params, state, *inputs)`, which gives the answer and the new
    state. `train=True` passes `train=` (a bool), `key=True` passes `key=` (None in eval mode).

    Raises `TypeError` for parameters that are no floats and answers that are no arrays, `ValueError` when
    the functions do not work with the example.
    """
    for function in (init, apply):
        if not callable(function):
            raise TypeError(f"from_functions takes two functions, init and apply; got {function!r}")
    wide = bool(jax.config.read("jax_enable_x64"))
    examples = _unsaid(apply, state is not None) if inputs is None else read_examples(None, inputs)
    what = written_in(apply)

    def first(seed: int) -> Any:
        # As precise as it was where it was written: a server computes in float64 too, and must not widen it.
        with jax.enable_x64(wide):
            return jax.tree.map(jnp.asarray, init(jax.random.key(seed)))

    try:
        drawn = jax.eval_shape(lambda: init(jax.random.key(0)))
    except TypeError as problem:
        raise TypeError(f"{written_in(init)} takes a key and gives a tree of arrays: {problem}") from problem
    structure, leaves = jax.tree.structure(drawn), by_name(drawn)
    if "" in leaves:
        raise TypeError(f"{written_in(init)} gives one array; put it into a dict, which names it")
    states = {} if state is None else by_name(jax.tree.map(jnp.asarray, state))
    state_structure = jax.tree.structure(state)

    def forward(
        params: Mapping[str, Array], state: Mapping[str, Array], inputs: Sequence[Array], call: Call
    ) -> tuple[Any, Mapping[str, Array]]:
        arguments: list[Any] = [jax.tree.unflatten(structure, [params[name] for name in leaves])]
        if states:
            arguments.append(jax.tree.unflatten(state_structure, [state[name] for name in states]))
        asked: dict[str, Any] = {"train": call.train} if train else {}
        if key:
            asked["key"] = call.key
        answer = apply(*arguments, *inputs, **asked)
        if not states:
            return answer, state
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise TypeError(f"{what} has state: it gives (answer, new state)")
        return answer[0], by_name(answer[1])

    model = PythonModel(
        digest=digest_of("functions", init, apply, floats_only(leaves), examples, state, (train, key)),
        source={"python": what},
        input_shapes={name: one.shape for name, one in examples.items()},
        parameter_shapes=floats_only(leaves),
        state_shapes={name: tuple(leaf.shape) for name, leaf in states.items()},
        first_params=lambda seed: by_name(first(seed)),
        first_state=lambda: states,
        forward=forward,
    )
    return tried(model, examples, float_type(leaves.values()), what)


def _unsaid(apply: Callable[..., Any], with_state: bool) -> dict[str, Example]:
    """Inputs of any shape, named as the arguments of `apply` after the parameters (and the state)."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    arguments = inspect.signature(apply).parameters.values()
    names = [one.name for one in arguments if one.kind in positional and one.default is one.empty]
    return read_examples(None, dict.fromkeys(names[1 + with_state :]))
