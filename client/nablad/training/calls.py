"""The calls about training without their I/O: what to send, and how to read what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

from nablad.calls import Call, Calls
from nablad.results import Gradient
from nablad.training.messages import Ended, RunStanding, Standing
from nablad.training.results import (
    SessionGradientResult,
    StepResult,
    TrainedParams,
    read_gradients,
    read_session_gradient,
    read_step,
    read_trained,
)

T = TypeVar("T")

Build: TypeAlias = "Callable[[Mapping[str, Any], Mapping[str, int]], Call[T]]"
"""Makes a session's call of its members, and the members that number it."""

EVENT_STREAM = "text/event-stream"


class SessionCalls:
    """The calls of one session; `number` are the members that number a call."""

    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self._path = session_path(name)

    def gradient(self, members: Mapping[str, Any], number: Mapping[str, int]) -> Call[SessionGradientResult]:
        """`POST /v1/sessions/{name}/gradient`."""
        return self._calls.call(
            "POST", f"{self._path}/gradient", {**members, **number}, read_session_gradient
        )

    def step(self, members: Mapping[str, Any], number: Mapping[str, int]) -> Call[StepResult]:
        """`POST /v1/sessions/{name}/step`."""
        return self._calls.call("POST", f"{self._path}/step", {**members, **number}, read_step)

    def save(self, members: Mapping[str, Any], number: Mapping[str, int]) -> Call[Standing]:
        """`POST /v1/sessions/{name}/save`."""
        return self._calls.call("POST", f"{self._path}/save", {**members, **number}, Standing.model_validate)

    def load(self, members: Mapping[str, Any], number: Mapping[str, int]) -> Call[Standing]:
        """`POST /v1/sessions/{name}/load`."""
        return self._calls.call("POST", f"{self._path}/load", {**members, **number}, Standing.model_validate)

    def params(self) -> Call[TrainedParams]:
        """`GET /v1/sessions/{name}/params`."""
        return self._calls.call("GET", f"{self._path}/params", None, read_trained)

    def gradients(self) -> Call[dict[str, Gradient]]:
        """`GET /v1/sessions/{name}/gradients`."""
        return self._calls.call("GET", f"{self._path}/gradients", None, read_gradients)

    def standing(self) -> Call[Standing]:
        """`GET /v1/sessions/{name}`."""
        return self._calls.call("GET", self._path, None, Standing.model_validate)

    def delete(self) -> Call[None]:
        """`DELETE /v1/sessions/{name}`."""
        return _without_answer(self._calls, "DELETE", self._path)


def begin_session(calls: Calls, members: Mapping[str, Any]) -> Call[Standing]:
    """`POST /v1/sessions`: not to be sent twice, since the first may have begun one."""
    return replace(
        calls.call("POST", "/v1/sessions", dict(members), Standing.model_validate), repeatable=False
    )


def sessions(calls: Calls) -> Call[list[Standing]]:
    """`GET /v1/sessions`."""
    return calls.call(
        "GET",
        "/v1/sessions",
        None,
        lambda answer: [Standing.model_validate(one) for one in answer["sessions"]],
    )


def delete_session(calls: Calls, name: str) -> Call[None]:
    """`DELETE /v1/sessions/{name}`."""
    return _without_answer(calls, "DELETE", session_path(name))


def runs(calls: Calls) -> Call[list[RunStanding]]:
    """`GET /v1/train`."""
    return calls.call(
        "GET", "/v1/train", None, lambda answer: [RunStanding.model_validate(one) for one in answer["runs"]]
    )


def delete_run(calls: Calls, name: str) -> Call[None]:
    """`DELETE /v1/train/{name}`."""
    return _without_answer(calls, "DELETE", run_path(name))


def begin_run(calls: Calls, members: Mapping[str, Any]) -> Call[None]:
    """`POST /v1/train`; the answer is a stream of events."""
    return _stream(replace(calls.call("POST", "/v1/train", dict(members), _nothing), repeatable=False))


def events(calls: Calls, name: str, last: str | None) -> Call[None]:
    """`GET /v1/train/{name}/events`, from behind the event `last` on."""
    call = calls.call("GET", f"{run_path(name)}/events", None, _nothing)
    added = {} if last is None else {"Last-Event-ID": last}
    return _stream(replace(call, headers={**call.headers, **added}))


def stop_run(calls: Calls, name: str) -> Call[Ended]:
    """`POST /v1/train/{name}/stop`."""
    return calls.call("POST", f"{run_path(name)}/stop", None, Ended.model_validate)


def run_params(calls: Calls, name: str) -> Call[TrainedParams]:
    """`GET /v1/train/{name}/params`."""
    return calls.call("GET", f"{run_path(name)}/params", None, read_trained)


def session_path(name: str) -> str:
    """Where a session is."""
    return f"/v1/sessions/{quote(name, safe='')}"


def run_path(name: str) -> str:
    """Where a run is."""
    return f"/v1/train/{quote(name, safe='')}"


def _without_answer(calls: Calls, method: str, path: str) -> Call[None]:
    return replace(calls.call(method, path, None, _nothing), read=_nothing)


def _stream(call: Call[None]) -> Call[None]:
    return replace(call, headers={**call.headers, "Accept": EVENT_STREAM}, read=_nothing)


def _nothing(answer: Any) -> None:
    return None
