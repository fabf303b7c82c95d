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
from nablad_models.graph import Graph, Value
from nablad_models.inputs import input_shapes, normal_inputs, read_inputs
from nablad_models.layer import Call
from nablad_models.leaves import Leaf, draw
from nablad_models.presets import expand
from nablad_models.reading import LARGEST, Unreadable, check_extent, shown, unknown
from nablad_models.shapes import Shape, all_fit, show
from nablad_models.step import DoesNotChain
from nablad_models.wiring import check_all_used, read_outputs

KEYS = ("layers", "input", "inputs", "outputs")


@dataclass(frozen=True)
class Layered:
    """Layers in JSON, ready to be applied. Two are equal when their architectures mean the same."""

    digest: str
    """SHA-256 of the architecture in normal form without the names of layers: the identity for caches."""
    architecture: dict[str, Any] = field(compare=False)
    """The JSON in normal form, with every default written out; building it again gives the same model."""
    input_shapes: dict[str, Shape] = field(compare=False)
    """The shape of one example of each input, `None` where any size will do; axes before it are batch axes.

    One input that has no name of its own is called x.
    """
    output_shapes: dict[str, Shape] | Shape = field(compare=False)
    """The shape of the answer to one example, by name where answers have names."""
    outputs: dict[str, str] | None = field(compare=False)
    """Which layer makes each answer; None where the last layer makes the only one, which has no name."""
    graph: Graph = field(compare=False, repr=False)

    @property
    def source(self) -> dict[str, Any]:
        """The architecture in normal form."""
        return {"architecture": self.architecture}

    @property
    def derivative_order(self) -> None:
        """Layers can be differentiated to any order."""

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, in declared order."""
        return _shapes(self.graph.parameters)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the state (running statistics, fixed buffers) in declared order; empty when stateless."""
        return _shapes(self.graph.state)

    def initial_params(self, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """First parameters, float32, the same for a seed on every machine, each leaf on its own."""
        return draw(self.graph.parameters, seed)

    def initial_state(self) -> dict[str, NDArray[np.float32]]:
        """First state, float32; it depends on the architecture alone."""
        return draw(self.graph.state, 0)

    def apply(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        *inputs: Array,
        train: bool,
        key: Array | None = None,
    ) -> tuple[Array | dict[str, Array], dict[str, Array]]:
        """The answer to the inputs, one array or arrays by name, and the new state (the same in eval mode).

        Each input has shape `(*batch, *example)` with batch axes of its own; the answer has those of the
        inputs that it depends on, broadcast as NumPy does: sensors (n, 1, 100) and y (m, 2) give (n, m).
        Pure, traceable, and differentiable to any order in `params` and the inputs, which share a float
        dtype; the answer has it too. `key` feeds dropout in train mode. `params` and `state` are taken as
        checked.

        Raises `Refusal("shape_mismatch")` when an input does not fit, when batches do not broadcast, or when
        batchnorm in train mode finds no batch.
        """
        given = {name: self._value(name, x) for name, x in zip(self.input_shapes, inputs, strict=True)}
        self._check_open_sizes(given)
        call = Call(train=train, batch_axes=0, key=key)
        values, new_state = self.graph.values(params, state, given, call)
        if self.outputs is None:
            return values[self.graph.nodes[-1].step.name].array, new_state
        return {name: values[source].array for name, source in self.outputs.items()}, new_state

    def _value(self, name: str, x: Array) -> Value:
        expected = self.input_shapes[name]
        batch_axes = x.ndim - len(expected)
        if batch_axes < 0 or not all_fit(expected, x.shape[batch_axes:]):
            of = f" of {name!r}" if len(self.input_shapes) > 1 else ""
            raise Refusal(
                "shape_mismatch",
                f"the model takes examples{of} of shape {show(expected)}, got an array of shape "
                f"{show(x.shape)}.",
            )
        return Value(x, batch_axes)

    def _check_open_sizes(self, given: Mapping[str, Value]) -> None:
        """Sizes left open by the architecture are known now."""
        try:
            self.graph.shapes({name: x.array.shape[x.batch_axes :] for name, x in given.items()})
        except DoesNotChain as problem:
            shapes = [show(x.array.shape) for x in given.values()]
            which = f"an array of shape {shapes[0]}" if len(shapes) == 1 else f"shapes {', '.join(shapes)}"
            raise Refusal("shape_mismatch", f"for {which}, {problem}.") from problem


def build(architecture: Mapping[str, Any]) -> Layered:
    """The model that an architecture in JSON describes.

    `{"layers": [{"dense": [2, 4], "activation": "tanh"}, {"batchnorm": 4}]}` names its leaves
    `layer_1.weight` and so on; `README.md` beside this file lists the layers. `"input"` may give the shape of
    one example, `null` for sizes that the data decide; without it the first layers do. `"inputs"` gives
    several by name, `"outputs"` names the answers, `"from"` beside a layer says what it takes.

    Raises `Refusal("invalid_architecture")` with the layer, what is wrong with it, and the nearest known name
    or all sizes.
    """
    try:
        return _build(architecture)
    except (Unreadable, DoesNotChain) as problem:
        end = "" if str(problem).endswith("?") else "."  # some ask: "did you mean 'dense'?"
        raise Refusal("invalid_architecture", f"{problem}{end}") from problem


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
    declared = read_inputs(architecture)
    graph, layers = read_layers(architecture["layers"], list(declared))
    outputs = read_outputs(architecture["outputs"], graph) if "outputs" in architecture else None
    last = graph.nodes[-1].step.name
    check_all_used(graph, [last] if outputs is None else [*outputs.values()])
    count = sum(leaf.size for leaf in (*graph.parameters.values(), *graph.state.values()))
    if count > LARGEST:
        raise Unreadable(f"the model would have {count} parameters, at most {LARGEST} are hosted")
    inputs = input_shapes(declared, graph)
    shapes = graph.shapes(inputs)
    normal = normal_inputs(inputs) | {"layers": layers} | ({"outputs": outputs} if outputs else {})
    return Layered(
        digest=_digest(normal),
        architecture=normal,
        input_shapes=inputs,
        output_shapes={name: shapes[at] for name, at in outputs.items()} if outputs else shapes[last],
        outputs=outputs,
        graph=graph,
    )


def _digest(normal: Mapping[str, Any]) -> str:
    """Of what the architecture means: not of the names of layers, but of the order of inputs and outputs."""
    meaning = {**normal, "layers": _without_names(normal["layers"])}
    for key in ("inputs", "outputs"):
        if key in meaning:
            meaning[key] = list(meaning[key].items())
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_names(each) for key, each in value.items() if key != "name"}
    return [_without_names(each) for each in value] if isinstance(value, list) else value


def _shapes(leaves: Mapping[str, Leaf]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in leaves.items()}
