"""The repository: what survives which crash, what is told of damage, and what two servers may not share."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_server import local_server
from safetensors.numpy import load_file, save_file

import nablad
from nablad.content import version_of
from nablad.problems import Refusal
from nablad_service.hosting import ModelStore, durable
from nablad_service.hosting.repository import Repository

NET = {"layers": [{"dense": [2, 3]}, {"batchnorm": 3}]}
LINE = {"layers": [{"dense": [1, 1]}]}
KILLS = os.environ.get("KILLS", "40")


def filled(number: float) -> dict[str, np.ndarray]:
    shapes = {"layer_1.weight": (3, 2), "layer_1.bias": (3,), "layer_2.scale": (3,), "layer_2.bias": (3,)}
    return {name: np.full(shape, number, np.float32) for name, shape in shapes.items()}


@contextmanager
def hosting(folder: Path, **settings: Any) -> Iterator[ModelStore]:
    """A store on a folder, as a server that starts and stops would have it."""
    repository = Repository.open(folder)
    try:
        yield ModelStore(100, repository=repository, **settings)
    finally:
        repository.close()


def refused(code: str, *says: str) -> Any:
    return pytest.raises(Refusal, match=rf"(?s){code}: .*" + ".*".join(map(re.escape, says)))


# -- what is kept


def test_models_and_parameters_are_there_after_a_restart(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        store.put("net", NET, None, None, seed=3)
        store.put("line", LINE, {"layer_1.weight": np.ones((1, 1)), "layer_1.bias": np.ones(1)}, None, 0)
        kept = store.set_params("net", filled(2.0), None)
        cards = store.cards()
    with hosting(tmp_path) as store:
        assert store.cards() == cards
        assert store.failed() == []
        again = store.get("net")
        assert again.version == kept.version == version_of(again.params, again.state)
        assert store.get("line").params["layer_1.weight"].dtype == np.float64
        np.testing.assert_array_equal(again.state["layer_2.running_var"], np.ones(3))


def test_the_files_are_what_other_programs_read(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        store.put("net", NET, filled(2.0), None, 0)
    config = json.loads((tmp_path / "net" / "model.json").read_text())
    assert (config["source"], config["architecture"]["layers"][0]["dense"]) == ("layers", [2, 3])
    assert sorted(load_file(tmp_path / "net" / config["params"])) == sorted(filled(2.0))
    assert sorted(load_file(tmp_path / "net" / config["state"])) == [
        "layer_2.running_mean",
        "layer_2.running_var",
    ]
    files = {file.name for file in (tmp_path / "net").iterdir()}
    assert files == {"model.json", config["params"], config["state"]}
    assert config["version"] in config["params"]


def test_a_folder_written_by_hand_is_served(tmp_path: Path) -> None:
    """An architecture, and weights under PyTorch's names; a file that the server did not name stays."""
    folder = tmp_path / "net"
    folder.mkdir()
    torch = {"0.weight": np.ones((3, 2), np.float32), "0.bias": np.zeros(3, np.float32)}
    torch |= {"1.weight": np.full(3, 5.0, np.float32), "1.bias": np.zeros(3, np.float32)}
    torch |= {"1.running_mean": np.zeros(3, np.float32), "1.running_var": np.full(3, 4.0, np.float32)}
    save_file(torch, folder / "weights.safetensors")
    config = {"source": "layers", "architecture": NET, "params": "weights.safetensors"}
    (folder / "model.json").write_text(json.dumps(config))
    with hosting(tmp_path) as store:
        assert store.get("net").params["layer_2.scale"].tolist() == [5.0] * 3
        assert store.get("net").state["layer_2.running_var"].tolist() == [4.0] * 3
        store.set_params("net", filled(1.0), None)
    assert (folder / "weights.safetensors").exists()
    with hosting(tmp_path) as store:
        assert store.get("net").params["layer_2.scale"].tolist() == [1.0] * 3


def test_parameters_that_no_file_holds_are_drawn_from_the_seed_in_the_dtype(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        config = {"source": "layers", "architecture": LINE, "seed": seed, "dtype": "float64"}
        (tmp_path / name / "model.json").write_text(json.dumps(config))
    with hosting(tmp_path) as store:
        a, b, c = (store.get(name) for name in "abc")
        assert a.version == b.version != c.version
        assert a.params["layer_1.weight"].dtype == np.float64


def test_a_model_without_parameters_and_one_of_scalars_are_kept(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        store.put("plain", {"layers": [{"activation": "tanh"}], "input": [2]}, None, None, 0)
    with hosting(tmp_path) as store:
        assert store.card("plain").parameter_count == 0


def test_deleting_removes_the_folder_and_putting_replaces_what_it_holds(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        store.put("net", NET, None, None, 0)
        store.put("net", LINE, None, None, 0)
        store.put("gone", LINE, None, None, 0)
        store.delete("gone")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "net"]
    with hosting(tmp_path) as store:
        assert [card.name for card in store.cards()] == ["net"]
        assert store.card("net").parameter_count == 2
        with refused("unknown_model"):
            store.get("gone")


def test_names_that_differ_in_case_only_would_share_a_folder_and_are_refused(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        store.put("Net", LINE, None, None, 0)
        with refused("invalid_name", "'Net' already", "choose another name"):
            store.put("net", LINE, None, None, 0)
        store.put("Net", NET, None, None, 0)
    memory = ModelStore(2)
    memory.put("Net", LINE, None, None, 0)
    memory.put("net", LINE, None, None, 0)


# -- loading and unloading


def test_an_unloaded_model_is_listed_and_comes_back_when_asked_to(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        version = store.put("net", NET, filled(7.0), None, 0).version
        assert store.unload("net").loaded is False
        assert [(card.name, card.loaded, card.version) for card in store.cards()] == [("net", False, version)]
        with refused("not_loaded", "unloaded", "POST /v1/models/net/load"):
            store.get("net")
        with refused("not_loaded", "unloaded"):
            store.set_params("net", filled(1.0), None)
        assert store.load("net").loaded is True
        assert store.get("net").version == version
        store.unload("net")
        store.delete("net")
        assert store.cards() == []


def test_a_folder_that_comes_while_the_server_runs_is_loaded_by_name(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "model.json").write_text(json.dumps({"source": "layers", "architecture": LINE}))
        with refused("unknown_model"):
            store.get("late")
        assert store.load("late").parameter_count == 2
        for name in ("absent", "../outside", "Late"):
            with refused("unknown_model"):
                store.load(name)


def test_without_a_repository_nothing_is_unloaded() -> None:
    store = ModelStore(10)
    store.put("net", LINE, None, None, 0)
    for action in (store.unload, store.load):
        with refused("invalid_request", "in memory only", "--repository DIR"):
            action("net")


# -- damage


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def params(folder: Path) -> Path:
    (file,) = folder.glob("params-*")
    return file


def edited(folder: Path, **members: Any) -> None:
    config = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**config, **members}))


def misshapen(folder: Path) -> None:
    save_file({**filled(1.0), "layer_1.bias": np.ones(4, np.float32)}, params(folder))


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "torn parameters": (lambda folder: torn(params(folder)), ("params-", "no whole safetensors file")),
    "empty parameters": (lambda folder: params(folder).write_bytes(b""), ("params-", "of 0 bytes")),
    "no parameters": (lambda folder: params(folder).unlink(), ("params-", "is missing")),
    "a flipped bit": (lambda folder: flipped(params(folder)), ("params-", "have the version", "not ")),
    "wrong shapes": (misshapen, ("params-", "layer_1.bias has shape (4,)")),
    "no state": (lambda folder: next(folder.glob("state-*")).unlink(), ("state-", "is missing")),
    "no configuration": (lambda folder: (folder / "model.json").unlink(), ("model.json is missing",)),
    "an empty configuration": (lambda folder: (folder / "model.json").write_text(""), ("not valid JSON",)),
    "a torn configuration": (lambda folder: torn(folder / "model.json"), ("not valid JSON", "line ")),
    "a configuration of no text": (
        lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe\x00"),
        ("not valid JSON",),
    ),
    "a configuration too deep": (
        lambda folder: (folder / "model.json").write_text("[" * 100_000),
        ("not valid JSON",),
    ),
    "an unknown member": (lambda folder: edited(folder, parms="x"), ("model.json: parms",)),
    "another format": (lambda folder: edited(folder, format=2), ("model.json: format",)),
    "a path in place of a file": (
        lambda folder: edited(folder, params="../../secret"),
        ("model.json: params",),
    ),
    "no source": (lambda folder: edited(folder, architecture=None), ('needs the member "architecture"',)),
    "a bad architecture": (
        lambda folder: edited(folder, architecture={"layers": [{"dnse": [1, 1]}]}),
        ("its architecture", "did you mean 'dense'"),
    ),
    "an architecture of other parameters": (
        lambda folder: edited(folder, architecture=LINE),
        ("params-", "layer_1.weight"),
    ),
    "a Python model without its file": (
        lambda folder: edited(folder, source="python", architecture=None, digest="d"),
        ("no file of --models",),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_named_and_the_rest_is_served(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, says = DAMAGE[name]
    with hosting(tmp_path) as store:
        store.put("good", LINE, None, None, 0)
        store.put("bad", NET, filled(1.0), None, 0)
    damage(tmp_path / "bad")
    found = {file.name: file.read_bytes() for file in (tmp_path / "bad").iterdir()}
    with hosting(tmp_path) as store:
        assert [card.name for card in store.cards()] == ["good"]
        (failure,) = store.failed()
        assert (failure.name, failure.place) == ("bad", str(tmp_path / "bad"))
        assert failure.reason in caplog.text
        for word in says:
            assert word in failure.reason
        for ask in (
            store.get,
            store.card,
            store.load,
            lambda name: store.set_params(name, filled(1.0), None),
        ):
            with refused("not_loaded", "'bad' could not be loaded", failure.reason[:60]):
                ask("bad")
        # Whatever was there still is, for whoever can repair it ...
        assert {file.name: file.read_bytes() for file in (tmp_path / "bad").iterdir()} == found
        # ... until somebody says otherwise.
        store.put("bad", NET, filled(2.0), None, 0)
        assert store.failed() == []
    with hosting(tmp_path) as store:
        assert store.get("bad").params["layer_1.bias"].tolist() == [2.0] * 3


def test_a_repaired_model_is_loaded_again_and_a_failed_one_can_be_deleted(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        store.put("net", NET, filled(1.0), None, 0)
        store.put("other", LINE, None, None, 0)
    copy = params(tmp_path / "net").read_bytes()
    torn(params(tmp_path / "net"))
    torn(params(tmp_path / "other"))
    with hosting(tmp_path) as store:
        params(tmp_path / "net").write_bytes(copy)
        assert store.load("net").loaded
        store.delete("other")
        assert store.failed() == []
    assert not (tmp_path / "other").exists()


def test_damage_beside_a_running_server_leaves_what_is_in_memory(tmp_path: Path) -> None:
    with hosting(tmp_path) as store:
        store.put("net", NET, filled(1.0), None, 0)
        torn(params(tmp_path / "net"))
        with refused("not_loaded", "no whole safetensors file"):
            store.load("net")
        assert store.get("net").params["layer_1.bias"].tolist() == [1.0] * 3


def test_a_folder_with_an_impossible_name_is_told_and_strangers_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "my net").mkdir()
    (tmp_path / "my net" / "model.json").write_text("{}")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_text("a note")
    with hosting(tmp_path) as store:
        assert [failure.name for failure in store.failed()] == ["my net"]
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "lost+found").exists()


# -- crashes


class PowerCut(BaseException):
    """The end of the process, wherever it stands."""


class Machine:
    """Counts what a process asks of the file system, and ends it at one of these calls, for good."""

    def __init__(self, patch: pytest.MonkeyPatch, ends_at: int | None) -> None:
        self.calls = 0
        self._ends_at = ends_at
        for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, self._counted(getattr(os, name)))
        patch.setattr(durable, "open", self._open, raising=False)

    def _step(self) -> None:
        self.calls += 1
        if self._ends_at is not None and self.calls >= self._ends_at:
            raise PowerCut

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._step()
            return call(*arguments, **options)

        return counted

    def _open(self, *arguments: Any) -> Any:
        self._step()
        file = builtins.open(*arguments)  # noqa: SIM115 - closed by the one who opened it
        write = file.write

        def torn_write(data: bytes) -> int:
            try:
                self._step()
            except PowerCut:
                write(data[: len(data) // 2])
                file.close()
                raise
            return int(write(data))

        class Torn:
            def __enter__(self) -> Torn:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                return torn_write(data)

            def flush(self) -> None:
                file.flush()

            def fileno(self) -> int:
                return int(file.fileno())

        return Torn()


CHANGES: dict[str, Callable[[ModelStore], object]] = {
    "new parameters": lambda store: store.set_params("net", filled(2.0), None),
    "the same parameters again": lambda store: store.set_params("net", filled(1.0), None),
    "another architecture": lambda store: store.put("net", LINE, None, None, 0),
    "a new model": lambda store: store.put("new", LINE, None, None, 0),
    "a deletion": lambda store: store.delete("net"),
}


def contents(store: ModelStore) -> dict[str, str]:
    assert store.failed() == []
    for card in store.cards():
        hosted = store.get(card.name)
        assert hosted.version == version_of(hosted.params, hosted.state)
    return {card.name: card.version for card in store.cards()}


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_at_any_call_leaves_the_old_or_the_new(tmp_path: Path, change: str) -> None:
    """Every call to the file system in turn is the last one; a write that is cut leaves half of its bytes."""

    def begin(folder: Path) -> dict[str, str]:
        with hosting(folder) as store:
            store.put("net", NET, filled(1.0), None, 0)
            return contents(store)

    before = begin(tmp_path / "whole")
    with hosting(tmp_path / "whole") as store, pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, None)
        CHANGES[change](store)
        after, steps = contents(store), machine.calls
    assert steps > 4
    outcomes = []
    for step in range(1, steps + 1):
        folder = tmp_path / str(step)
        begin(folder)
        with hosting(folder) as store, pytest.MonkeyPatch.context() as patch:
            Machine(patch, step)
            with pytest.raises(PowerCut):
                CHANGES[change](store)
        with hosting(folder) as store:
            outcomes.append(contents(store))
            assert outcomes[-1] in (before, after)
            # The leftovers are gone, and the folder takes changes.
            for name in contents(store):
                files = {file.name for file in (folder / name).iterdir()}
                assert len(files) == 2 + bool(store.get(name).state)
            store.put("next", LINE, None, None, 0)
        assert {entry.name for entry in folder.iterdir()} == {".lock", "next", *outcomes[-1]}
    # Never back to the old one after the new one was there.
    assert outcomes == sorted(outcomes, key=lambda found: found == after)
    assert outcomes[-1] == after


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads file names from /proc")
@pytest.mark.parametrize("change", CHANGES)
def test_contents_are_flushed_before_names_and_names_before_the_answer(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power needs: each rename of a flushed file, the commit after a flush of the folder."""
    with hosting(tmp_path) as store:
        store.put("net", NET, filled(1.0), None, 0)
        flushed: list[str] = []
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def flush(descriptor: int) -> None:
            fsync(descriptor)
            flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))

        def put_in_place(source: Any, target: Any) -> None:
            assert str(source) in flushed
            if Path(target).name == "model.json" and (Path(target).parent / "model.json").exists():
                assert flushed[-2] == str(Path(target).parent)  # then the configuration itself
            replace(source, target)
            flushed.append(f"replaced {target}")

        def move(source: Any, target: Any) -> None:
            rename(source, target)
            flushed.append(f"renamed {target}")

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "replace", put_in_place)
        monkeypatch.setattr(os, "rename", move)
        CHANGES[change](store)
    last = flushed[-2].split(" ", 1)
    assert last[0] in ("replaced", "renamed")
    assert flushed[-1] == str(Path(last[1]).parent)


def test_a_disk_that_is_full_is_a_refusal_and_changes_nothing(tmp_path: Path) -> None:
    """A real server whose files may not grow beyond 20 kB."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from nablad.command_line import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "serve", "--port", "0", "--repository", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            with nablad.Client(server.stdout.readline().split()[3]) as client:
                before = client.create_model("net", {"layers": [{"dense": [20, 100]}]})
                with pytest.raises(nablad.Unavailable, match=r"cannot keep 'net'.*still is") as caught:
                    client.create_model("net", {"layers": [{"dense": [100, 100]}]})
                assert caught.value.code == "storage"
                with pytest.raises(nablad.Unavailable, match="cannot keep 'new'"):
                    client.create_model("new", {"layers": [{"dense": [100, 100]}]})
                assert client.models() == [before]
        finally:
            server.terminate()
            server.communicate(timeout=30)
    with hosting(tmp_path) as store:
        assert contents(store) == {"net": before.version}
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "net"}


def test_a_killed_server_keeps_the_last_acknowledged_parameters() -> None:
    """SIGKILL at random moments of a stream of changes; KILLS says how often, 40 by default."""
    script = Path(__file__).parent / "kill_the_server.py"
    done = subprocess.run([sys.executable, script, KILLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"kills: {KILLS}," in done.stdout


# -- one server a folder


def serve(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nablad", "serve", "--port", "0", *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )


def test_two_servers_cannot_share_a_folder(tmp_path: Path) -> None:
    with local_server("--repository", str(tmp_path)) as url:
        second = serve("--repository", str(tmp_path))
        assert second.returncode == 4
        assert f"another server has the repository {tmp_path} (process " in second.stderr
        assert "Traceback" not in second.stderr
        assert second.stdout == ""
        with nablad.Client(url) as client:
            client.create_model("net", LINE)
    with local_server("--repository", str(tmp_path)) as url, nablad.Client(url) as client:
        assert [model.name for model in client.models()] == ["net"]


def test_a_folder_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = serve(NABLAD_REPOSITORY=str(tmp_path / "file" / "models"))
    assert done.returncode == 4
    assert "cannot be used: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_names_its_damaged_models_and_is_ready(tmp_path: Path) -> None:
    """Over HTTP and on the command line, from a server that was stopped in between."""
    with local_server("--repository", str(tmp_path)) as url, nablad.Client(url) as client:
        client.create_model("good", LINE)
        client.create_model("bad", LINE)
        client.unload_model("good")
        with pytest.raises(nablad.RequestError, match="POST /v1/models/good/load"):
            client.apply("good", [1.0])
        assert client.load_model("good").loaded
    torn(params(tmp_path / "bad"))
    with local_server("--repository", str(tmp_path)) as url, nablad.Client(url) as client:
        client.apply("good", [1.0])
        (failure,) = client.failed_models()
        assert failure.name == "bad"
        with pytest.raises(nablad.RequestError, match="'bad' could not be loaded: params-") as caught:
            client.apply("bad", [1.0])
        assert (caught.value.code, caught.value.status) == ("not_loaded", 409)
        listed = subprocess.run(
            [sys.executable, "-m", "nablad", "models", "--url", url], capture_output=True, text=True
        )
        assert f"bad  FAILED  {tmp_path / 'bad'}: params-" in listed.stdout
        assert "good  layers  x (1)  2 parameters in 2 arrays  version" in listed.stdout


def test_a_stop_in_the_middle_of_changes_ends_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nablad", "serve", "--port", "0", "--repository", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        with nablad.Client(server.stdout.readline().split()[3]) as client:
            version = client.create_model("net", NET, filled(4.0)).version
        server.send_signal(signal.SIGTERM)
        _, printed = server.communicate(timeout=30)
    assert server.returncode == 0, printed
    with hosting(tmp_path) as store:
        assert store.get("net").version == version
