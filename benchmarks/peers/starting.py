"""The peers' environment, their servers and their clients: made, started and ended from here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measuring import Block, agree
from processes import Process, free_port, wait_until_ready

from peers import mlp

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nablad" / "benchmark-peers"
WANTED = ("umbridge>=1.2", "tesseract-core[runtime]>=1.15", f"jax=={jax.__version__}")


class NoPeers(Exception):
    """They cannot be had, and why."""


def environment(given: str | None, *, make: bool) -> Path:
    """The Python of the peers: the one that is given, else one of our own, made where there is none.

    Raises:
        NoPeers: where they were declined, cannot be installed, or need not be.
    """
    if given == "none":
        raise NoPeers("the peers were left out: --peers none")
    if given is not None:
        return Path(given)
    python = CACHE / "bin" / "python"
    if (CACHE / "complete").exists():
        return python
    if not make:
        raise NoPeers("the peers were left out: --quick does not install them")
    print(f"installing {', '.join(WANTED)} into {CACHE}", file=sys.stderr, flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", CACHE], check=True, capture_output=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *WANTED], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise NoPeers(f"the peers cannot be installed: {said[-1] if said else error}") from error
    (CACHE / "complete").touch()
    return python


@contextmanager
def peers(
    python: Path, kinds: Sequence[str], widths: Sequence[int], examples: int
) -> Iterator[dict[str, Block]]:
    """Blocks of calls by kind: "umbridge", "umbridge kept", "tesseract", "tesseract binref".

    Servers and clients are warm, and their gradients are those of JAX here.

    Raises:
        NoPeers: where one of them does not start.
        Disagreement: where a gradient is another.
    """
    params, x, y = mlp.drawn(widths, examples)
    env = {**os.environ, "MLP_SIZES": ",".join(map(str, widths))}
    env.pop("PYTHONPATH", None)
    expected = np.asarray(mlp.flat_gradient(widths)(mlp.flat(params), x, y))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nablad-peers-")))
        values = folder / "values.npz"
        np.savez(values, params=mlp.flat(params), x=x, y=y)
        urls: dict[str, str] = {}
        blocks: dict[str, Block] = {}
        for kind in kinds:
            server = kind.removesuffix(" kept")
            own = folder / server.replace(" ", "_")
            try:
                if server not in urls:
                    own.mkdir()
                    urls[server] = stack.enter_context(_server(python, server, examples, env, own))
                command = [str(python), str(HERE / "caller.py"), kind.removesuffix(" binref"), urls[server]]
                caller = stack.enter_context(Process([*command, str(values), str(own)], env=env))
            except (RuntimeError, TimeoutError, OSError) as error:
                raise NoPeers(f"{kind} does not start: {error}") from error
            found = folder / f"{kind}.npy"
            caller.ask(f"save {found}")
            agree(kind, np.load(found), expected)
            blocks[kind] = lambda count, caller=caller: json.loads(caller.ask(f"time {count}"))
        yield blocks


@contextmanager
def _server(python: Path, kind: str, examples: int, env: Mapping[str, str], folder: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given: dict[str, Any] = {**env}
    if kind == "umbridge":
        command = [python, HERE / "umbridge_server.py", str(port), str(examples)]
        asked = "/Info"
    else:
        given["TESSERACT_API_PATH"] = str(HERE / "tesseract_api.py")
        given["TESSERACT_OUTPUT_PATH"] = str(folder)
        given["TESSERACT_OUTPUT_FORMAT"] = "json+binref" if kind.endswith("binref") else "json+base64"
        command = [python, "-m", "tesseract_core.runtime.cli", "serve", "--host", "127.0.0.1"]
        command += ["--port", str(port)]
        asked = "/health"
    # They log every call: into a file, since nobody would empty a pipe.
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=given, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            wait_until_ready(url, asked)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
