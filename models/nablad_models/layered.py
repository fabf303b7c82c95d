"""An architecture in JSON as a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax import Array
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad_models.architecture import read_layers
from nablad_models.chain import DoesNotChain
from nablad_models.layer import Call, Layer
from nablad_models.leaves import Leaf, draw
from nablad_models.presets import expand
from nablad_models.reading import LARGEST, MOST_AXES, Unreadable, check_extent, shown, size, unknown
from nablad_models.shapes import Shape, all_fit, show

KEYS = ("layers", "input")


@dataclass(frozen=True)
class Layered:
    """Layers in JSON, ready to be applied. Two are equal when their architectures are."""

    digest: str
    """SHA-256 of the architecture in normal form: the identity for caches."""
    architecture: dict[str, Any] = field(compare=False)
    """The JSON in normal form, with every default written out; building it again gives the same model."""
    example_shape: Shape = field(compare=False)
    """The shape of one example, `None` where any size will do; axes before it are batch axes."""
    output_shape: Shape = field(compare=False)
    """The shape of the answer to one example."""
    layer: Layer = field(compare=False, repr=False)

    @property
    def example_rank(self) -> int:
        """The rank of one example."""
        return len(self.example_shape)

    @property
    def source(self) -> dict[str, Any]:
        """The architecture in normal form."""
        return {"architecture": self.architecture}

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """The shape of one example, by the only input's name."""
        return {"x": self.example_shape}

    @property
    def derivative_order(self) -> None:
        """Layers can be differentiated to any order."""

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, in declared order."""
        return _shapes(self.layer.parameters)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the state (running statistics, fixed buffers) in declared order; empty when stateless."""
        return _shapes(self.layer.state)

    def initial_params(self, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """First parameters, float32, the same for a seed on every machine, each leaf on its own."""
        return draw(self.layer.parameters, seed)

    def initial_state(self) -> dict[str, NDArray[np.float32]]:
        """First state, float32; it depends on the architecture alone."""
        return draw(self.layer.state, 0)

    def apply(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        *inputs: Array,
        train: bool,
        key: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """The answer to x, one example or a batch of them, and the new state (the same in eval mode).

        x has shape `(*batch, *example_shape)`, the answer `(*batch, *output_shape)`. Pure, traceable, and
        differentiable to any order in `params` and `x`, which share a float dtype; the answer has it too.
        `key` feeds dropout in train mode. `params` and `state` are taken as checked.

        Raises `Refusal("shape_mismatch")` when x does not fit, or when batchnorm in train mode finds no
        batch.
        """
        (x,) = inputs
        batch_axes = x.ndim - self.example_rank
        if batch_axes < 0 or not all_fit(self.example_shape, x.shape[batch_axes:]):
            expected, got = show(self.example_shape), show(x.shape)
            raise Refusal(
                "shape_mismatch",
                f"the model takes examples of shape {expected}, got an array of shape {got}.",
            )
        try:
            # Sizes left open by the architecture are known now.
            self.layer.gives(x.shape[batch_axes:])
        except DoesNotChain as problem:
            raise Refusal("shape_mismatch", f"for an array of shape {show(x.shape)}, {problem}.") from problem
        return self.layer.forward(params, state, x, Call(train=train, batch_axes=batch_axes, key=key))


def build(architecture: Mapping[str, Any]) -> Layered:
    """The model that an architecture in JSON describes.

    `{"layers": [{"dense": [2, 4], "activation": "tanh"}, {"batchnorm": 4}]}` names its leaves
    `layer_1.weight` and so on; `README.md` beside this file lists the layers. `"input"` may give the shape of
    one example, `null` for sizes that the data decide; without it the first layers do.

    Raises `Refusal("invalid_architecture")` with the layer, what is wrong with it, and the nearest known name
    or both sizes.
    """
    try:
        return _build(architecture)
    except (Unreadable, DoesNotChain) as problem:
        raise Refusal("invalid_architecture", f"{problem}.") from problem


def _build(architecture: Mapping[str, Any]) -> Layered:
    check_extent(architecture)
    if isinstance(architecture, Mapping) and "preset" in architecture:
        architecture = expand(architecture)
        check_extent(architecture)
    if not isinstance(architecture, Mapping) or "layers" not in architecture:
        raise Unreadable(
            f'an architecture looks like {{"layers": [{{"dense": [2, 4]}}]}}, got {shown(architecture)}'
        )
    for key in architecture:
        if key not in KEYS:
            raise Unreadable(unknown("key", str(key), KEYS))
    layer, layers = read_layers(architecture["layers"])
    count = sum(leaf.size for leaf in (*layer.parameters.values(), *layer.state.values()))
    if count > LARGEST:
        raise Unreadable(f"the model would have {count} parameters, at most {LARGEST} are hosted")
    example_shape = _example_shape(architecture.get("input"), layer)
    normal = {"input": list(example_shape), "layers": layers}
    canonical = json.dumps(normal, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Layered(
        digest=hashlib.sha256(canonical.encode()).hexdigest(),
        architecture=normal,
        example_shape=example_shape,
        output_shape=layer.gives(example_shape),
        layer=layer,
    )


def _example_shape(declared: Any, layer: Layer) -> Shape:
    if declared is None:
        if layer.takes is None:
            raise Unreadable(
                "the layers do not tell the shape of one example; say it beside them, "
                'as in "input": [1, 28, 28] (null for a size that the data decide)'
            )
        return layer.takes
    if not isinstance(declared, list | tuple) or len(declared) > MOST_AXES:
        raise Unreadable(
            f'"input" is the shape of one example, a list of sizes or null, got {shown(declared)}'
        )
    return tuple(None if each is None else size(each) for each in declared)


def _shapes(leaves: Mapping[str, Leaf]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in leaves.items()}
