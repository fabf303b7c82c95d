"""A learned constant on its own."""

from __future__ import annotations

from nablad_models.initialisers import zeros
from nablad_models.layer import Layer, per_example
from nablad_models.leaves import Leaf
from nablad_models.shapes import DoesNotFit, Shape, all_fit, show


def shift(sizes: list[int]) -> Layer:
    """x + bias for examples of the shape `sizes`, which may be `[]`: the bias after a dot product."""
    wanted = tuple(sizes)

    def gives(shape: Shape) -> Shape:
        if not all_fit(wanted, shape):
            raise DoesNotFit(f"takes {show(wanted)}")
        return wanted

    return Layer(
        gives=gives,
        forward=per_example(lambda leaves, x: x + leaves["bias"]),
        takes=wanted,
        parameters={"bias": Leaf(wanted, zeros)},
    )
