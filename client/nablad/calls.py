"""Every call without its I/O: what to send, and how to read what comes back. Both clients share it."""

from __future__ import annotations

import base64
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from nablad import wire
from nablad._version import __version__
from nablad.arrays import Encoding, decode_tree, encode_array
from nablad.errors import ConnectionFailed, InvalidAnswer
from nablad.frame import Buffer
from nablad.messages import FailedModel, ModelInfo, NonFinite, OperatorInfo, Timing, WarmProgram
from nablad.pieces import Pieces
from nablad.plans import PlanReport
from nablad.problems import Problem, Refusal
from nablad.results import Checked, CheckResult, EvaluateResult, GradientResult, Params, Plan
from nablad.tracing import trace
from nablad.transports.address import Address
from nablad.transports.incoming import Answer
from nablad.transports.translated import REPEATABLE
from nablad.wire import Format

T = TypeVar("T")
Loss: TypeAlias = "str | Callable[..., Any]"
# Arrays, numbers, lists, or mappings of them; a dict literal of several kinds is typed as one of objects.
Inputs: TypeAlias = "Mapping[str, object]"
Terms: TypeAlias = "Sequence[str] | Mapping[str, float]"
Models: TypeAlias = "Mapping[str, str | Mapping[str, Any]]"
Tree: TypeAlias = "Mapping[str, ArrayLike]"

DEFAULT_URL = "http://127.0.0.1:8421"
# A first call compiles, which may take minutes for large programs; connecting may not.
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)
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

    def parts(self, address: Address) -> tuple[tuple[Buffer, ...], ...]:
        """The bytes of the request, for a transport that takes them without httpx's objects."""
        headers = {"Host": address.host, **self.headers}
        if self.body is not None:
            headers["Content-Length"] = str(wire.body_size(self.body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        begin = f"{self.method} {address.prefix}{self.path} HTTP/1.1\r\n{lines}\r\n".encode("ascii")
        return ((begin, *(self.body or ())),)

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

    def __init__(self, format: Format) -> None:  # noqa: A002 - the word that callers use
        if format not in wire.MEDIA:
            raise ValueError(f"format is 'frame', 'msgpack' or 'json', not {format!r}")
        self._media = wire.MEDIA[format]
        accept = f"{wire.JSON}; arrays=base64" if format == "json" else self._media
        self._encoding: Encoding = wire.answer_type(accept, self._media)[1]
        self._headers = {
            "Accept": accept,
            "User-Agent": USER_AGENT,
        }

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
        return self._call("PUT", _model_path(name), body, lambda answer: ModelInfo.model_validate(answer))

    def _source(
        self, architecture: Mapping[str, Any] | None, stablehlo: bytes | bytearray | None
    ) -> dict[str, Any]:
        if architecture is not None:
            return {"architecture": dict(architecture)}
        data = bytes(stablehlo or b"")
        return {"stablehlo": base64.b64encode(data).decode("ascii") if self._encoding == "base64" else data}

    def models(self) -> Call[list[ModelInfo]]:
        """`GET /v1/models`."""
        return self._call(
            "GET",
            "/v1/models",
            None,
            lambda answer: [ModelInfo.model_validate(one) for one in answer["models"]],
        )

    def failed_models(self) -> Call[list[FailedModel]]:
        """`GET /v1/models`; what could not be loaded."""
        return self._call(
            "GET",
            "/v1/models",
            None,
            lambda answer: [FailedModel.model_validate(one) for one in answer["failed"]],
        )

    def model(self, name: str) -> Call[ModelInfo]:
        """`GET /v1/models/{name}`."""
        return self._call("GET", _model_path(name), None, lambda answer: ModelInfo.model_validate(answer))

    def delete_model(self, name: str) -> Call[None]:
        """`DELETE /v1/models/{name}`."""
        return Call("DELETE", _model_path(name), self._headers, None, lambda answer: None)

    def load_model(self, name: str) -> Call[ModelInfo]:
        """`POST /v1/models/{name}/load`."""
        return self._call("POST", f"{_model_path(name)}/load", None, ModelInfo.model_validate)

    def unload_model(self, name: str) -> Call[ModelInfo]:
        """`POST /v1/models/{name}/unload`."""
        return self._call("POST", f"{_model_path(name)}/unload", None, ModelInfo.model_validate)

    def params(self, name: str) -> Call[Params]:
        """`GET /v1/models/{name}/params`."""
        return self._call("GET", f"{_model_path(name)}/params", None, _params)

    def set_params(self, name: str, params: Tree, state: Tree | None) -> Call[str]:
        """`PUT /v1/models/{name}/params`; gives the new version."""
        body = {"params": self._tree(params), "state": self._tree(state)}
        return self._call("PUT", f"{_model_path(name)}/params", body, lambda answer: str(answer["version"]))

    def operators(self) -> Call[list[OperatorInfo]]:
        """`GET /v1/operators`."""
        return self._call(
            "GET",
            "/v1/operators",
            None,
            lambda answer: [OperatorInfo.model_validate(one) for one in answer["operators"]],
        )

    def gradient(
        self, loss: Loss, question: Question, terms: Terms | None, **asked: Any
    ) -> Call[GradientResult]:
        """`POST /v1/gradient`; `asked` are the members beside the program and what it is about."""
        body = self._question("loss", loss, question)
        return self._call("POST", "/v1/gradient", {**body, "terms": _terms(terms), **asked}, _gradient)

    def check(self, loss: Loss, question: Question, terms: Terms | None, **asked: Any) -> Call[CheckResult]:
        """`POST /v1/check`."""
        body = self._question("loss", loss, question)
        return self._call("POST", "/v1/check", {**body, "terms": _terms(terms), **asked}, _check)

    def plan(self, program: Loss, question: Question, **asked: Any) -> Call[PlanReport]:
        """`POST /v1/plan`, of a gradient where `wrt` is given."""
        body = self._question("loss" if "wrt" in asked else "program", program, question)
        return self._call("POST", "/v1/plan", {**body, **asked}, PlanReport.read)

    def warm(
        self, program: Loss, question: Question, terms: Terms | None, **asked: Any
    ) -> Call[list[WarmProgram]]:
        """`POST /v1/warm`, of a gradient where `wrt` is given; arrays go without their data."""
        gradient = "wrt" in asked
        body = without_data(self._question("loss" if gradient else "program", program, question))
        if gradient:
            asked["terms"] = _terms(terms)

        def read(answer: dict[str, Any]) -> list[WarmProgram]:
            return [WarmProgram.model_validate(one) for one in answer["programs"]]

        return self._call("POST", "/v1/warm", {**body, **asked}, read)

    def evaluate(self, program: Loss, question: Question, **asked: Any) -> Call[EvaluateResult]:
        """`POST /v1/evaluate`."""
        body = self._question("program", program, question)
        return self._call("POST", "/v1/evaluate", {**body, **asked}, _evaluate)

    def shortcut(self, name: str, operator: str, **members: Any) -> Call[EvaluateResult]:
        """`POST /v1/models/{name}/{operator}`; arrays and trees among `members` are encoded."""
        arrays = {"x", "u", "v"}
        body = {
            member: _input(value, self._encoding)
            if member in arrays
            else self._tree(value)
            if member in ("params", "state")
            else value
            for member, value in members.items()
            if value is not None
        }
        return self._call("POST", f"{_model_path(name)}/{operator}", body, _evaluate)

    def _question(self, member: str, program: Loss, question: Question) -> dict[str, Any]:
        models = question.bindings(self._encoding)
        inputs: dict[str, Any] = dict(question.inputs)
        if callable(program):
            traced = trace(program, inputs=inputs, models=list(models))
            text, inputs = traced.text, {**inputs, **_like_inputs(traced.constants, inputs)}
        else:
            # Programs in triple quotes are indented like the code around them; lines keep their numbers.
            text = textwrap.dedent(program)
        return {
            member: text,
            "models": models,
            "inputs": {name: _input(value, self._encoding) for name, value in inputs.items()},
            "nesting": question.nesting,
            "strategies": dict(question.strategies or {}),
            "tune": question.tune,
            "batch": question.batch,
            "buckets": list(question.buckets),
            "examples_at_once": question.examples_at_once,
            "memory_limit": question.memory_limit,
            "seed": question.seed,
            "deadline_ms": question.deadline_ms,
        }

    def _tree(self, tree: Tree | None) -> dict[str, Any] | None:
        return None if tree is None else {name: _input(leaf, self._encoding) for name, leaf in tree.items()}

    def _call(self, method: str, path: str, body: Any, read: Callable[[dict[str, Any]], T]) -> Call[T]:
        headers = self._headers if body is None else {**self._headers, "Content-Type": self._media}
        data = None if body is None else wire.encode_body(body, self._media)
        return Call(method, path, headers, data, lambda answer: read(_structure(answer)))


@dataclass(frozen=True)
class Question:
    """What a program is asked about: models, inputs and how to compute."""

    inputs: Inputs
    model: str | None = None
    models: Models | None = None
    params: Tree | Mapping[str, Tree] | None = None
    state: Tree | Mapping[str, Tree] | None = None
    mode: str | None = None
    nesting: str = "auto"
    seed: int = 0
    deadline_ms: float | None = None
    strategies: Mapping[str, str] | None = None
    tune: bool = True
    examples_at_once: int | None = None
    memory_limit: int | None = None
    batch: bool = True
    buckets: Sequence[int] = ()

    def bindings(self, encoding: Encoding) -> dict[str, Any]:
        """`models` of the request: `model="net"` binds the hosted model `net` to the name `model`."""
        if self.model is not None and self.models is not None:
            raise ValueError("give model= for one model or models= for several, not both")
        given = self.models if self.models is not None else {"model": self.model} if self.model else {}
        bindings: dict[str, Any] = {}
        for name, bound in given.items():
            binding: dict[str, Any] = {"name": bound} if isinstance(bound, str) else dict(bound)
            for part, trees in (("params", self.params), ("state", self.state)):
                tree = _tree_for(name, trees, len(given))
                if tree is not None:
                    binding[part] = tree
                if binding.get(part) is not None:
                    binding[part] = {leaf: _input(array, encoding) for leaf, array in binding[part].items()}
            if self.mode is not None:
                binding.setdefault("mode", self.mode)
            bindings[name] = binding
        if (self.params is not None or self.mode is not None) and not bindings:
            raise ValueError("params= and mode= belong to a model: give model= or models= too")
        return bindings


def _like_inputs(constants: Mapping[str, NDArray[Any]], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Constants of a traced function in the float type of the inputs.

    NumPy makes float64 of nearly everything; a constant must not turn a float32 loss into a float64 one.
    Without float arrays among the inputs it goes as plain numbers, which take the parameters' type.
    """
    leaves = [leaf for value in inputs.values() for leaf in _leaves(value)]
    floats = [leaf.dtype for leaf in leaves if isinstance(leaf, np.ndarray | np.floating)]
    floats = [dtype for dtype in floats if dtype.kind == "f"]

    def like(constant: NDArray[Any]) -> Any:
        if constant.dtype.kind != "f":
            return constant
        return constant.astype(np.result_type(*floats)) if floats else constant.tolist()

    return {name: like(constant) for name, constant in constants.items()}


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def without_data(body: Any) -> Any:
    """A body whose arrays say only what they are: enough to compile for them."""
    if not isinstance(body, Mapping):
        return body
    if set(body) == {"dtype", "shape", "data"}:
        return {"dtype": body["dtype"], "shape": body["shape"]}
    return {name: without_data(value) for name, value in body.items()}


def no_answer(url: str, error: httpx.TransportError) -> ConnectionFailed:
    """The exception for a call that got no answer."""
    reason = f"{type(error).__name__}: {error}"
    return ConnectionFailed(f"no answer from {url} ({reason}); is `nablad serve` running there?")


def _terms(terms: Terms | None) -> list[str] | dict[str, float]:
    if isinstance(terms, Mapping):
        return {name: float(weight) for name, weight in terms.items()}
    return list(terms or ())


def _tree_for(name: str, trees: Any, count: int) -> Any:
    """Parameters for one binding: a flat tree when there is one model, else trees by name."""
    if trees is None:
        return None
    nested = all(isinstance(value, Mapping) for value in trees.values()) and bool(trees)
    if nested:
        return trees.get(name)
    if count != 1:
        raise ValueError("several models are bound: give params={'u': {...}, 'v': {...}}")
    return trees


def _input(value: Any, encoding: Encoding) -> Any:
    """An input's travelling form; plain numbers and lists go without a dtype and take the program's.

    NumPy's scalars are arrays without axes, `np.float64` too, which is a `float` by inheritance.
    """
    if isinstance(value, Mapping):
        return {str(name): _input(leaf, encoding) for name, leaf in value.items()}
    if isinstance(value, bool | int | float | list | tuple) and not _has_dtype(value):
        return value
    array: NDArray[Any] = np.asarray(value)
    return encode_array(array, encoding)


def _has_dtype(value: Any) -> bool:
    """Whether `value` is NumPy's, or a list with something of NumPy's in it."""
    if isinstance(value, list | tuple):
        return any(_has_dtype(item) for item in value)
    return isinstance(value, np.ndarray | np.generic)


def _model_path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}"


def _structure(answer: Answer) -> dict[str, Any]:
    return wire.decode_body(answer.body, wire.media_type(answer.header(b"content-type")))


def _params(answer: dict[str, Any]) -> Params:
    return Params(
        decode_tree(answer["params"], "params"), decode_tree(answer["state"], "state"), answer["version"]
    )


def _non_finite(answer: dict[str, Any]) -> NonFinite | None:
    return NonFinite.model_validate(answer["non_finite"]) if "non_finite" in answer else None


def _gradient(answer: dict[str, Any]) -> GradientResult:
    return GradientResult(
        value=_number(answer["value"]),
        terms={name: _number(value) for name, value in answer["terms"].items()},
        gradients=decode_tree(answer["gradients"], "gradients"),
        outputs=decode_tree(answer["outputs"], "outputs"),
        state=decode_tree(answer["state"], "state"),
        plan=Plan.read(answer["plan"]),
        timing=Timing.model_validate(answer["timing"]),
        term_norms={
            term: {key: _number(norm) for key, norm in norms.items()}
            for term, norms in answer.get("term_norms", {}).items()
        },
        term_gradients=decode_tree(answer.get("term_gradients", {}), "term_gradients"),
        non_finite=_non_finite(answer),
    )


def _evaluate(answer: dict[str, Any]) -> EvaluateResult:
    return EvaluateResult(
        outputs=decode_tree(answer["outputs"], "outputs"),
        plan=Plan.read(answer["plan"]),
        timing=Timing.model_validate(answer["timing"]),
        non_finite=_non_finite(answer),
    )


def _check(answer: dict[str, Any]) -> CheckResult:
    return CheckResult(
        value=_number(answer["value"]),
        arguments={key: _checked(one) for key, one in answer["arguments"].items()},
        timing=Timing.model_validate(answer["timing"]),
    )


def _checked(one: Mapping[str, Any]) -> Checked:
    return Checked(
        max_abs_difference=_number(one["max_abs_difference"]),
        max_abs_gradient=_number(one["max_abs_gradient"]),
        relative=_number(one["relative"]),
        compared=int(one["compared"]),
        method=str(one["method"]),
    )


def _number(value: Any) -> float:
    return float(decode_tree(value, "value")[()])
