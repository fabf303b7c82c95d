"""How parameters begin."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nablad_models.leaves import Initialiser


def constant(value: float) -> Initialiser:
    """Every entry is `value`."""

    def initialise(_: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.full(shape, value, dtype=np.float32)

    return initialise


def uniform(bound: float) -> Initialiser:
    """Uniform on (-bound, bound)."""

    def initialise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(bound)

    return initialise


def normal(deviation: float) -> Initialiser:
    """Normal with mean 0 and the given standard deviation."""

    def initialise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    return initialise


zeros = constant(0.0)
ones = constant(1.0)


# One row a rule: its weight, from the numbers of inputs and outputs that one entry of the output or input
# sees. Glorot and Bengio (2010), He et al. (2015); "uniform" is what PyTorch and Equinox do when nothing is
# said.
RULES = {
    "uniform": lambda fan_in, fan_out: uniform(1 / math.sqrt(fan_in)),
    "glorot_uniform": lambda fan_in, fan_out: uniform(math.sqrt(6 / (fan_in + fan_out))),
    "glorot_normal": lambda fan_in, fan_out: normal(math.sqrt(2 / (fan_in + fan_out))),
    "he_uniform": lambda fan_in, fan_out: uniform(math.sqrt(6 / fan_in)),
    "he_normal": lambda fan_in, fan_out: normal(math.sqrt(2 / fan_in)),
    "zeros": lambda fan_in, fan_out: zeros,
}


def bias(rule: str, fan_in: int) -> Initialiser:
    """The bias beside a weight that begins by `rule`: uniform as in PyTorch for "uniform", zero otherwise."""
    return uniform(1 / math.sqrt(fan_in)) if rule == "uniform" else zeros
