"""Kill a server with SIGKILL while parameters are being put, start it again, and look at what it has.

    python tests/service/kill_the_server.py 200 --seed 1

Each round starts `nablad serve` on one repository, as a process of its own, and a client streams changes to
it: new parameters of one model, whose leaves all hold the same number, and a second model that comes and
goes. At a random moment the server is killed. The next server must have the last change that was
acknowledged, or the one that was in flight, as a whole. Ends with 1 and a sentence where it does not.

Servers are forked from this process, which has imported everything: a round takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np

import nablad
from nablad.content import version_of
from nablad_service.serving import serve
from nablad_service.settings import Settings

ARCHITECTURE = {
    "layers": [{"dense": [60, 200], "activation": "tanh"}, {"batchnorm": 200}, {"dense": [200, 60]}]
}
LONGEST = 0.08
"""Seconds from a round's last awaited answer to the kill, at most: a change takes some 20 milliseconds."""


class Server:
    """A forked `nablad serve` with these settings."""

    def __init__(self, **settings: str) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(writing, 1)
            try:
                os._exit(serve(Settings(**settings, port=0)))
            finally:
                os._exit(99)
        os.close(writing)
        with os.fdopen(reading) as said:
            line = said.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            raise SystemExit(f"the server did not start: {line!r}")
        self.url = found.group()

    def kill(self) -> None:
        """End it without a word; once is enough."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


class Stream:
    """Changes sent one after the other on a thread, until the connection breaks."""

    def __init__(self, client: nablad.Client, begin: int, other: bool) -> None:
        self._client = client
        self.begin = begin
        self.acknowledged = self.sent = begin
        self.other_acknowledged = self.other_sent = other
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._change()
        except nablad.ConnectionFailed:
            pass
        except BaseException as error:
            self.failure = error
        with self.changed:
            self.changed.notify_all()

    def _change(self) -> None:
        if (self.sent + 1) % 4 == 0 and self.other_sent == self.other_acknowledged:
            self.other_sent = not self.other_acknowledged
            if self.other_sent:
                self._client.create_model("other", {"layers": [{"dense": [20, 20]}]})
            else:
                self._client.delete_model("other")
            self.other_acknowledged = self.other_sent
        self.sent += 1
        params, state = filled(self.sent)
        version = self._client.set_params("net", params, state)
        if version != version_of(params, state):
            raise SystemExit(f"change {self.sent} was acknowledged with version {version}")
        with self.changed:
            self.acknowledged = self.sent
            self.changed.notify_all()

    def wait_for(self, changes: int) -> None:
        with self.changed:
            self.changed.wait_for(
                lambda: self.acknowledged >= self.begin + changes or self.failure, timeout=60
            )

    def end(self) -> None:
        self._thread.join()
        if self.failure is not None:
            raise self.failure


def filled(number: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and state of the model, every entry the same number."""
    shapes = {
        "layer_1.weight": (200, 60),
        "layer_1.bias": (200,),
        "layer_2.scale": (200,),
        "layer_2.bias": (200,),
    }
    shapes |= {"layer_3.weight": (60, 200), "layer_3.bias": (60,)}
    states = {"layer_2.running_mean": (200,), "layer_2.running_var": (200,)}
    params, state = (
        {name: np.full(shape, number, np.float32) for name, shape in each.items()}
        for each in (shapes, states)
    )
    return params, state


def main(rounds: int, seed: int, repository: Path) -> Counter[str]:
    """Kill and look; the counts say where the kills struck."""
    moments, seen = random.Random(seed), Counter[str]()
    stream: Stream | None = None
    for turn in range(rounds + 1):
        server = Server(repository=str(repository))
        try:
            with nablad.Client(server.url, timeout=60) as client:
                if stream is None:
                    client.create_model("net", ARCHITECTURE, *filled(0))
                    last, other = 0, False
                else:
                    last, other = looked_at(client, stream, seen)
                if turn == rounds:
                    break
                stream = Stream(client, last, other)
                stream.wait_for(moments.randrange(1, 4))
                # Not a wait for something to be ready: the moment of the kill is what is drawn.
                threading.Event().wait(moments.uniform(0, LONGEST))
                server.kill()
                stream.end()
        finally:
            server.kill()
        leftovers = [*repository.glob("*/.tmp-*"), *repository.glob(".new-*"), *repository.glob(".gone-*")]
        versions = len(list(repository.glob("net/params-*")))
        seen["kills"] += 1
        seen["while a file was written"] += bool(leftovers)
        seen["between files and commit, or before old files went"] += versions > 1 and not leftovers
    return seen


def looked_at(client: nablad.Client, stream: Stream, seen: Counter[str]) -> tuple[int, bool]:
    """What the new server has, checked against what the old one acknowledged."""
    failed = client.failed_models()
    if failed:
        raise SystemExit(f"after {stream.acknowledged}: {failed}")
    resident = client.params("net")
    numbers = {
        float(value) for leaf in (*resident.params.values(), *resident.state.values()) for value in leaf.flat
    }
    if len(numbers) != 1:
        raise SystemExit(f"after {stream.acknowledged}: parameters of several changes, {sorted(numbers)[:5]}")
    (number,) = numbers
    if number not in (stream.acknowledged, stream.sent):
        raise SystemExit(f"{stream.acknowledged} was acknowledged, {number} is there")
    if resident.version != version_of(*filled(int(number))):
        raise SystemExit(f"{number} has the version {resident.version}")
    names = {model.name for model in client.models()}
    if ("other" in names) not in (stream.other_acknowledged, stream.other_sent):
        raise SystemExit(f"the other model: {stream.other_acknowledged} was acknowledged, there are {names}")
    seen["in flight, kept"] += number > stream.acknowledged
    seen["in flight, gone"] += number < stream.sent
    seen["changes acknowledged"] += stream.acknowledged - stream.begin
    return int(number), "other" in names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("rounds", type=int, nargs="?", default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counted = main(arguments.rounds, arguments.seed, Path(folder))
    print(", ".join(f"{name}: {count}" for name, count in counted.items()), flush=True)
    sys.stdout.flush()
    os._exit(0)
