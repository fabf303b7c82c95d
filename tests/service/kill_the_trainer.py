"""Kill a server with SIGKILL while a session trains, start it again, and go on from where it says it stands.

    python tests/service/kill_the_trainer.py 200 --seed 1

What each call of the session does follows from its number: gradients of batches drawn from it, steps, saves.
Several are under way at once. After a kill the session must stand at a save, the last one that was
acknowledged or a later one, and every call that is done again must answer the same as the first time, bit
for bit. At the end a session that nobody interrupts does all calls once more, and must answer the same too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kill_the_server import Server

BOTH = "gradient with its step"
CYCLE = ("gradient", "gradient", "step", BOTH, BOTH, "gradient", "step", "save", "gradient", BOTH)
LOSS = "r = tanh(x @ w) - y + 0.01 * normal(y, 1, 0)[0]\nmean(r**2)"
SESSION = {
    "trained": {"w": {"dtype": "float32", "shape": [400], "data": [0.1] * 400}},
    "optimiser": {"name": "adamw", "learning_rate": 1e-2, "clip_norm": 1.0},
    "seed": 5,
}
TOGETHER = 3
"""Calls under way at once."""
LONGEST = 0.05
"""Seconds from a round's last awaited answer to the kill, at most: a call takes some 3 milliseconds."""


def body_of(number: int) -> tuple[str, dict[str, Any]]:
    """What a call does."""
    kind = CYCLE[(number - 1) % len(CYCLE)]
    if kind in ("step", "save"):
        return kind, {}
    numbers = np.random.default_rng(number)
    x = numbers.standard_normal((4, 400)).round(3)
    inputs = {"x": x.tolist(), "y": numbers.standard_normal(4).tolist()}
    return kind, {"loss": LOSS, "inputs": inputs, **({"step": {}} if kind == BOTH else {})}


class Training:
    """Calls of one generation of the session, sent by several threads until the connection breaks."""

    def __init__(self, url: str, name: str, generation: int, done: int, answers: dict[int, Any]) -> None:
        self._url, self._name, self._generation = url, name, generation
        self._numbers = itertools.count(done + 1)
        self._lock = threading.Lock()
        self._answers = answers
        self.answered = Counter[str]()
        self.saved = 0
        self.changed = threading.Condition()
        self.failures: list[str] = []

    @contextmanager
    def under_way(self, last: int | None = None) -> Iterator[None]:
        """Calls are sent, up to number `last`; the end waits for those that are."""
        with ThreadPoolExecutor(TOGETHER) as pool:
            for _ in range(TOGETHER):
                pool.submit(self._send, last)
            yield

    def _send(self, last: int | None) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self.failures:
                with self._lock:
                    number = next(self._numbers)
                if last is not None and number > last:
                    return
                try:
                    self._call(http, number)
                except httpx.TransportError:
                    return
                except Exception as error:
                    self.failures.append(f"call {number}: {error!r}")
                with self.changed:
                    self.changed.notify_all()

    def _call(self, http: httpx.Client, number: int) -> None:
        kind, members = body_of(number)
        numbered = {"sequence": number, "generation": self._generation, **members}
        path = "gradient" if kind == BOTH else kind
        answer = http.post(f"/v1/sessions/{self._name}/{path}", json=numbered)
        if answer.status_code != 200:
            raise AssertionError(answer.text)
        told = answer.json()
        if kind == "save":
            self.saved = max(self.saved, number)
        else:
            told.pop("timing", None)
            before = self._answers.setdefault(number, told)
            if before != told:
                raise AssertionError(f"answered {before} the first time, and now {told}")
        self.answered[kind] += 1

    def wait_for(self, calls: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.answered.total() >= calls or self.failures, timeout=60)


def main(rounds: int, seed: int, folder: Path) -> Counter[str]:
    """Kill and go on; the counts say what was seen."""
    moments, seen = random.Random(seed), Counter[str]()
    settings = {"checkpoints": str(folder / "saves"), "cache": str(folder / "cache")}
    answers: dict[int, Any] = {}
    acknowledged = 0
    for turn in range(rounds + 1):
        server = Server(**settings)
        try:
            with httpx.Client(base_url=server.url, timeout=60) as http:
                if turn == 0:
                    http.post("/v1/sessions", json={**SESSION, "name": "run"}).raise_for_status()
                    http.post("/v1/sessions/run/save", json={"sequence": 1}).raise_for_status()
                    done, generation, acknowledged = 1, 1, 1
                else:
                    done, generation = looked_at(http, acknowledged, turn, seen)
                if turn == rounds:
                    compared(server.url, answers)
                    break
            training = Training(server.url, "run", generation, done, answers)
            with training.under_way():
                training.wait_for(moments.randrange(1, 3 * len(CYCLE)))
                # Not a wait for something to be ready: the moment of the kill is what is drawn.
                threading.Event().wait(moments.uniform(0, LONGEST))
                server.kill()
            acknowledged = max(acknowledged, training.saved)
            seen.update(training.answered)
            if training.failures:
                raise SystemExit(training.failures[0])
        finally:
            server.kill()
        seen["kills"] += 1
        seen["while a save was written"] += bool(list(folder.glob("saves/*/run/.tmp-*")))
    seen["numbers"] = max(answers, default=0)
    return seen


def looked_at(http: httpx.Client, acknowledged: int, turn: int, seen: Counter[str]) -> tuple[int, int]:
    """Where the new server says that the session stands: at a save, none that was acknowledged lost."""
    standing = http.get("/v1/sessions/run").json()
    done, generation = standing["sequence"], standing["generation"]
    if done != 1 and body_of(done)[0] != "save":
        raise SystemExit(f"it stands after call {done}, which is no save")
    if done < acknowledged:
        raise SystemExit(f"the save {acknowledged} was acknowledged, it stands at {done}")
    steps = sum(body_of(number)[0] in ("step", BOTH) for number in range(2, done))
    if standing["step"] != steps or generation != turn + 1 or standing["loaded"]:
        raise SystemExit(f"after {steps} steps and {turn} restarts it says {standing}")
    refused = http.post("/v1/sessions/run/step", json={"sequence": done + 1, "generation": generation - 1})
    told = refused.json()
    if (refused.status_code, told["code"], told["sequence"]) != (409, "session_restored", done):
        raise SystemExit(f"a call of the generation before is answered {refused.status_code}, {told}")
    seen["saves that were not acknowledged, kept"] += done > acknowledged
    return done, generation


def compared(url: str, answers: dict[int, Any]) -> None:
    """Do all calls once more, with nobody in the way."""
    with httpx.Client(base_url=url, timeout=60) as http:
        http.post("/v1/sessions", json={**SESSION, "name": "whole"}).raise_for_status()
        http.post("/v1/sessions/whole/save", json={"sequence": 1}).raise_for_status()
    training = Training(url, "whole", 1, 1, answers)
    with training.under_way(last=max(answers, default=0)):
        pass
    if training.failures:
        raise SystemExit(f"uninterrupted, {training.failures[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("rounds", type=int, nargs="?", default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        counted = main(arguments.rounds, arguments.seed, Path(temporary))
    print(", ".join(f"{name}: {count}" for name, count in counted.items()), flush=True)
    sys.stdout.flush()
    os._exit(0)
