"""Layers joined by their names: each takes an input or the answers of earlier layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from nablad.problems import Refusal
from nablad_models.layer import Call, Layer
from nablad_models.leaves import Leaf, Leaves
from nablad_models.shapes import DoesNotFit, Shape, show
from nablad_models.step import DoesNotChain, Step, joined, run


class Value(NamedTuple):
    """An array on its way through a graph, and how many of its first axes are batch axes."""

    array: Array
    batch_axes: int

    @property
    def batch(self) -> tuple[int, ...]:
        """The sizes of the batch axes."""
        return self.array.shape[: self.batch_axes]


@dataclass(frozen=True)
class Node:
    """A step and what it takes: names of inputs and of earlier steps, several where its layer joins them."""

    step: Step
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Steps in an order in which they can be taken.

    Every input has batch axes of its own. An answer has those of what it was made from; where a layer joins,
    they broadcast as NumPy's do.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def parameters(self) -> dict[str, Leaf]:
        """The parameters of all steps."""
        return joined([node.step for node in self.nodes], "parameters")

    @property
    def state(self) -> dict[str, Leaf]:
        """The state of all steps."""
        return joined([node.step for node in self.nodes], "state")

    def shapes(self, given: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shape of one example of every value, by the name of its step, from those of the inputs.

        Raises `DoesNotChain` with the step, what it takes, and all sizes.
        """
        known = dict(given)
        for node in self.nodes:
            known[node.step.name] = self._gives(node, known)
        return known

    def values(
        self, params: Leaves, state: Leaves, given: Mapping[str, Value], call: Call
    ) -> tuple[dict[str, Value], dict[str, Array]]:
        """Every value by the name of its step, and the new state; `call.batch_axes` is not looked at."""
        known, new_state = dict(given), dict[str, Array]()
        for node in self.nodes:
            x, batch_axes = self._taken(node, known)
            inner = replace(call, batch_axes=batch_axes).into(node.step.name)
            y, new = run(node.step, params, state, x, inner)
            known[node.step.name] = Value(y, batch_axes)
            new_state |= new
        return known, new_state

    def shape_asked(self, name: str) -> Shape | None:
        """The shape of one example that the first layers ask of an input.

        A layer that keeps the shape knows less than one that does not (batchnorm before a convolution knows
        the channels but not the rank), so it is asked last.
        """
        fallback, unchanged = None, {name}
        for step, sources in ((node.step, node.sources) for node in self.nodes):
            if step.layer.joins is None and sources[0] in unchanged:
                if not step.layer.keeps_shape:
                    return step.layer.takes or fallback
                fallback = fallback or step.layer.takes
                unchanged.add(step.name)
        return fallback

    def described(self, source: str) -> str:
        """An input or a step, as messages name it."""
        steps = {node.step.name: str(node.step) for node in self.nodes}
        return steps.get(source) or ("the input" if len(self.inputs) == 1 else f'the input "{source}"')

    def _gives(self, node: Node, known: Mapping[str, Shape]) -> Shape:
        step, shapes = node.step, [known[source] for source in node.sources]
        try:
            return step.layer.gives(step.layer.joins.gives(shapes) if step.layer.joins else shapes[0])
        except DoesNotFit as problem:
            given = [
                f"{self.described(source)} gives {show(shape)}"
                for source, shape in zip(node.sources, shapes, strict=True)
            ]
            raise DoesNotChain(
                f"{step} {problem}{':' if step.layer.joins else ', but'} {' and '.join(given)}"
            ) from problem
        except DoesNotChain as problem:
            raise DoesNotChain(f"in {step}, {problem}") from problem

    def _taken(self, node: Node, known: Mapping[str, Value]) -> Value:
        values = [known[source] for source in node.sources]
        joins = node.step.layer.joins
        if joins is None:
            return values[0]
        batch_axes = max(value.batch_axes for value in values)
        self._check_batches(node, values)
        parts = [
            jnp.expand_dims(value.array, tuple(range(batch_axes - value.batch_axes))) for value in values
        ]
        return Value(joins.forward(parts, batch_axes), batch_axes)

    def _check_batches(self, node: Node, values: Sequence[Value]) -> None:
        try:
            np.broadcast_shapes(*(value.batch for value in values))
        except ValueError:
            given = " and ".join(
                f"{show(value.batch)} from {self.described(source)}"
                for source, value in zip(node.sources, values, strict=True)
            )
            raise Refusal(
                "shape_mismatch",
                f"{node.step} joins batches that do not broadcast: {given}; where each of n is to meet each "
                "of m, give the inputs of one the batch axes (n, 1).",
            ) from None


def as_layer(graph: Graph) -> Layer:
    """A graph of one input whose last step gives the answer, as one layer."""
    (x_name,), last = graph.inputs, graph.nodes[-1].step.name

    def forward(params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        values, new_state = graph.values(params, state, {x_name: Value(x, call.batch_axes)}, call)
        return values[last].array, new_state

    return Layer(
        gives=lambda shape: graph.shapes({x_name: shape})[last],
        forward=forward,
        takes=graph.shape_asked(x_name),
        parameters=graph.parameters,
        state=graph.state,
        keeps_shape=all(
            node.step.layer.keeps_shape and node.step.layer.joins is None for node in graph.nodes
        ),
    )
