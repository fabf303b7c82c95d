"""Bodies in memory that a caller shares with the server: the same answers, and every way to do it wrong."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import Served, served

import nablad
from nablad import wire
from nablad.arrays import encode_array
from nablad.shared_memory import FORGET, SHARE, SUFFIX

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")

LARGE = np.random.default_rng(0).standard_normal((512, 512))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "socket"


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Served]:
    with served("--uds", str(path)) as running:
        yield running


@pytest.fixture
def client(server: Served, path: Path) -> Iterator[nablad.Client]:
    with nablad.Client(f"unix:{path}", shared_memory=True) as connected:
        yield connected


def shared_blocks(server: Served) -> int:
    """How many blocks of callers the server has mapped."""
    maps = Path(f"/proc/{server.process.pid}/maps").read_text().splitlines()
    return sum("memfd:nablad" in line for line in maps)


def tidied(client: nablad.Client) -> None:
    """Have the server let go of callers that left: JAX frees the inputs of one call at the next."""
    for _ in range(3):
        doubled(client, LARGE[:2])


def doubled(client: nablad.Client, x: Any, **asked: Any) -> Any:
    return client.gradient("sum(x**2)", inputs={"x": x}, wrt=["x"], tune=False, **asked).gradients["x"]


def test_answers_lie_in_shared_memory_and_are_the_same(client: nablad.Client, server: Served) -> None:
    first, second = doubled(client, LARGE), doubled(client, LARGE)
    np.testing.assert_array_equal(first, 2 * LARGE)
    np.testing.assert_array_equal(second, first)
    assert shared_blocks(server) >= 2
    # The second answer is where the server wrote it: in the caller's block, aligned.
    assert second.ctypes.data % 64 == 0


def test_earlier_answers_stay_as_they_were(client: nablad.Client) -> None:
    kept = [doubled(client, LARGE + number) for number in range(8)]
    for number, found in enumerate(kept):
        np.testing.assert_array_equal(found, 2 * (LARGE + number))


def test_blocks_are_used_again_when_their_arrays_are_gone(client: nablad.Client, server: Served) -> None:
    for number in range(20):
        np.testing.assert_array_equal(doubled(client, LARGE + number), 2 * (LARGE + number))
    assert shared_blocks(server) <= 4


def test_more_answers_than_the_server_maps_go_over_the_socket(client: nablad.Client) -> None:
    kept = [doubled(client, LARGE[:200, :200] + number) for number in range(80)]
    for number, found in enumerate(kept):
        np.testing.assert_array_equal(found, 2 * (LARGE[:200, :200] + number))


def test_small_calls_share_nothing(client: nablad.Client, server: Served) -> None:
    tidied(client)
    before = shared_blocks(server)
    np.testing.assert_array_equal(doubled(client, LARGE[:4]), 2 * LARGE[:4])
    assert shared_blocks(server) == before


def test_answers_outlive_their_client(server: Served, path: Path) -> None:
    with nablad.Client(f"unix:{path}", shared_memory=True) as client:
        doubled(client, LARGE)
        found = doubled(client, LARGE)
    gc.collect()
    np.testing.assert_array_equal(found, 2 * LARGE)


def test_an_asynchronous_client_shares_memory_too(server: Served, path: Path) -> None:
    async def ask() -> list[Any]:
        async with nablad.AsyncClient(f"unix:{path}", shared_memory=True) as client:
            asked = {"wrt": ["x"], "tune": False}
            return [
                (await client.gradient("sum(x**2)", inputs={"x": LARGE + number}, **asked)).gradients["x"]
                for number in range(3)
            ]

    for number, found in enumerate(asyncio.run(ask())):
        np.testing.assert_array_equal(found, 2 * (LARGE + number))


@pytest.mark.parametrize("format", ["frame", "msgpack", "json"])
def test_every_format_goes_through_shared_memory(server: Served, path: Path, format: Any) -> None:  # noqa: A002
    with nablad.Client(f"unix:{path}", shared_memory=True, format=format) as client:
        for _ in range(2):
            np.testing.assert_array_equal(doubled(client, LARGE), 2 * LARGE)


def test_refusals_travel_as_ever(client: nablad.Client) -> None:
    with pytest.raises(nablad.ProgramError):
        client.evaluate("sum(xx)", inputs={"x": LARGE})


def test_what_was_refused_is_let_go_of(server: Served, path: Path) -> None:
    """Without the collector, whose turn may be long to come."""
    with nablad.Client(f"unix:{path}", shared_memory=True) as client:
        doubled(client, LARGE)
        for program in ("sum(xx)", "sum(x @ x[:3])"):
            with pytest.raises(nablad.ProgramError):
                client.gradient(program, inputs={"x": LARGE}, wrt=["x"])
    with nablad.Client(f"unix:{path}") as other:
        tidied(other)
    assert shared_blocks(server) == 0


def used_again(client: nablad.Client) -> None:
    """Have the client write other numbers over its free blocks."""
    for number in range(4):
        doubled(client, LARGE + number)


def test_values_go_through_shared_memory_and_stay_what_they_are(
    client: nablad.Client, server: Served
) -> None:
    tidied(client)
    before = shared_blocks(server)
    handle = client.put(LARGE)
    assert shared_blocks(server) == before + 1
    used_again(client)
    np.testing.assert_array_equal(doubled(client, handle), 2 * LARGE)
    client.release(handle)


def test_parameters_go_both_ways_and_stay_what_they_are(client: nablad.Client, server: Served) -> None:
    client.create_model("wide", {"layers": [{"dense": [512, 512]}]})
    given = {"layer_1.weight": LARGE, "layer_1.bias": LARGE[0]}
    tidied(client)
    before = shared_blocks(server)
    client.set_params("wide", given)
    assert shared_blocks(server) == before + 1
    used_again(client)
    first, second = client.params("wide").params, client.params("wide").params
    client.delete_model("wide")
    used_again(client)
    for found in (first, second):
        assert found.keys() == given.keys()
        for name, leaf in given.items():
            np.testing.assert_array_equal(found[name], leaf)


def test_a_session_begins_with_what_it_was_given(client: nablad.Client) -> None:
    client.create_model("trained", {"layers": [{"dense": [512, 512]}]})
    given = {"layer_1.weight": LARGE, "layer_1.bias": LARGE[0]}
    optimiser = {"name": "sgd", "learning_rate": 0.1}
    with client.session(model="trained", params=given, trained={"a": LARGE}, optimiser=optimiser) as session:
        used_again(client)
        found = session.params()
    client.delete_model("trained")
    np.testing.assert_array_equal(found.trained["a"], LARGE)
    for name, leaf in given.items():
        np.testing.assert_array_equal(found.params[name], leaf)


def test_nothing_is_left_when_the_caller_leaves(server: Served, path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    with nablad.Client(f"unix:{path}", shared_memory=True) as client:
        doubled(client, LARGE)
        doubled(client, LARGE)
        assert shared_blocks(server) >= 2
        assert set(os.listdir("/dev/shm")) == before
    with nablad.Client(f"unix:{path}") as other:
        tidied(other)
    assert shared_blocks(server) == 0


def test_a_client_goes_on_with_the_next_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with nablad.Client(f"unix:{path}", shared_memory=True) as client:
        kept = []
        for _ in range(2):
            with served("--uds", str(path)) as server:
                kept += [doubled(client, LARGE), doubled(client, LARGE)]
                server.kill()
    for found in kept:
        np.testing.assert_array_equal(found, 2 * LARGE)


def test_a_server_that_shares_no_memory_says_so(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with served("--uds", str(path), "--shared-memory", "false"):
        with (
            nablad.Client(f"unix:{path}", shared_memory=True) as client,
            pytest.raises(nablad.ConnectionFailed, match="--shared-memory"),
        ):
            doubled(client, LARGE)
        with nablad.Client(f"unix:{path}") as client:
            np.testing.assert_array_equal(doubled(client, LARGE), 2 * LARGE)


def test_shared_memory_needs_a_unix_socket(url: str) -> None:
    with pytest.raises(ValueError, match="needs a Unix socket"):
        nablad.Client(url, shared_memory=True)


# -- handing memory over


def memory(size: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    """The descriptor of a memfd."""
    descriptor = os.memfd_create("nablad", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class Caller:
    """A connection for handing memory over, to say on it what no client would."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(30)
        self._socket.connect(str(path) + SUFFIX)

    def say(self, message: bytes, *descriptors: int) -> str:
        socket.send_fds(self._socket, [message], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        return self._socket.recv(512).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def caller(server: Served, path: Path) -> Iterator[Caller]:
    connected = Caller(path)
    yield connected
    connected.close()


def regular_file() -> int:
    return os.open(__file__, os.O_RDONLY)


UNFIT: dict[str, tuple[bytes, Callable[[], list[int]], str]] = {
    "a file": (SHARE, lambda: [regular_file()], "no memfd"),
    "unsealed": (SHARE, lambda: [memory(4096, 0)], "not sealed against shrinking"),
    "sealed otherwise": (SHARE, lambda: [memory(4096, fcntl.F_SEAL_GROW)], "not sealed against shrinking"),
    "write-sealed": (
        SHARE,
        lambda: [memory(4096, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)],
        "cannot be mapped",
    ),
    "empty": (SHARE, lambda: [memory(0)], "not 0"),
    "too large": (SHARE, lambda: [memory(1 << 40)], "a block has 1 to"),
    "no descriptor": (SHARE, list, "one file descriptor is shared at a time, not 0"),
    "two descriptors": (SHARE, lambda: [memory(8), memory(8)], "not 2"),
    "another word": (b"hello", list, "neither a block to share"),
    "another's token": (FORGET + b"0" * 32, list, "nor one of this caller's to forget"),
    "bytes that are no text": (FORGET + b"\xff", list, "nor one of this caller's to forget"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_memory_that_does_not_fit_is_refused_with_the_reason(caller: Caller, name: str) -> None:
    message, descriptors, said = UNFIT[name]
    answer = caller.say(message, *descriptors())
    assert answer.startswith("refused: ")
    assert said in answer


def test_a_caller_shares_so_many_blocks_and_no_more(caller: Caller) -> None:
    answers = [caller.say(SHARE, memory(4096)) for _ in range(65)]
    assert all(len(answer) == 32 for answer in answers[:64])
    assert "at most 64 blocks" in answers[64]
    assert caller.say(FORGET + answers[0].encode()) == "forgotten"
    assert len(caller.say(SHARE, memory(4096))) == 32


# -- places


@pytest.fixture
def http(server: Served, path: Path) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=60) as connected:
        yield connected


def question(x: Any) -> list[Any]:
    array = encode_array(np.asarray(x), "attached")
    return wire.encode_body({"loss": "sum(x**2)", "inputs": {"x": array}, "wrt": ["x"]}, wire.FRAME)


FRAMED = {"Content-Type": wire.FRAME, "Accept": wire.FRAME}
TOKEN = "0123456789abcdef" * 2
PLACES: dict[str, tuple[str, str]] = {
    "nothing": ("", "a place in shared memory is"),
    "a path": ("/dev/shm/../../etc/passwd", "a place in shared memory is"),
    "a negative offset": (f"{TOKEN}; offset=-1; length=1", "a place in shared memory is"),
    "an unknown token": (f"{TOKEN}; offset=0; length=1", "no caller shares a block of that token"),
    "too long": ("{token}; offset=0; length=8193", "end outside the block, which has 8192 bytes"),
    "too far": ("{token}; offset=8192; length=1", "end outside the block"),
    "far too far": ("{token}; offset=999999999999999999; length=1", "end outside the block"),
}


@pytest.mark.parametrize("header", ["Nablad-Body", "Nablad-Room"])
@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_is_not_there_is_refused(
    http: httpx.Client, caller: Caller, name: str, header: str
) -> None:
    place, said = PLACES[name]
    token = caller.say(SHARE, memory(8192))
    response = http.post("/v1/gradient", headers={**FRAMED, header: place.format(token=token)})
    assert response.status_code == 400
    assert response.json()["code"] == "shared_memory"
    assert said in response.json()["detail"]
    # The connection goes on.
    assert http.get("/health/live").status_code == 200


def test_a_frame_that_is_longer_than_its_place_is_refused(http: httpx.Client, caller: Caller) -> None:
    descriptor = memory(8192)
    frame = b"".join(map(bytes, question(np.ones(100))))
    os.pwrite(descriptor, frame, 0)
    token = caller.say(SHARE, descriptor)
    places = {length: f"{token}; offset=0; length={length}" for length in (len(frame), len(frame) - 1)}
    found = [http.post("/v1/gradient", headers={**FRAMED, "Nablad-Body": place}) for place in places.values()]
    assert [response.status_code for response in found] == [200, 400]
    assert found[1].json()["code"] == "malformed_body"
    assert "cut short" in found[1].json()["detail"]


def test_an_answer_that_does_not_fit_comes_over_the_socket(http: httpx.Client, caller: Caller) -> None:
    token = caller.say(SHARE, memory(8192))
    headers = {**FRAMED, "Nablad-Room": f"{token}; offset=64; length=100"}
    response = http.post(
        "/v1/gradient", headers=headers, content=b"".join(map(bytes, question(np.ones(100))))
    )
    assert response.status_code == 200
    assert "nablad-body" not in response.headers
    assert len(response.content) > 800


def test_memory_cannot_be_cut_under_the_server(caller: Caller) -> None:
    descriptor = memory(8192)
    kept = os.dup(descriptor)
    caller.say(SHARE, descriptor)
    with pytest.raises(PermissionError):
        os.ftruncate(kept, 0)
    os.close(kept)


def test_a_port_without_a_unix_socket_shares_nothing(url: str) -> None:
    headers = {**FRAMED, "Nablad-Body": f"{TOKEN}; offset=0; length=1"}
    response = httpx.post(f"{url}/v1/gradient", headers=headers)
    assert response.json()["code"] == "shared_memory"
    assert "shares no memory" in response.json()["detail"]


def test_what_is_kept_does_not_change_with_the_callers_memory(http: httpx.Client, caller: Caller) -> None:
    http.put("/v1/models/kept", json={"architecture": {"layers": [{"dense": [2, 2]}]}}).raise_for_status()
    params = {"layer_1.weight": np.ones((2, 2), "f4"), "layer_1.bias": np.ones(2, "f4")}
    tree = {name: encode_array(array, "attached") for name, array in params.items()}
    frame = b"".join(map(bytes, wire.encode_body({"params": tree}, wire.FRAME)))
    descriptor = memory(8192)
    with mmap.mmap(descriptor, 8192) as block:
        block[: len(frame)] = frame
        token = caller.say(SHARE, descriptor)
        place = f"{token}; offset=0; length={len(frame)}"
        http.put("/v1/models/kept/params", headers={**FRAMED, "Nablad-Body": place}).raise_for_status()
        block[:] = bytes(8192)
    assert http.get("/v1/models/kept/params").json()["params"]["layer_1.bias"] == [1.0, 1.0]
    http.delete("/v1/models/kept")
