"""Inputs that are drawn on the server: points in a box or on its faces, and batches of given data.

What is drawn depends on the seed of the run, the name of the sampler and the number of the draw alone: a run
that goes on from a save draws what the uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nablad.arrays import Undeclared
from nablad.messages import decode_arrays
from nablad.problems import Refusal
from nablad.training.messages import Batches, Box

Drawn: TypeAlias = "dict[str, NDArray[Any]]"
MOST_SOBOL_DIMENSIONS = 21201


@dataclass(frozen=True)
class Points:
    """Points of a box, float64."""

    name: str
    box: Box
    seed: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Of the program, which it draws."""
        return tuple(self.box.names) or (self.name,)

    def draw(self, number: int) -> Drawn:
        """Points `(n, d)` as one input, or each coordinate `(n,)` as one of its own."""
        low, high = np.asarray(self.box.low), np.asarray(self.box.high)
        rng = generator(self.seed, self.name, number)
        points = low + (high - low) * IN_UNIT_BOX[self.box.distribution](self.box.n, high > low, rng)
        # Rounding may lead past the upper end, where a program may have no value.
        points = np.clip(points, low, high)
        if not self.box.names:
            return {self.name: points}
        return {name: np.ascontiguousarray(points[:, axis]) for axis, name in enumerate(self.box.names)}


@dataclass(frozen=True, eq=False)
class Examples:
    """Some examples of arrays for each step, without replacement within an epoch.

    An epoch has as many steps as it has whole batches; what remains of it is left out, and may come in the
    next one.
    """

    name: str
    data: Mapping[str, NDArray[Any] | Undeclared]
    n: int
    seed: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Of the program, which it draws."""
        return tuple(self.data)

    @property
    def count(self) -> int:
        """How many examples there are."""
        return len(_entries(next(iter(self.data.values()))))

    def rows(self, number: int) -> NDArray[np.int32]:
        """Which examples the step of that number takes."""
        epoch, batch = divmod(number, self.count // self.n)
        return _order(self.seed, self.name, epoch, self.count)[batch * self.n : (batch + 1) * self.n]

    def draw(self, number: int) -> Drawn:
        """The examples of one step."""
        rows = self.rows(number)
        return {name: _entries(array)[rows] for name, array in self.data.items()}


Sampler: TypeAlias = "Points | Examples"


@lru_cache(maxsize=16)
def _order(seed: int, name: str, epoch: int, count: int) -> NDArray[np.int32]:
    return generator(seed, name, epoch).permutation(count).astype(np.int32)


def generator(seed: int, name: str, number: int) -> np.random.Generator:
    """NumPy's Philox generator of one draw."""
    own = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=(own, number))
    return np.random.Generator(np.random.Philox(sequence))


# In the unit box, (n, d); `open_` says along which axes the box has an extent.
Axes: TypeAlias = "NDArray[np.bool_]"


def uniform(n: int, open_: Axes, rng: np.random.Generator) -> NDArray[np.float64]:
    """Independent points."""
    return rng.random((n, len(open_)))


def faces(n: int, open_: Axes, rng: np.random.Generator) -> NDArray[np.float64]:
    """Independent points on the faces, each of the pairs of opposite faces as likely as any other."""
    points = rng.random((n, len(open_)))
    axis = rng.choice(np.flatnonzero(open_), n)
    points[np.arange(n), axis] = rng.integers(0, 2, n)
    return points


def latin_hypercube(n: int, open_: Axes, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points with one in each of `n` slices along every axis (McKay, Beckman, Conover 1979)."""
    slices = np.stack([rng.permutation(n) for _ in open_], axis=1)
    return (slices + rng.random((n, len(open_)))) / n


def sobol(n: int, open_: Axes, rng: np.random.Generator) -> NDArray[np.float64]:
    """The first `n` points of a scrambled Sobol sequence (Owen 1998); best where `n` is a power of two."""
    from scipy.stats import qmc  # half as long to import as JAX, for every server that starts

    sequence = qmc.Sobol(len(open_), scramble=True, rng=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the number, said above
        return np.asarray(sequence.random(n))


IN_UNIT_BOX = {"uniform": uniform, "faces": faces, "latin_hypercube": latin_hypercube, "sobol": sobol}


def samplers_of(given: Mapping[str, Box | Batches], seed: int) -> list[Sampler]:
    """The samplers of a request, by name; `Batches` with arrays or handles' values for their data.

    Raises:
        Refusal: `sampler`, naming the one at fault: an empty box, lengths that do not fit, an input that two
            of them draw.
    """
    found: list[Sampler] = []
    drawn: dict[str, str] = {}
    for name, one in sorted(given.items()):
        sampler = _points(name, one, seed) if isinstance(one, Box) else _examples(name, one, seed)
        for input_ in sampler.inputs:
            if input_ in drawn:
                of = f"the samplers '{drawn[input_]}' and '{name}'" if drawn[input_] != name else f"'{name}'"
                raise Refusal("sampler", f"the input '{input_}' is drawn twice, by {of}; name it once")
            drawn[input_] = name
        found.append(sampler)
    return found


def _points(name: str, box: Box, seed: int) -> Points:
    what = f"the sampler '{name}'"
    d = len(box.low)
    if not d or d != len(box.high):
        detail = (
            f"{what} has {d} numbers in 'low' and {len(box.high)} in 'high'; send one a coordinate in each"
        )
        raise Refusal("sampler", detail)
    if box.names and len(box.names) != d:
        detail = f"{what} has {len(box.names)} 'names' for {d} coordinates; name each, or none of them"
        raise Refusal("sampler", detail)
    for axis, (low, high) in enumerate(zip(box.low, box.high, strict=True)):
        if not (math.isfinite(low) and math.isfinite(high)):
            raise Refusal("sampler", f"the box of {what} has no end along coordinate {axis}: {low} to {high}")
        if low > high:
            detail = f"the box of {what} is empty: coordinate {axis} goes from {low:g} to {high:g}; swap them"
            raise Refusal("sampler", detail)
    if box.low == box.high:
        detail = f"the box of {what} is empty: 'low' and 'high' are the same; widen one coordinate at least"
        raise Refusal("sampler", detail)
    if box.distribution == "sobol" and d > MOST_SOBOL_DIMENSIONS:
        detail = f"{what} has {d} coordinates, Sobol sequences have at most {MOST_SOBOL_DIMENSIONS}"
        raise Refusal("sampler", f"{detail}; try uniform")
    return Points(name, box, seed)


def _examples(name: str, batches: Batches, seed: int) -> Examples:
    what = f"the sampler '{name}'"
    if not batches.data:
        raise Refusal("sampler", f"{what} has no data; name at least one input with its examples")
    data = decode_arrays(batches.data, f"samplers.{name}.data.")
    counts = {}
    for input_, array in data.items():
        shape = _entries(array).shape
        if not shape:
            detail = f"the data '{input_}' of {what} is one number; send an array of examples"
            raise Refusal("sampler", detail)
        counts[input_] = shape[0]
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"'{input_}' has {count}" for input_, count in counts.items())
        raise Refusal("sampler", f"the data of {what} differ in their number of examples: {shown}")
    count = next(iter(counts.values()))
    if batches.n > count:
        detail = f"{what} takes {batches.n} examples a step, but there are {count}; take fewer"
        raise Refusal("sampler", detail)
    return Examples(name, data, batches.n, seed)


def _entries(array: Any) -> NDArray[Any]:
    return np.asarray(array.array if isinstance(array, Undeclared) else array)
