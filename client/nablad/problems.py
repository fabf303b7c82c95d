"""Every way nablad says no: one table of codes, and the value that carries one.

Both ends import this file. The server raises a [`Refusal`][nablad.problems.Refusal] anywhere and answers with
the problem document (RFC 9457) that it becomes; the client reads the document back and raises the exception
that stands beside the code in `CODES`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from nablad import errors
from nablad.place import Place

LONGEST = 1000
"""Letters of a problem's `detail`."""


class Kind(NamedTuple):
    """What a code means: HTTP status, a title for people, the client's exception."""

    status: int
    title: str
    exception: type[errors.ServiceError]


# One row a code. Codes are stable: callers match on them.
CODES: dict[str, Kind] = {
    # the text of a program
    "syntax": Kind(422, "The program is not in the loss language", errors.ProgramError),
    "unknown_name": Kind(422, "A name is not defined", errors.ProgramError),
    "hidden_operator": Kind(422, "A name hides an operator", errors.ProgramError),
    "redefined_name": Kind(422, "A name is assigned twice", errors.ProgramError),
    "arity": Kind(422, "A call has the wrong arguments", errors.ProgramError),
    "wrong_kind": Kind(422, "A value is of the wrong kind", errors.ProgramError),
    "shape_mismatch": Kind(422, "Shapes do not fit", errors.ProgramError),
    "wrong_dtype": Kind(422, "A dtype does not fit", errors.ProgramError),
    "not_scalar": Kind(422, "A scalar was expected", errors.ProgramError),
    "not_a_name": Kind(422, "Derivatives are taken with respect to names", errors.ProgramError),
    "independent": Kind(422, "The value does not depend on the name", errors.ProgramError),
    "couples_examples": Kind(422, "Examples are not independent", errors.ProgramError),
    "number_too_large": Kind(422, "A number is too large", errors.ProgramError),
    "limit": Kind(422, "The program is over a limit", errors.ProgramError),
    "not_differentiable": Kind(422, "A derivative does not exist", errors.ProgramError),
    "strategy": Kind(422, "A strategy does not apply", errors.ProgramError),
    "too_slow": Kind(422, "The program takes too long", errors.ProgramError),
    "function_failed": Kind(422, "A function of the server failed", errors.ProgramError),
    # the request around it
    "malformed_body": Kind(400, "The body cannot be read", errors.RequestError),
    "invalid_request": Kind(422, "The request is not valid", errors.RequestError),
    "optimiser": Kind(422, "The optimiser cannot be made", errors.RequestError),
    "sampler": Kind(422, "A sampler is not valid", errors.RequestError),
    "missing_input": Kind(422, "An input is missing", errors.RequestError),
    "extra_input": Kind(422, "An input is not used", errors.RequestError),
    "invalid_array": Kind(422, "An array is not valid", errors.RequestError),
    "invalid_params": Kind(422, "Parameters do not fit the model", errors.RequestError),
    "invalid_state": Kind(422, "State does not fit the model", errors.RequestError),
    "invalid_architecture": Kind(422, "The architecture is not valid", errors.RequestError),
    "invalid_artifact": Kind(422, "The artifact is not valid", errors.RequestError),
    "invalid_name": Kind(422, "A model's name is not valid", errors.RequestError),
    "unknown_media_type": Kind(415, "The Content-Type is not spoken here", errors.RequestError),
    "not_acceptable": Kind(406, "No acceptable answer format", errors.RequestError),
    "shared_memory": Kind(400, "The shared memory cannot be used", errors.RequestError),
    "body_too_large": Kind(413, "The body is too large", errors.RequestError),
    "method_not_allowed": Kind(405, "The method is not allowed", errors.RequestError),
    # what is hosted
    "unknown_model": Kind(404, "No model of that name", errors.NotFound),
    "unknown_version": Kind(404, "No parameters of that version", errors.NotFound),
    "unknown_handle": Kind(404, "No value of that handle", errors.NotFound),
    "unknown_path": Kind(404, "No such path", errors.NotFound),
    "other_version": Kind(409, "The parameters have another version", errors.RequestError),
    "not_loaded": Kind(409, "The model is not loaded", errors.RequestError),
    "python_model": Kind(409, "The model belongs to the operator", errors.RequestError),
    # training state
    "unknown_session": Kind(404, "No session of that name", errors.NotFound),
    "session_exists": Kind(409, "There is a session of that name", errors.RequestError),
    "unknown_run": Kind(404, "No run of that name", errors.NotFound),
    "run_exists": Kind(409, "There is a run of that name", errors.RequestError),
    "session_restored": Kind(409, "The session came from a save", errors.SessionRestored),
    "sequence": Kind(409, "A call is out of its order", errors.RequestError),
    "no_gradient": Kind(409, "There is no gradient to step with", errors.RequestError),
    "no_save": Kind(404, "No such save", errors.NotFound),
    "no_checkpoints": Kind(409, "The server keeps no saves", errors.RequestError),
    "unfit_save": Kind(409, "The save does not fit", errors.RequestError),
    # the server itself
    "overloaded": Kind(503, "The server is busy", errors.Unavailable),
    "stuck": Kind(503, "The server is occupied by work that does not end", errors.Unavailable),
    "stopping": Kind(503, "The server is stopping", errors.Unavailable),
    "deadline": Kind(504, "The deadline passed", errors.DeadlineExceeded),
    "memory_limit": Kind(422, "The program does not fit in the memory it may have", errors.ProgramError),
    "out_of_memory": Kind(507, "The device ran out of memory", errors.Unavailable),
    "storage": Kind(507, "The repository could not be written", errors.Unavailable),
    "resident_limit": Kind(507, "No room for what is to stay", errors.Unavailable),
    "internal": Kind(500, "The server failed", errors.ServerError),
}


@dataclass(eq=False)
class Refusal(Exception):
    """Something asked for cannot be done; the one exception of the path from bytes to bytes.

    `code` is a key of `CODES`, `detail` one sentence that says what, where and what to try, `where` a place
    in the program's text, `extra` further members of the problem document.
    """

    code: str
    detail: str
    where: Place | None = None
    extra: dict[str, Any] | None = None

    def __str__(self) -> str:
        place = f"line {self.where.line}, column {self.where.column}: " if self.where else ""
        return f"{self.code}: {place}{self.detail}"


def shortened(detail: str) -> str:
    """A sentence of bearable length on one line: names in it may be whatever a caller likes."""
    detail = detail.replace("\n", "\\n").replace("\r", "\\r")
    return detail if len(detail) <= LONGEST else f"{detail[: LONGEST - 260]} ... {detail[-240:]}"


class Problem(BaseModel):
    """A refusal as it travels: `application/problem+json`, RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    where: Place | None = None

    @classmethod
    def of(cls, refusal: Refusal) -> Problem:
        """The document for `refusal`; its status and title come from `CODES`."""
        kind = CODES[refusal.code]
        return cls(
            title=kind.title,
            status=kind.status,
            detail=shortened(refusal.detail),
            code=refusal.code,
            where=refusal.where,
            **(refusal.extra or {}),
        )

    def json_bytes(self) -> bytes:
        """The document, in ASCII: what it quotes may be text that UTF-8 cannot hold."""
        return json.dumps(self.model_dump(exclude_none=True)).encode()

    def exception(self) -> errors.ServiceError:
        """The typed exception that a client raises for this document."""
        # A newer server may know codes that this client does not: fall back to the family of its status.
        family = CODES[self.code].exception if self.code in CODES else errors.family(self.status)
        return family(
            self.detail, code=self.code, status=self.status, where=self.where, extra=self.model_extra
        )
