"""Every call without its I/O: what to send, and how to read what comes back. Both clients share it."""

from __future__ import annotations

import base64
import platform
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from nablad import wire
from nablad._version import __version__
from nablad.answers import read_check, read_evaluate, read_gradient, read_params
from nablad.arrays import Encoding
from nablad.errors import ConnectionFailed, InvalidAnswer
from nablad.frame import Buffer
from nablad.halves import Floats, check_floats
from nablad.handles import Deduplication, Handle, Sources
from nablad.messages import FailedModel, ModelInfo, OperatorInfo, ValueInfo, WarmProgram
from nablad.pieces import Pieces
from nablad.plans import PlanReport
from nablad.problems import Problem, Refusal
from nablad.question import Encode, Loss, Question, Terms, Tree, plainly, sent, without_data
from nablad.resending import exchange
from nablad.results import CheckResult, EvaluateResult, GradientResult, Params
from nablad.transports.address import Address
from nablad.transports.incoming import Answer
from nablad.transports.translated import REPEATABLE
from nablad.wire import Format

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8421"
# A first call compiles, which may take minutes for large programs; connecting may not.
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)
NOTHING: Mapping[str, str] = {}
USER_AGENT = f"nablad/{__version__} python/{platform.python_version()}"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP exchange: the request to send, and how to read a successful answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: list[Buffer] | None
    """Its pieces, in order."""
    read: Callable[[Answer], T]
    repeatable: bool = True
    """Whether it may be sent a second time, where the connection broke before anything was answered."""
    values: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays that the body names by their handles."""
    missing: tuple[str, ...] = ()
    """Handles of those that the server is not known to have: to be put first."""
    again: Callable[[], Call[T]] | None = None
    """Makes the same call anew, when the server has no room for these."""

    def parts(
        self, address: Address, body: Sequence[Buffer] | None, added: Mapping[str, str] = NOTHING
    ) -> tuple[tuple[Buffer, ...], ...]:
        """The bytes of the request with that `body`, for a transport that does without httpx's objects."""
        headers = {"Host": address.host, **self.headers, **added}
        if body is not None:
            headers["Content-Length"] = str(wire.body_size(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        begin = f"{self.method} {address.prefix}{self.path} HTTP/1.1\r\n{lines}\r\n".encode("ascii")
        return ((begin, *(body or ())),)

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request as `http` would send it."""
        again = {REPEATABLE: self.repeatable}
        built = http.build_request(self.method, self.path, headers=self.headers, extensions=again)
        if self.body is not None:
            pieces = Pieces(self.body)
            built.stream = pieces
            built.headers["Content-Length"] = str(pieces.size)
        return built

    def finish(self, answer: Answer) -> T:
        """The result in `answer`.

        Raises:
            ServiceError: the exception that its problem document stands for.
            InvalidAnswer: where the answer is neither.
        """
        if 200 <= answer.status < 300:
            try:
                return self.read(answer)
            except (KeyError, TypeError, ValueError, Refusal) as error:
                detail = f"the answer to {self.method} {self.path} cannot be read: {error!r}"
                raise InvalidAnswer(detail) from error
        try:
            raise Problem.model_validate_json(bytes(answer.body)).exception()
        except ValidationError:
            detail = f"{self.method} {self.path} answered {answer.status} without a problem document"
            raise InvalidAnswer(detail) from None


class Calls:
    """The calls of the API in one body format."""

    def __init__(
        self,
        format: Format,  # noqa: A002 - the word that callers use
        dedupe_bytes: int | None = None,
        floats: Floats | None = None,
    ) -> None:
        if format not in wire.MEDIA:
            raise ValueError(f"format is 'frame', 'msgpack' or 'json', not {format!r}")
        check_floats(floats)
        self._media = wire.MEDIA[format]
        accept = f"{wire.JSON}; arrays=base64" if format == "json" else self._media
        accept += f"; floats={floats}" if floats else ""
        self._encoding: Encoding = wire.answer_type(accept, self._media)[1]
        self._headers = {
            "Accept": accept,
            # httpx would name all that it can read, and a proxy would compress.
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        self._plainly = plainly(self._encoding)
        self._asking = plainly(self._encoding, floats)
        """As calls about programs send arrays; what stays on the server is sent exactly."""
        self._sources = Sources()
        self._dedupe = None if dedupe_bytes is None else Deduplication(dedupe_bytes)

    def create_model(
        self,
        name: str,
        architecture: Mapping[str, Any] | None,
        params: Tree | None,
        state: Tree | None,
        seed: int,
        stablehlo: bytes | bytearray | None,
    ) -> Call[ModelInfo]:
        """`PUT /v1/models/{name}`."""
        if (architecture is None) == (stablehlo is None):
            raise ValueError("give an architecture, or stablehlo= with what jax.export serialised")
        body = {
            **self._source(architecture, stablehlo),
            "params": self._tree(params),
            "state": self._tree(state),
            "seed": seed,
        }
        return self.call("PUT", _model_path(name), body, lambda answer: ModelInfo.model_validate(answer))

    def _source(
        self, architecture: Mapping[str, Any] | None, stablehlo: bytes | bytearray | None
    ) -> dict[str, Any]:
        if architecture is not None:
            return {"architecture": dict(architecture)}
        data = bytes(stablehlo or b"")
        return {"stablehlo": base64.b64encode(data).decode("ascii") if self._encoding == "base64" else data}

    def models(self) -> Call[list[ModelInfo]]:
        """`GET /v1/models`."""
        return self.call(
            "GET",
            "/v1/models",
            None,
            lambda answer: [ModelInfo.model_validate(one) for one in answer["models"]],
        )

    def failed_models(self) -> Call[list[FailedModel]]:
        """`GET /v1/models`; what could not be loaded."""
        return self.call(
            "GET",
            "/v1/models",
            None,
            lambda answer: [FailedModel.model_validate(one) for one in answer["failed"]],
        )

    def model(self, name: str) -> Call[ModelInfo]:
        """`GET /v1/models/{name}`."""
        return self.call("GET", _model_path(name), None, lambda answer: ModelInfo.model_validate(answer))

    def delete_model(self, name: str) -> Call[None]:
        """`DELETE /v1/models/{name}`."""
        return Call("DELETE", _model_path(name), self._headers, None, lambda response: None)

    def load_model(self, name: str) -> Call[ModelInfo]:
        """`POST /v1/models/{name}/load`."""
        return self.call("POST", f"{_model_path(name)}/load", None, ModelInfo.model_validate)

    def unload_model(self, name: str) -> Call[ModelInfo]:
        """`POST /v1/models/{name}/unload`."""
        return self.call("POST", f"{_model_path(name)}/unload", None, ModelInfo.model_validate)

    def params(self, name: str, version: str | None) -> Call[Params]:
        """`GET /v1/models/{name}/params`, or of a version."""
        return self.call("GET", _params_path(name, version), None, read_params)

    def set_params(self, name: str, params: Tree, state: Tree | None, version: str | None) -> Call[str]:
        """`PUT /v1/models/{name}/params`, or under a version; gives the version."""
        body = {"params": self._tree(params), "state": self._tree(state)}
        return self.call("PUT", _params_path(name, version), body, lambda answer: str(answer["version"]))

    def put(self, value: Any, pinned: bool | None) -> Call[Handle]:
        """`PUT /v1/values`; remembers weakly where the data are."""
        if isinstance(value, Handle):
            raise TypeError(f"{value} is on the server already; pin(handle) pins it")
        tree = (
            {name: np.asarray(leaf) for name, leaf in value.items()} if isinstance(value, Mapping) else None
        )
        body = {"value": sent("value", np.asarray(value) if tree is None else tree, self._plainly)}
        if pinned is not None:
            body["pinned"] = pinned

        def read(answer: dict[str, Any]) -> Handle:
            handle = Handle.of(ValueInfo.model_validate(answer))
            self._sources.remember(handle.handle, value, pinned)
            return handle

        return self.call("PUT", "/v1/values", body, read)

    def values(self) -> Call[list[ValueInfo]]:
        """`GET /v1/values`."""
        return self.call(
            "GET",
            "/v1/values",
            None,
            lambda answer: [ValueInfo.model_validate(one) for one in answer["values"]],
        )

    def pin(self, handle: Handle | str, pinned: bool) -> Call[ValueInfo]:
        """`PATCH /v1/values/{handle}`."""
        return self.call("PATCH", _value_path(handle), {"pinned": pinned}, ValueInfo.model_validate)

    def release(self, handle: Handle | str) -> Call[None]:
        """`DELETE /v1/values/{handle}`; forgets where the data are."""
        self._sources.forget(handle.handle if isinstance(handle, Handle) else handle)
        return Call("DELETE", _value_path(handle), self._headers, None, lambda answer: None)

    def operators(self) -> Call[list[OperatorInfo]]:
        """`GET /v1/operators`."""
        return self.call(
            "GET",
            "/v1/operators",
            None,
            lambda answer: [OperatorInfo.model_validate(one) for one in answer["operators"]],
        )

    def gradient(
        self, loss: Loss, question: Question, terms: Terms | None, **asked: Any
    ) -> Call[GradientResult]:
        """`POST /v1/gradient`; `asked` are the members beside the program and what it is about."""
        asked["terms"] = weights_of(terms)
        return self._ask("/v1/gradient", partial(question.members, "loss", loss), asked, read_gradient)

    def check(self, loss: Loss, question: Question, terms: Terms | None, **asked: Any) -> Call[CheckResult]:
        """`POST /v1/check`."""
        asked["terms"] = weights_of(terms)
        return self._ask("/v1/check", partial(question.members, "loss", loss), asked, read_check)

    def plan(self, program: Loss, question: Question, **asked: Any) -> Call[PlanReport]:
        """`POST /v1/plan`, of a gradient where `wrt` is given."""
        member = "loss" if "wrt" in asked else "program"
        return self._ask("/v1/plan", partial(question.members, member, program), asked, PlanReport.read)

    def warm(
        self, program: Loss, question: Question, terms: Terms | None, **asked: Any
    ) -> Call[list[WarmProgram]]:
        """`POST /v1/warm`, of a gradient where `wrt` is given; arrays go without their data."""
        gradient = "wrt" in asked
        member = "loss" if gradient else "program"
        body = without_data(question.members(member, program, self._plainly))
        if gradient:
            asked["terms"] = weights_of(terms)

        def read(answer: dict[str, Any]) -> list[WarmProgram]:
            return [WarmProgram.model_validate(one) for one in answer["programs"]]

        return self.call("POST", "/v1/warm", {**body, **asked}, read)

    def evaluate(self, program: Loss, question: Question, **asked: Any) -> Call[EvaluateResult]:
        """`POST /v1/evaluate`."""
        return self._ask("/v1/evaluate", partial(question.members, "program", program), asked, read_evaluate)

    def shortcut(self, name: str, operator: str, **members: Any) -> Call[EvaluateResult]:
        """`POST /v1/models/{name}/{operator}`; arrays and trees among `members` are encoded."""
        arrays = {member: members.pop(member, None) for member in ("x", "u", "v", "params", "state")}

        def encoded(encode: Encode) -> dict[str, Any]:
            return {
                member: sent(f"{name}.{member}", value, encode)
                for member, value in arrays.items()
                if value is not None
            }

        return self._ask(f"{_model_path(name)}/{operator}", encoded, members, read_evaluate)

    def exchange(self, call: Call[T]) -> Generator[Call[Any], Answer, T]:
        """What goes to and fro for a call: yields what to send, is sent the answers, returns the result."""
        return exchange(call, self.put, self._sources, self._dedupe)

    def _ask(
        self,
        path: str,
        members: Callable[[Encode], dict[str, Any]],
        asked: Mapping[str, Any],
        read: Callable[[dict[str, Any]], T],
    ) -> Call[T]:
        """A call about a program; where large arrays are sent but once, `members` names them by handles."""
        if self._dedupe is None:
            return self.call("POST", path, {**members(self._asking), **asked}, read)
        dedupe = self._dedupe
        values: dict[str, NDArray[Any]] = {}

        def encode(place: str, array: NDArray[Any]) -> Any:
            handle = dedupe.handle(f"{path} {place}", array)
            if handle is None:
                return self._asking(place, array)
            values[handle] = array
            return {"handle": handle}

        call = self.call("POST", path, {**members(encode), **asked}, read)
        missing = tuple(handle for handle in values if not dedupe.has(handle))
        again = partial(self._ask, path, members, asked, read)
        return replace(call, values=values, missing=missing, again=again)

    def copied(self, place: str, array: NDArray[Any]) -> Any:
        """An array's travelling form that stays as it is when the caller goes on to write into the array."""
        return self._asking(place, array.copy())

    def _tree(self, tree: Tree | None) -> dict[str, Any] | None:
        return None if tree is None else sent("", tree, self._plainly)

    def call(self, method: str, path: str, body: Any, read: Callable[[dict[str, Any]], T]) -> Call[T]:
        """A call whose arrays are encoded already."""
        headers = self._headers if body is None else {**self._headers, "Content-Type": self._media}
        data = None if body is None else wire.encode_body(body, self._media)
        return Call(method, path, headers, data, lambda answer: read(_structure(answer)))


def no_answer(url: str, error: httpx.TransportError) -> ConnectionFailed:
    """The exception for a call that got no answer."""
    reason = f"{type(error).__name__}: {error}"
    patient = isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout)
    hint = "give it more time, timeout=" if patient else "is `nablad serve` running there?"
    return ConnectionFailed(f"no answer from {url} ({reason}); {hint}")


def weights_of(terms: Terms | None) -> list[str] | dict[str, float]:
    """Terms as they travel: names, or names with weights."""
    if isinstance(terms, Mapping):
        return {name: float(weight) for name, weight in terms.items()}
    return list(terms or ())


def _model_path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}"


def _params_path(name: str, version: str | None) -> str:
    path = f"{_model_path(name)}/params"
    return path if version is None else f"{path}/{quote(version, safe='')}"


def _value_path(handle: Handle | str) -> str:
    return f"/v1/values/{quote(handle.handle if isinstance(handle, Handle) else handle, safe='')}"


def _structure(answer: Answer) -> dict[str, Any]:
    return wire.decode_body(answer.body, wire.media_type(answer.header(b"content-type")))
