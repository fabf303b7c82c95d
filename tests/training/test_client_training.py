"""Sessions and runs of the client on real servers: the numbers of JAX and optax, and servers that crash."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nablad

from restarting import restarting  # isort: skip

LOSS = "mean((model(x) - y)**2)"
ADAM = {"name": "adam", "learning_rate": 1e-2}
STEPS = 30


def batch(step: int) -> dict[str, Any]:
    x = np.random.default_rng(step).standard_normal((16, 2)).astype("float32")
    return {"x": x, "y": np.sin(x[:, :1])}


@pytest.fixture(scope="module")
def client(trainer: httpx.Client) -> Iterator[nablad.Client]:
    """Of the server that hosts `net` and keeps saves."""
    with nablad.Client(str(trainer.base_url).rstrip("/")) as connected:
        yield connected


@pytest.fixture(scope="module")
def expected(client: nablad.Client) -> dict[str, Any]:
    """What Adam makes of the batches in process."""
    optimiser = optax.adam(1e-2)
    params = {name: jnp.asarray(leaf) for name, leaf in client.params("net").params.items()}

    def loss(params: Any, x: Any, y: Any) -> Any:
        hidden = jnp.tanh(x @ params["layer_1.weight"].T + params["layer_1.bias"])
        return jnp.mean((hidden @ params["layer_2.weight"].T + params["layer_2.bias"] - y) ** 2)

    state = optimiser.init(params)
    for step in range(STEPS):
        updates, state = optimiser.update(jax.grad(loss)(params, **batch(step)), state)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(leaf) for name, leaf in params.items()}


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=2e-4, atol=2e-5)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)


def test_a_session_with_futures_is_the_run_of_optax(client: nablad.Client, expected: dict[str, Any]) -> None:
    with client.session(model="net", optimiser=ADAM) as session:
        for step in range(STEPS):
            session.gradient(LOSS, inputs=batch(step))
            session.step()
        assert session.standing().step == STEPS
        close(session.params().params, expected)
    with pytest.raises(nablad.NotFound):
        client.session(name=session.name, resume=True)


def test_a_gradient_may_step_at_once(client: nablad.Client, expected: dict[str, Any]) -> None:
    with client.session(model="net", optimiser=ADAM) as session:
        results = [session.gradient(LOSS, inputs=batch(step), step=True) for step in range(STEPS)]
        last = results[-1].result()
        assert last.stepped is not None
        assert (last.stepped.step, last.accumulated) == (STEPS, 0)
        assert repr(session) == f"<Session '{session.name}' at step {STEPS}>"
        assert repr(last).endswith(f"step {STEPS}>")
        close(session.params().params, expected)
        slow = session.gradient(LOSS, inputs=batch(0), step={"learning_rate": 0.0}).result().stepped
        assert slow is not None
        assert (slow.learning_rate, slow.update_norm) == (0.0, 0.0)


def test_a_session_of_a_python_function_and_asyncio_is_too(
    client: nablad.Client, expected: dict[str, Any]
) -> None:
    def loss(model: Any, x: Any, y: Any) -> Any:
        return np.mean((model(x) - y) ** 2)

    async def train() -> Any:
        async with (
            nablad.AsyncClient(str(client._sender.url)) as connected,
            connected.session(model="net", optimiser=ADAM) as session,
        ):
            for step in range(STEPS):
                session.gradient(loss, inputs=batch(step))
                done = session.step()
            assert (await done).step == STEPS
            return (await session.params()).params

    close(asyncio.run(train()), expected)


def test_gradients_are_read_and_come_on_request(client: nablad.Client) -> None:
    alone = client.gradient(LOSS, inputs=batch(0), model="net").gradients["params"]
    with client.session(model="net", optimiser=ADAM) as session:
        given = session.gradient(LOSS, inputs=batch(0), gradients=True).result()
        read = session.gradients()
    assert given.accumulated == 1
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in alone.values()))
    np.testing.assert_allclose(given.norms["model.params"], norm, rtol=1e-5)
    for found in (given.gradients, read):
        close(found["model.params"], alone)  # type: ignore[arg-type]


def test_a_session_is_saved_loaded_listed_and_deleted(client: nablad.Client) -> None:
    with client.session(name="kept", model="net", optimiser=ADAM) as session:
        session.gradient(LOSS, inputs=batch(0))
        session.step()
        assert session.save().result().saved == [1]
        saved = session.params().params
        session.gradient(LOSS, inputs=batch(1))
        session.step()
        assert session.load().result().step == 1
        same(session.params().params, saved)
    with client.session(name="kept", resume=True) as session:
        session.gradient(LOSS, inputs=batch(1))
        assert session.step().result().step == 2
        with pytest.raises(nablad.RequestError, match="kept"):
            client.session(name="kept", model="net", optimiser=ADAM)
    assert "kept" in [one.name for one in client.sessions()]
    client.delete_session("kept")
    assert "kept" not in [one.name for one in client.sessions()]


def test_what_is_refused_is_said_and_the_session_goes_on(client: nablad.Client) -> None:
    with pytest.raises(nablad.RequestError, match="adam"):
        client.session(model="net", optimiser={"name": "adamm", "learning_rate": 1e-2})
    with client.session(model="net", optimiser=ADAM) as session:
        with pytest.raises(nablad.RequestError, match="gradient"):
            session.step().result()
        with pytest.raises(nablad.ProgramError) as caught:
            session.gradient("summ(model(x))", inputs={"x": batch(0)["x"]}).result()
        assert caught.value.where is not None
        session.gradient(LOSS, inputs=batch(0))
        assert session.step().result().step == 1


def test_a_run_is_the_run_of_optax_and_is_listed(client: nablad.Client) -> None:
    x, y = batch(0).values()
    asked: dict[str, Any] = {"model": "net", "optimiser": ADAM, "steps": STEPS, "inputs": {"x": x, "y": y}}
    with client.session(model="net", optimiser=ADAM) as session:
        for _ in range(STEPS):
            session.gradient(LOSS, inputs={"x": x, "y": y})
            session.step()
        by_session = session.params().params
    run = client.train(LOSS, report_every=10, name="listed", **asked)
    assert [report.step for report in run] == [1, 10, 20, 30]
    close(run.params().params, by_session)
    (standing,) = [one for one in client.runs() if one.name == "listed"]
    assert (standing.status, standing.step) == ("done", STEPS)
    assert [report.step for report in client.follow("listed")] == [1, 10, 20, 30]
    client.delete_run("listed")
    with pytest.raises(nablad.NotFound):
        client.follow("listed")


def test_a_run_that_is_left_is_stopped_saved_and_resumed(client: nablad.Client) -> None:
    asked: dict[str, Any] = {"model": "net", "optimiser": ADAM, "inputs": batch(0), "name": "left"}
    run = client.train(LOSS, steps=10**8, report_every=100, **asked)
    for _ in run:
        break
    assert run.ended is not None
    assert run.ended.checkpoint == run.ended.step
    again = client.train(LOSS, steps=run.ended.step + 100, report_every=100, resume=True, **asked)
    assert again.wait().step[-1] == run.ended.step + 100
    client.delete_run("left")


def test_a_run_that_diverges_tells_the_step(client: nablad.Client) -> None:
    run = client.train(
        "log(a)", optimiser={"name": "sgd", "learning_rate": 0.3}, steps=50, trained={"a": 1.0}
    )
    with pytest.raises(nablad.Diverged, match="step") as caught:
        run.wait()
    assert caught.value.step > 1
    assert np.isfinite(run.params().trained["a"])


# -- a server that crashes


def stepwise(client: nablad.Client, crash: Callable[[int], None]) -> tuple[dict[str, Any], list[int]]:
    """Twenty steps, saved every five; what came out, and the steps that the session was restored at."""
    restored, step = [], 0
    with client.session(model="net", optimiser=ADAM) as session:
        while step < 20:
            try:
                session.gradient(LOSS, inputs=batch(step))
                session.step()
                step += 1
                if step % 5 == 0:
                    session.save()
                crash(session.params().step)
            except nablad.SessionRestored as error:
                restored.append(error.step)
                step = error.step
        return session.params().params, restored


def test_a_session_and_a_run_go_on_after_a_crash_to_the_same_numbers(tmp_path: Path) -> None:
    points = {"distribution": "uniform", "low": [-1, -1], "high": [1, 1], "n": 64}
    asked: dict[str, Any] = {"model": "net", "optimiser": ADAM, "steps": 20_000, "report_every": 2000}
    asked |= {"samplers": {"x": points}, "resample_every": 500, "checkpoint_every": 2000}
    loss = "mean((model(x) - sin(x[:, :1]))**2)"
    cache = ("--cache", str(tmp_path / "cache"))
    with restarting(tmp_path, *cache) as server, nablad.Client(server.url) as client:
        client.create_model("net", {"layers": [{"dense": [2, 8], "activation": "tanh"}, {"dense": [8, 1]}]})
        by_steps, restored = stepwise(client, lambda step: None)
        assert restored == []
        whole = client.train(loss, **asked)
        whole.wait()
        by_loop = whole.params().params

        under_way: list[tuple[nablad.Run, Iterator[Any]]] = []

        def crash(step: int) -> None:
            """With both under way, once."""
            if step == 13 and not under_way:
                run = client.train(loss, **asked)
                reports = iter(run)
                under_way.append((run, reports))
                while next(reports).step < 4000:
                    pass
                server.kill()
                server.start()

        found, restored = stepwise(client, crash)
        assert restored == [10]
        same(found, by_steps)
        ((run, reports),) = under_way
        assert [report.step for report in reports][-1] == 20_000
        assert run.history.step == whole.history.step
        assert run.history.value == whole.history.value
        same(run.params().params, by_loop)


# -- the command line


def test_ctrl_c_stops_the_run_and_keeps_what_there_is(client: nablad.Client, tmp_path: Path) -> None:
    file = tmp_path / "fit.toml"
    file.write_text(
        'loss = "mean((model(x) - 1)**2)"\nsteps = 100000000\nname = "interrupted"\nout = "fit.npz"\n'
        '[models]\nmodel = "net"\n[optimiser]\nname = "adam"\nlearning_rate = 1e-3\n'
        "[inputs]\nx = [[0.1, 0.2], [0.3, 0.4]]\n"
    )
    command = [sys.executable, "-m", "nablad", "train", str(file), "--url", str(client._sender.url)]
    # Started from a shell's background the tests ignore the signal, and whatever they start would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(3)]
        assert seen[0] == "run interrupted\n"
        os.kill(process.pid, signal.SIGINT)
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert re.fullmatch(r"stopped at step \d+; go on with --resume\n", said)
    assert f"saved {tmp_path / 'fit.npz'}" in printed
    assert "layer_1.weight" in np.load(tmp_path / "fit.npz")
    client.delete_run("interrupted")
