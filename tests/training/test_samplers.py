"""Points and batches drawn on the server: where they lie, that a draw can be repeated, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nablad.arrays import Undeclared
from nablad.problems import Refusal
from nablad.training.messages import Batches, Box
from nablad_service.training.feeds import feeds_of
from nablad_service.training.samplers import Examples, Points, samplers_of

LOW, HIGH = [-1.0, 0.0, 2.0], [1.0, 3.0, 2.0]
DISTRIBUTIONS = ["uniform", "faces", "latin_hypercube", "sobol"]


def points(distribution: Any, n: int = 256, seed: int = 0, number: int = 0, **members: Any) -> Any:
    box = Box(distribution=distribution, low=LOW, high=HIGH, n=n, **members)
    (sampler,) = samplers_of({"x": box}, seed)
    return sampler.draw(number)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_points_fill_the_box_and_keep_a_coordinate_without_extent(distribution: str) -> None:
    x = points(distribution)["x"]
    assert x.shape == (256, 3)
    assert (x >= LOW).all()
    assert (x <= HIGH).all()
    np.testing.assert_array_equal(x[:, 2], 2.0)
    for axis in (0, 1):  # every quarter of each axis has its share
        edges = np.linspace(LOW[axis], HIGH[axis], 5)
        assert np.histogram(x[:, axis], edges)[0].min() > 20


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_draw_is_known_by_seed_name_and_number(distribution: str) -> None:
    first = points(distribution)["x"]
    np.testing.assert_array_equal(points(distribution)["x"], first)
    assert not np.array_equal(points(distribution, number=1)["x"], first)
    assert not np.array_equal(points(distribution, seed=1)["x"], first)
    box = Box(distribution=distribution, low=LOW, high=HIGH, n=256)
    (other,) = samplers_of({"other": box}, 0)
    assert not np.array_equal(other.draw(0)["other"], first)


def test_faces_are_of_the_axes_that_have_an_extent_each_side_as_likely() -> None:
    x = points("faces", n=4000)["x"]
    on = np.stack([x[:, 0] == -1, x[:, 0] == 1, x[:, 1] == 0, x[:, 1] == 3])
    assert on.any(0).all()
    assert ((on.sum(1) > 900) & (on.sum(1) < 1100)).all()


def test_a_latin_hypercube_has_one_point_in_each_slice() -> None:
    x = points("latin_hypercube", n=100)["x"]
    slices = np.floor((x[:, :2] - LOW[:2]) / (np.array(HIGH[:2]) - LOW[:2]) * 100).astype(int)
    np.testing.assert_array_equal(np.sort(slices, axis=0), np.arange(100)[:, None].repeat(2, 1))


def test_sobol_points_are_more_even_than_independent_ones() -> None:
    def worst(distribution: str) -> float:
        x = points(distribution, n=1024)["x"]
        counts = np.histogram2d(x[:, 0], x[:, 1], bins=16, range=[[-1, 1], [0, 3]])[0]
        return float(np.abs(counts - 4).max())

    assert worst("sobol") == 0
    assert worst("uniform") > 2


def test_coordinates_may_be_inputs_of_their_own() -> None:
    drawn = points("uniform", names=["t", "x", "y"])
    assert {name: array.shape for name, array in drawn.items()} == {"t": (256,), "x": (256,), "y": (256,)}
    np.testing.assert_array_equal(drawn["t"], points("uniform")["x"][:, 0])


def test_batches_go_through_all_examples_once_an_epoch_in_an_order_of_its_own() -> None:
    data = {"x": np.arange(20.0).reshape(10, 2), "y": np.arange(10)}
    (sampler,) = samplers_of({"train": Batches(data=data, n=3)}, 0)
    assert sampler.inputs == ("x", "y")
    epochs = [
        np.concatenate([sampler.draw(3 * epoch + step)["y"] for step in range(3)]) for epoch in range(4)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 9
    assert len({tuple(epoch) for epoch in epochs}) == 4
    batch = sampler.draw(5)
    np.testing.assert_array_equal(batch["x"], data["x"][batch["y"]])


@pytest.mark.parametrize("every", [1, 3, 40, None])
def test_a_feed_gives_each_step_its_draw_wherever_its_blocks_begin(every: int | None) -> None:
    box = Box(distribution="uniform", low=[0.0], high=[1.0], n=2)
    data = Batches(data={"y": np.arange(7.0)}, n=2)
    samplers = samplers_of({"x": box, "y": data}, 5)
    feeds = feeds_of(samplers, every, {"x": "float64", "y": "float64"})
    for step in (0, 1, 2, 39, 40, 41, 1023, 1024, 3000):
        x, y = feeds["x"], feeds["y"]
        block = x.block(x.origin(step))
        at = 0 if every is None else (step - int(block.origin)) // every
        number = 0 if every is None else step // every
        np.testing.assert_array_equal(block.draws["x"][at], x.sampler.draw(number)["x"])
        rows = y.block(y.origin(step))
        np.testing.assert_array_equal(
            y.data()["y"][rows.draws[step - int(rows.origin)]], y.sampler.draw(step)["y"]
        )


REFUSED = [
    (
        {"x": {"low": [1.0], "high": [0.0]}},
        "the box of the sampler 'x' is empty: coordinate 0 goes from 1 to 0",
    ),
    (
        {"x": {"low": [1.0], "high": [1.0]}},
        "the box of the sampler 'x' is empty: 'low' and 'high' are the same",
    ),
    ({"x": {"low": [], "high": []}}, "has 0 numbers in 'low' and 0 in 'high'"),
    ({"x": {"low": [0.0, 0.0], "high": [1.0]}}, "has 2 numbers in 'low' and 1 in 'high'"),
    ({"x": {"low": [0.0, 0.0], "high": [1.0, 1.0], "names": ["t"]}}, "has 1 'names' for 2 coordinates"),
    (
        {"x": {"low": [0.0, 0.0], "high": [1.0, 1.0], "names": ["t", "t"]}},
        "the input 't' is drawn twice, by 'x'",
    ),
    (
        {"x": {"low": [0.0], "high": [float("inf")]}},
        "the box of the sampler 'x' has no end along coordinate 0",
    ),
    (
        {"x": {"low": [0.0], "high": [1.0]}, "p": {"low": [0.0], "high": [1.0], "names": ["x"]}},
        "the input 'x' is drawn twice, by the samplers 'p' and 'x'",
    ),
    ({"b": {"data": {}}}, "the sampler 'b' has no data"),
    (
        {"b": {"data": {"x": [1.0, 2.0], "y": [1.0]}}},
        "differ in their number of examples: 'x' has 2, 'y' has 1",
    ),
    ({"b": {"data": {"x": [1.0, 2.0]}}}, "takes 3 examples a step, but there are 2"),
    ({"b": {"data": {"x": 1.0}}}, "the data 'x' of the sampler 'b' is one number"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refused(given: dict[str, Any], sentence: str) -> None:
    samplers = {
        name: Batches(n=3, **one) if "data" in one else Box(distribution="uniform", n=3, **one)
        for name, one in given.items()
    }
    with pytest.raises(Refusal, match="sampler") as caught:
        samplers_of(samplers, 0)
    assert caught.value.code == "sampler"
    assert sentence in caught.value.detail


def test_data_without_a_dtype_take_that_of_the_program() -> None:
    (sampler,) = samplers_of({"b": Batches(data={"x": [1.0, 2.0, 3.0]}, n=2)}, 0)
    assert isinstance(sampler, Examples)
    assert isinstance(sampler.data["x"], Undeclared)
    feed = feeds_of([sampler], None, {"x": "float32"})["b"]
    assert feed.data()["x"].dtype == "float32"


def test_points_are_float64_until_a_program_takes_them() -> None:
    (sampler,) = samplers_of({"x": Box(distribution="sobol", low=[0.0], high=[1.0], n=4)}, 0)
    assert isinstance(sampler, Points)
    assert sampler.draw(0)["x"].dtype == "float64"
    assert feeds_of([sampler], 1, {"x": "float32"})["x"].block(0).draws["x"].dtype == "float32"
