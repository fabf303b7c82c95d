"""From a request's bytes to a query: the first two arrows of the path."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from pydantic import ValidationError

from nablad import wire
from nablad.arrays import Encoding
from nablad.frame import Buffer
from nablad.halves import Floats
from nablad.messages import CheckRequest, EvaluateRequest, GradientRequest, Message, ShortcutRequest
from nablad.problems import Refusal
from nablad_service.hosting import ModelStore, Values
from nablad_service.query import Query
from nablad_service.requests.faults import first_fault
from nablad_service.requests.handles import with_values
from nablad_service.requests.recalling import Lookups, Recall
from nablad_service.requests.shortcuts import evaluation
from nablad_service.requests.validation import evaluate_query, gradient_query

MessageT = TypeVar("MessageT", bound=Message)


class Body(NamedTuple):  # a frozen dataclass takes three times as long to make
    """A request's bytes, the formats it comes and wants to be answered in, and whose it is."""

    data: Buffer
    media: str
    answer: str
    encoding: Encoding
    tenant: str = ""
    floats: Floats | None = None
    """How the answer's floats are sent, where not as they are."""
    alone: bool = False
    """Whether no other request was open when all of it had come."""

    def emptied(self) -> Body:
        """The same without its bytes."""
        return Body(b"", *self[1:])


Read: TypeAlias = "Callable[[Body, Lookups], Query]"


@dataclass(frozen=True)
class Reading:
    """How the body of one route is read; bodies that differ in numbers alone are read once."""

    route: Hashable
    read: Read


def gradient(body: Body, lookups: Lookups) -> Query:
    """The query of `POST /v1/gradient`."""
    return _gradient(decode(body, GradientRequest), lookups)


def evaluate(body: Body, lookups: Lookups) -> Query:
    """The query of `POST /v1/evaluate`."""
    return _evaluation(decode(body, EvaluateRequest), lookups)


def check(body: Body, lookups: Lookups) -> Query:
    """The query of `POST /v1/check`, in float64."""
    return _gradient(decode(body, CheckRequest), lookups, dtype="float64")


def either(body: Body, lookups: Lookups) -> Query:
    """The query of a gradient, or of an evaluation where there is a `program`."""
    return question(wire.decode_body(body.data, body.media), lookups)


def question(structure: Mapping[str, Any], lookups: Lookups) -> Query:
    """Likewise, of a body that is decoded already."""
    if "program" in structure:
        return _evaluation(validated(structure, EvaluateRequest), lookups)
    return _gradient(validated(structure, GradientRequest), lookups)


def shortcut(name: str, operator: str) -> Reading:
    """`POST /v1/models/{name}/{operator}`: an `evaluate` with a ready-made program."""

    def read(body: Body, lookups: Lookups) -> Query:
        return _evaluation(evaluation(name, operator, decode(body, ShortcutRequest)), lookups)

    return Reading((name, operator), read)


GRADIENT = Reading("gradient", gradient)
EVALUATE = Reading("evaluate", evaluate)


class Reader:
    """Reads requests against the models and values of a server."""

    def __init__(self, models: ModelStore, values: Values) -> None:
        self._models = models
        self._values = values
        self._recall = Recall()

    def lookups(self, body: Body) -> Lookups:
        """What the request in `body` may name."""
        return Lookups(self._models, self._values, body.tenant)

    def recalled(self, body: Body, reading: Reading) -> tuple[Query | None, Hashable | None]:
        """The query of a body like one that was read before, and by what it would be known; else None."""
        if body.media != wire.FRAME:
            return None, None
        key = self._recall.key(body.data, reading.route, body.tenant)
        return (None, None) if key is None else (self._recall.query(key, body.data), key)

    def read(self, body: Body, reading: Reading, key: Hashable | None) -> Query:
        """The query of a body; remembered under `key`.

        Raises:
            Refusal: whatever is wrong with the request, but for its program.
        """
        lookups = self.lookups(body)
        query = reading.read(body, lookups)
        if key is not None:
            self._recall.remember(key, body.data, query, lookups)
        return query


def _gradient(request: GradientRequest, lookups: Lookups, dtype: str | None = None) -> Query:
    return gradient_query(with_values(request, lookups.take), lookups.model, dtype=dtype)


def _evaluation(request: EvaluateRequest, lookups: Lookups) -> Query:
    return evaluate_query(with_values(request, lookups.take), lookups.model)


def decode(body: Body, kind: type[MessageT]) -> MessageT:
    """The request in a body.

    Raises:
        Refusal: `malformed_body` or `invalid_request`, naming the member at fault.
    """
    return validated(wire.decode_body(body.data, body.media), kind)


def validated(structure: Any, kind: type[MessageT]) -> MessageT:
    """A decoded structure as a message.

    Raises:
        Refusal: `invalid_request`, naming the member at fault.
    """
    try:
        return kind.model_validate(structure)
    except ValidationError as error:
        raise Refusal("invalid_request", first_fault(error, structure, kind)) from None
