"""Training state: one tree with everything that a step changes, and its leaves by path as saves hold them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad_service.training.optimisers import Arrays, Rule, StepValues

TreeT = TypeVar("TreeT")
Saved = Mapping[str, NDArray[Any]]
"""Leaves of a tree by path: `params/net.params[layer_1.weight]`."""
MOST_NAMED = 3
"""Leaves that a refusal lists."""


class TrainingState(NamedTuple):
    """The arrays of a session, on the device; all that is trained has one float type."""

    params: Arrays
    """What is trained, by label."""
    models: Mapping[str, Mapping[str, Any]]
    """State of models, batch statistics say, by the program's names."""
    optimiser: Any
    gradients: Arrays
    """The weighted sum of the gradients since the last step."""
    value: Any
    """Likewise of the losses."""
    weight: Any
    """The sum of the weights."""
    step: Any
    """Steps done; int32."""
    key: Any
    """What random operators draw from; the data of a key, uint32 (2,)."""

    def whole(self) -> TrainingState:
        """As of one that is packed."""
        return self

    def part(self, models: Collection[str]) -> TrainingState:
        """What a step with its only gradient reads, the state of some models: no sums, which are zero."""
        return self._replace(
            models={name: self.models[name] for name in models}, gradients={}, value=None, weight=None
        )

    def rest(self) -> TrainingState:
        """What such a step leaves as it is."""
        return self._replace(params={}, optimiser=None, step=None, key=None)

    def with_rest(self, rest: TrainingState) -> TrainingState:
        """The state of this part and its rest."""
        return self._replace(
            models={**rest.models, **self.models},
            gradients=rest.gradients,
            value=rest.value,
            weight=rest.weight,
        )


def first_state(
    params: Arrays, models: Mapping[str, Mapping[str, Any]], rule: Rule, values: StepValues, seed: Any
) -> TrainingState:
    """The state before the first step. Can be traced.

    Args:
        params: the start values by label, of one float type.
        models: the models' state.
        rule: the optimiser.
        values: of the first step.
        seed: uint32.
    """
    return TrainingState(
        params=dict(params),
        models={name: dict(leaves) for name, leaves in models.items()},
        optimiser=rule.init(params, values),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        **no_sums(params),
    )


def no_sums(params: Arrays) -> dict[str, Any]:
    """`gradients`, `value` and `weight` of a state before any gradient. Can be traced."""
    zero = jnp.zeros((), jnp.result_type(*params.values()))
    gradients = {label: jnp.zeros_like(one) for label, one in params.items()}
    return {"gradients": gradients, "value": zero, "weight": zero}


def size_of(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their specs."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def on_host(tree: Any) -> dict[str, NDArray[Any]]:
    """The leaves of a tree by path, copied to the host's memory."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.array(leaf) for path, leaf in leaves}


def on_device(saved: Saved, like: TreeT, what: str) -> TreeT:
    """The tree whose leaves were saved, on the device.

    Args:
        saved: leaves by path.
        like: a tree of this structure, of arrays or of their specs.
        what: whose leaves they are, for the refusal.

    Raises:
        Refusal: `unfit_save` with the first differences, where paths, shapes or dtypes are others.
    """
    expected = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    differences = [
        *(f"it has no '{path}'" for path in expected if path not in saved),
        *(f"its '{path}' has no place here" for path in saved if path not in expected),
        *(
            f"its '{path}' is {_shown(saved[path])}, here it is {_shown(leaf)}"
            for path, leaf in expected.items()
            if path in saved and _shown(saved[path]) != _shown(leaf)
        ),
    ]
    if differences:
        more = len(differences) - MOST_NAMED
        listed = "; ".join(differences[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise Refusal("unfit_save", f"{what} does not fit: {listed}")
    return _mapped(like, lambda path, leaf: jnp.asarray(saved[path]))


def _mapped(tree: TreeT, change: Callable[[str, Any], Any]) -> TreeT:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(_name(path), leaf), tree)


def _name(path: tuple[Any, ...]) -> str:
    """`optimiser/1/0/mu/net.params[layer_1.weight]`: members by name, items by number."""
    steps = (getattr(step, "name", getattr(step, "key", getattr(step, "idx", None))) for step in path)
    return "/".join(map(str, steps))


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype.name}{list(leaf.shape)}"
