"""What every run of the gallery needs beside its loss: an optimiser, progress, and a place for its picture.

The loop belongs to the caller: the server answers gradients, the lines here turn them into new parameters.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tree = Mapping[str, Any]
"""Arrays by name, or such mappings by name."""


@dataclass
class Adam:
    """Adam (Kingma and Ba, 2015, algorithm 1) on trees of NumPy arrays, with a cosine decay to `last`."""

    rate: float = 1e-3
    steps: int | None = None
    """Length of the decay; without it the rate is constant."""
    last: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    count: int = 0
    first: Any = field(default=None, repr=False)
    second: Any = field(default=None, repr=False)

    def step(self, params: Any, gradients: Any) -> Any:
        """New parameters; the old ones are not changed."""
        if self.count == 0:
            self.first = self.second = mapped(np.zeros_like, params)
        self.count += 1
        self.first = mapped(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, self.first, gradients)
        self.second = mapped(lambda v, g: self.beta2 * v + (1 - self.beta2) * g**2, self.second, gradients)
        scale1, scale2 = 1 - self.beta1**self.count, 1 - self.beta2**self.count
        rate = self.learning_rate()

        def moved(p: NDArray[Any], m: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(p - rate * (m / scale1) / (np.sqrt(v / scale2) + 1e-8), p.dtype)

        return mapped(moved, params, self.first, self.second)

    def learning_rate(self) -> float:
        """The rate of this step."""
        if self.steps is None:
            return self.rate
        share = min(self.count / self.steps, 1.0)
        return self.last + (self.rate - self.last) * 0.5 * (1 + float(np.cos(np.pi * share)))


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` leaf by leaf over trees of one shape."""
    if isinstance(tree, Mapping):
        return {name: mapped(function, tree[name], *(other[name] for other in others)) for name in tree}
    return function(tree, *others)


def arguments(description: str, *, steps: int) -> argparse.Namespace:
    """The options that all runs take."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--steps", type=int, default=steps, help=f"optimiser steps (default {steps})")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    return parser.parse_args()


def steps_with_progress(steps: int, *, every: int | None = None) -> Iterator[tuple[int, Callable[..., None]]]:
    """Step numbers from 1, each with a function that prints named figures of it now and then."""
    every = every or max(steps // 10, 1)
    began = time.perf_counter()

    def show(step: int, figures: Mapping[str, float]) -> None:
        if step % every == 0 or step in (1, steps):
            words = "  ".join(f"{name} {float(value):.3e}" for name, value in figures.items())
            print(f"step {step:6d} of {steps}  {time.perf_counter() - began:6.1f} s  {words}", flush=True)

    for step in range(1, steps + 1):
        yield step, lambda step=step, **figures: show(step, figures)


def figure(out: Path, name: str) -> Any:
    """A matplotlib module set up for the gallery and a function that saves its figure as `name`.png."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("the picture needs matplotlib: pip install 'nablad[gallery]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    def save(drawn: Any) -> None:
        out.mkdir(parents=True, exist_ok=True)
        drawn.tight_layout()
        drawn.savefig(out / f"{name}.png", dpi=110)
        print(f"picture in {out / f'{name}.png'}")

    return pyplot, save
