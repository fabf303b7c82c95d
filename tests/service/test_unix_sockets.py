"""`nablad serve --uds` and clients of `unix:` addresses."""

from __future__ import annotations

import asyncio
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from served import Served, served

import nablad
from nablad_service.settings import Settings
from nablad_service.sockets.listening import listen_unix

X = np.linspace(-1.0, 1.0, 6).reshape(3, 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uds") / "nablad.socket"


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Served]:
    with served("--uds", str(path), "--port", "0") as running:
        yield running


def test_a_server_listens_on_a_port_and_a_unix_socket(server: Served, path: Path) -> None:
    port, unix = server.urls
    assert unix == f"unix:{path}"
    with nablad.Client(port) as one, nablad.Client(unix) as other:
        asked = {"inputs": {"x": X}, "wrt": ["x"]}
        found, same = (client.gradient("sum(x**3)", **asked) for client in (one, other))
        assert found.value == same.value
        np.testing.assert_array_equal(found.gradients["x"], same.gradients["x"])


def test_an_asynchronous_client_speaks_over_it_too(server: Served, path: Path) -> None:
    async def ask() -> float:
        async with nablad.AsyncClient(f"unix:{path}") as client:
            return (await client.gradient("sum(x**2)", inputs={"x": X}, wrt=["x"])).value

    assert asyncio.run(ask()) == pytest.approx(float((X**2).sum()))


def test_large_bodies_go_both_ways(server: Served, path: Path) -> None:
    large = np.random.default_rng(0).standard_normal((1000, 1000))
    with nablad.Client(f"unix:{path}") as client:
        for _ in range(2):
            found = client.gradient("sum(x**2)", inputs={"x": large}, wrt=["x"]).gradients["x"]
            np.testing.assert_array_equal(found, 2 * large)


def test_the_command_line_takes_its_address(server: Served, path: Path) -> None:
    words = ["gradient", "--url", f"unix:{path}", "--loss", "x * x", "--input", "x=3.0", "--wrt", "x"]
    done = subprocess.run([sys.executable, "-m", "nablad", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "value 9" in done.stdout


def test_only_its_owner_may_connect_unless_told_otherwise(server: Served, path: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with listen_unix(tmp_path / "group", 0o660):
        assert stat.S_IMODE((tmp_path / "group").stat().st_mode) == 0o660


def test_a_second_server_does_not_take_it(server: Served, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nablad", "serve", "--uds", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "another server listens there; choose another --uds" in done.stderr
    with nablad.Client(f"unix:{path}") as client:
        assert client.models() == []


def test_what_a_killed_server_leaves_is_replaced_and_a_stopped_one_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with served("--uds", str(path)) as first:
        assert first.urls == [f"unix:{path}"]
        first.kill()
    assert path.is_socket()
    with nablad.Client(f"unix:{path}") as client:
        with pytest.raises(nablad.ConnectionFailed, match="nablad serve"):
            client.models()
        with served("--uds", str(path)):
            assert client.models() == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="no socket"):
        listen_unix(path, 0o600)
    assert path.read_text() == "mine"


def test_the_file_of_another_server_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_unix(path, 0o600):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()


def test_a_port_is_listened_on_beside_it_only_where_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().listens_on_port
    assert not Settings(uds="here").listens_on_port
    assert Settings(uds="here", port=0).listens_on_port
    monkeypatch.setenv("NABLAD_HOST", "0.0.0.0")
    assert Settings(uds="here").listens_on_port
