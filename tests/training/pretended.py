"""Sessions without mathematics: order, repeats and generations, and connections that break when told to."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx

from nablad.problems import Problem, Refusal

OPTIMISER = {"name": "sgd", "learning_rate": 0.1}


class PretendedServer:
    """Keeps one session; give `transport()` to a client whose format is "json"."""

    def __init__(self) -> None:
        self.sequence = self.step = self.saved_step = self.saved_sequence = 0
        self.generation = 1
        self.accumulated = 0
        self.exists = False
        self.bodies: list[dict[str, Any]] = []
        """Of the numbered calls, as they came."""
        self.done: list[str] = []
        self.losing: set[int] = set()
        """Sequence numbers whose first answer is lost on the way, after the call was done."""
        self.refused: set[int] = set()
        self.turn = threading.Condition()
        self.answers: dict[int, httpx.Response] = {}
        self.gate = threading.Event()
        """Calls wait for it before they are done."""
        self.gate.set()

    def restart(self) -> None:
        """What was not saved is gone."""
        with self.turn:
            self.step, self.sequence, self.accumulated = self.saved_step, self.saved_sequence, 0
            self.generation += 1
            self.answers = {}
            self.turn.notify_all()

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        word = request.url.path.removeprefix("/v1/sessions").removeprefix("/run").strip("/")
        if request.method == "DELETE":
            self.exists = False
            return httpx.Response(204)
        if request.method == "GET" and not self.exists:
            return refused(Refusal("unknown_session", "there is no session 'run'"))
        if request.method == "GET" and not word:
            return httpx.Response(200, json=self.standing())
        if request.method == "GET":
            params = {"layer_1.weight": [[float(self.step)]]}
            body = {"step": self.step, "params": {"model": params}, "state": {"model": {}}, "trained": {}}
            return httpx.Response(200, json=body)
        body = json.loads(b"".join(request.stream))
        if not word:
            self.exists = True
            return httpx.Response(200, json=self.standing())
        return self.numbered(word, body)

    def numbered(self, word: str, body: dict[str, Any]) -> httpx.Response:
        number = body["sequence"]
        with self.turn:
            self.bodies.append(body)
            self.turn.notify_all()
        self.gate.wait(10)
        with self.turn:
            self.turn.wait_for(lambda: self.stale(body) or self.sequence >= number - 1, 10)
            if self.stale(body):
                stood = {"step": self.step, "sequence": self.sequence, "generation": self.generation}
                return refused(Refusal("session_restored", "session 'run' came from a save", extra=stood))
            if number not in self.answers:
                self.sequence = number
                self.answers[number] = self.do(word, number)
                self.turn.notify_all()
            if number in self.losing:
                self.losing.discard(number)
                raise httpx.ReadError("the connection broke")
            return self.answers[number]

    def stale(self, body: dict[str, Any]) -> bool:
        return bool(body["generation"] != self.generation)

    def do(self, word: str, number: int) -> httpx.Response:
        if number in self.refused or (word == "step" and not self.accumulated):
            return refused(Refusal("invalid_request", f"call {number} is refused"))
        self.done.append(f"{word} {number}")
        if word == "gradient":
            self.accumulated += 1
            answer: dict[str, Any] = {"value": 0.5, "terms": {"fit": 0.5}, "norms": {"model.params": 2.0}}
            answer |= {"accumulated": self.accumulated, "timing": {}}
        elif word == "step":
            self.step, self.accumulated = self.step + 1, 0
            answer = {"step": self.step, "learning_rate": 0.1, "gradient_norm": 2.0, "update_norm": 0.2}
        else:
            self.saved_step, self.saved_sequence = self.step, self.sequence
            answer = self.standing()
        return httpx.Response(200, json={**answer, "sequence": number})

    def standing(self) -> dict[str, Any]:
        return {
            "name": "run",
            "sequence": self.sequence,
            "generation": self.generation,
            "step": self.step,
            "accumulated": self.accumulated,
            "saved": [self.saved_step],
            "loaded": True,
            "optimiser": OPTIMISER,
            "models": {"model": "net"},
            "bytes": 100,
            "last_used": "2026-01-01T00:00:00Z",
        }


def refused(refusal: Refusal) -> httpx.Response:
    problem = Problem.of(refusal)
    headers = {"content-type": "application/problem+json"}
    return httpx.Response(problem.status, content=problem.json_bytes(), headers=headers)
