"""An artifact is tried in a process of its own before this one looks at it.

MLIR and XLA are written for files of friends: of 2400 artifacts with bits flipped or bytes torn, 11 ended the
process that read or compiled them. So a child reads the bytes, walks the code, compiles the model and every
vjp. The server repeats only the part in Python, on bytes that passed. The child knows no
classes but JAX's own: what an operator's file registers for `jax.export` is out of reach of an upload.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax

from nablad.problems import Refusal
from nablad_models.stablehlo.code import check_code
from nablad_models.stablehlo.reading import invalid, read
from nablad_models.stablehlo.trial import compile_all

SECONDS = 120.0
"""For all of it: some 2 seconds to start, then compiling."""

MEMORY = 16 * 2**30
"""Bytes of address space. A small model needs 1.7 GiB of it, of which it touches a sixth."""


def examine(data: bytes, seconds: float = SECONDS) -> None:
    """Let the artifact in `data` pass, or refuse it.

    Takes 2 seconds and more: start it off the event loop.

    Raises `Refusal("invalid_artifact")`.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, env=environment, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise invalid(
            f"trying the artifact took longer than {seconds:.0f} seconds; export a smaller model, "
            "or fewer derivatives of it"
        ) from None
    try:
        verdict: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        # What it has to say about a crash is for the compiler's authors; the artifact is what was wrong.
        raise invalid(
            f"the process that tried the artifact ended (status {done.returncode}): the bytes are torn, or "
            "the model needs more memory than a server lends it"
        ) from None
    if "refusal" in verdict:
        raise Refusal(**verdict["refusal"])


def _verdict(data: bytes) -> dict[str, Any]:
    """In the child."""
    try:
        artifact = read(data, "cpu")
        check_code(artifact)
        compile_all(artifact)
        return {}
    except Refusal as refusal:
        return {"refusal": {"code": refusal.code, "detail": refusal.detail}}
    except (jax.errors.JaxRuntimeError, ValueError) as problem:
        first = str(problem).strip().partition("\n")[0]
        return _refused(f"the artifact does not compile: {first}.")
    except Exception:
        # What the compiler's bindings say of torn bytes helps nobody.
        return _refused("the artifact does not compile: the bytes are torn.")


def _refused(detail: str) -> dict[str, Any]:
    return {"refusal": {"code": "invalid_artifact", "detail": detail}}


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """What the child runs: bytes on standard input, the verdict as the last line of standard output."""
    _limit_memory()
    print(json.dumps(_verdict(sys.stdin.buffer.read())))
