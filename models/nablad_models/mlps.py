"""Networks of dense layers, by their sizes from input to output."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from nablad_models.activations import read_activation
from nablad_models.reading import Unreadable, each_size, shown

Architecture = dict[str, Any]

KINKED = (
    *("relu", "relu6", "leaky_relu", "hard_sigmoid", "hard_tanh", "hard_swish"),
    *("elu", "celu", "selu", "softsign"),
)
"""Activations of which the first or the second derivative jumps somewhere."""


def mlp(sizes: list[int], *, activation: Any = "tanh", init: str = "uniform") -> Architecture:
    """Dense layers of the given sizes with the activation between them: what most PINNs are."""
    hidden = [{"dense": list(pair), "init": init, "activation": activation} for pair in pairwise(sizes)]
    del hidden[-1]["activation"]
    return {"layers": hidden}


def siren(sizes: list[int], *, omega: float = 30.0) -> Architecture:
    """Sine layers with their own initialisation and a dense layer at the end (Sitzmann et al., 2020)."""
    layers: list[Architecture] = [{"siren": list(pair), "omega": omega} for pair in pairwise(sizes[:-1])]
    layers[0]["first"] = True
    return {"layers": [*layers, {"dense": sizes[-2:]}]}


def fourier_mlp(
    sizes: list[int],
    *,
    features: int = 64,
    scale: float = 1.0,
    seed: int = 0,
    activation: Any = "tanh",
    init: str = "uniform",
) -> Architecture:
    """Random Fourier features of the coordinates, then an mlp: for solutions with high frequencies."""
    first = {"fourier": {"in": sizes[0], "features": features, "scale": scale, "seed": seed}}
    rest = mlp([2 * features, *sizes[1:]], activation=activation, init=init)
    return {"layers": [first, *rest["layers"]]}


def potential(sizes: list[int], *, activation: Any = "softplus", init: str = "uniform") -> Architecture:
    """An mlp to one number without axes, whose gradient is what matters: an energy, a Hamiltonian.

    Losses on forces -grad E(x) differentiate E twice, so the activation is one that is smooth everywhere:
    with relu the forces would be constant in pieces, jump in between, and carry no curvature at all. Softplus
    does not level off as tanh does, so forces far from the data do not vanish.
    """
    return {"layers": [*mlp(sizes, activation=activation, init=init)["layers"], {"reshape": []}]}


def read_smooth(value: Any) -> Any:
    """An activation that is smooth everywhere."""
    normal = read_activation(value)
    name = normal if isinstance(normal, str) else next(iter(normal))
    if name in KINKED:
        raise Unreadable(
            f"{name!r} is not smooth, and the gradient of a potential is differentiated again; "
            "softplus, tanh, silu and gelu are smooth"
        )
    return normal


def at_least(count: int) -> Callable[[Any], list[int]]:
    """A reader of the sizes from input to output, `count` or more."""

    def read(value: Any) -> list[int]:
        read = each_size(value)
        if len(read) < count:
            raise Unreadable(f"expected at least {count} sizes from input to output, got {shown(value)}")
        return read

    return read


def to_one_number(value: Any) -> list[int]:
    """Sizes of which the last is 1."""
    read = at_least(2)(value)
    if read[-1] != 1:
        raise Unreadable(f"a potential is one number, so its sizes end in 1, got {shown(value)}")
    return read
