"""Whole architectures by name: functions that return the JSON of their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nablad_models import initialisers
from nablad_models.activations import read_activation
from nablad_models.deeponet import deeponet
from nablad_models.mlps import (
    Architecture,
    at_least,
    fourier_mlp,
    mlp,
    potential,
    read_smooth,
    siren,
    to_one_number,
)
from nablad_models.reading import (
    REQUIRED,
    Option,
    Unreadable,
    choice,
    count,
    flag,
    optional,
    positive,
    read_options,
    shown,
    size,
    unknown,
    whole,
)


def resnet_small(channels: int, classes: int, *, width: int = 16, blocks: int = 3) -> Architecture:
    """A residual network for small images (He et al., 2015, section 4.2): three stages, a global mean."""
    stages: list[Architecture] = []
    before = width
    for stage in range(3):
        wide = width * 2**stage
        for block in range(blocks):
            stages.append(_residual_block(before, wide, stride=2 if stage and not block else 1))
            before = wide
    return {
        "input": [channels, None, None],
        "layers": [
            {"conv": [channels, width, 3], "padding": 1, "bias": False},
            {"batchnorm": width, "activation": "relu"},
            *stages,
            {"adaptive_avgpool": 1},
            {"flatten": True},
            {"dense": [before, classes]},
        ],
    }


def _residual_block(before: int, wide: int, stride: int) -> Architecture:
    block: Architecture = {
        "residual": [
            {"conv": [before, wide, 3], "stride": stride, "padding": 1, "bias": False},
            {"batchnorm": wide, "activation": "relu"},
            {"conv": [wide, wide, 3], "padding": 1, "bias": False},
            {"batchnorm": wide},
        ],
        "activation": "relu",
    }
    if before != wide:
        block["shortcut"] = [
            {"conv": [before, wide, 1], "stride": stride, "bias": False},
            {"batchnorm": wide},
        ]
    return block


def transformer_small(
    vocabulary: int,
    length: int,
    *,
    outputs: int | None = None,
    size: int = 64,
    heads: int = 4,
    depth: int = 2,
    causal: bool = False,
) -> Architecture:
    """Pre-norm transformer blocks over tokens; `outputs` values (or one a vocabulary entry) at each place."""
    block: list[Architecture] = [
        {"residual": [{"layernorm": size}, {"attention": {"heads": heads, "size": size, "causal": causal}}]},
        {
            "residual": [
                {"layernorm": size},
                {"dense": [size, 4 * size], "activation": "gelu"},
                {"dense": [4 * size, size]},
            ]
        },
    ]
    return {
        "input": [None],
        "layers": [
            {"embedding": [vocabulary, size]},
            {"position_embedding": [length, size]},
            *(block * depth),
            {"layernorm": size},
            {"dense": [size, vocabulary if outputs is None else outputs]},
        ],
    }


class Preset(NamedTuple):
    """A function that returns an architecture, and how its arguments are read."""

    make: Callable[..., Architecture]
    options: Mapping[str, Option]


ACTIVATION = Option("tanh", read_activation)
INIT = Option("uniform", choice("initialisation", list(initialisers.RULES)))

# {"preset": name, option: ...} becomes make(option=...).
PRESETS: dict[str, Preset] = {
    "mlp": Preset(mlp, {"sizes": Option(REQUIRED, at_least(2)), "activation": ACTIVATION, "init": INIT}),
    "siren": Preset(siren, {"sizes": Option(REQUIRED, at_least(3)), "omega": Option(30.0, positive)}),
    "fourier_mlp": Preset(
        fourier_mlp,
        {
            "sizes": Option(REQUIRED, at_least(2)),
            "features": Option(64, size),
            "scale": Option(1.0, positive),
            "seed": Option(0, whole),
            "activation": ACTIVATION,
            "init": INIT,
        },
    ),
    "potential": Preset(
        potential,
        {
            "sizes": Option(REQUIRED, to_one_number),
            "activation": Option("softplus", read_smooth),
            "init": INIT,
        },
    ),
    "deeponet": Preset(
        deeponet,
        {
            "branch": Option(REQUIRED, at_least(2)),
            "trunk": Option(REQUIRED, at_least(2)),
            "outputs": Option(None, optional(size)),
            "activation": ACTIVATION,
            "init": INIT,
        },
    ),
    "resnet_small": Preset(
        resnet_small,
        {
            "channels": Option(REQUIRED, size),
            "classes": Option(REQUIRED, size),
            "width": Option(16, size),
            "blocks": Option(3, count),
        },
    ),
    "transformer_small": Preset(
        transformer_small,
        {
            "vocabulary": Option(REQUIRED, size),
            "length": Option(REQUIRED, size),
            "outputs": Option(None, optional(size)),
            "size": Option(64, size),
            "heads": Option(4, size),
            "depth": Option(2, count),
            "causal": Option(False, flag),
        },
    ),
}


def expand(architecture: Mapping[str, Any]) -> Mapping[str, Any]:
    """An architecture that names a preset, written out as layers.

    Raises `Unreadable`.
    """
    name = architecture["preset"]
    if not isinstance(name, str):
        raise Unreadable(f"a preset is named by a string, got {shown(name)}")
    if name not in PRESETS:
        raise Unreadable(unknown("preset", name, list(PRESETS)))
    preset = PRESETS[name]
    given = {key: value for key, value in architecture.items() if key != "preset"}
    try:
        return preset.make(**read_options(preset.options, given))
    except Unreadable as problem:
        raise Unreadable(f"preset {name}: {problem}") from None
