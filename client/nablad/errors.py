"""The exceptions a caller may catch.

NabladError
├── ConnectionFailed      no answer: the server is not there, or the connection broke
├── InvalidAnswer         an answer that this client cannot read
├── Diverged              a training loop on the server ended without a finite loss
└── ServiceError          the server answered with a problem document
    ├── ProgramError      the loss: `.where` is the place in its text
    ├── RequestError      the request around it: inputs, parameters, formats
    │   └── SessionRestored   the session came from a save: `.step` says where it stands
    ├── NotFound          no such model, version or path
    ├── Unavailable       busy, stopping or out of memory: try again later
    ├── DeadlineExceeded  the deadline passed before the answer was ready
    └── ServerError       the server failed; its log knows why
"""

from __future__ import annotations

from typing import Any

from nablad.place import Place


class NabladError(Exception):
    """The root of all exceptions of this client."""


class ConnectionFailed(NabladError):
    """No answer came: nothing listens there, or the connection broke on the way."""


class InvalidAnswer(NabladError):
    """An answer came that is neither a result nor a problem document."""


class Diverged(NabladError):
    """A training loop stopped because its loss was no longer finite: `step`, and what can be loaded."""

    def __init__(self, detail: str, *, step: int, checkpoint: int | None) -> None:
        super().__init__(detail)
        self.step = step
        self.checkpoint = checkpoint
        """Step of the last save, or None."""


class ServiceError(NabladError):
    """The server refused: `code` is stable, `where` a place in the program's text (or None)."""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "internal",
        status: int = 500,
        where: Place | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.where = where
        self.extra = extra or {}

    def __str__(self) -> str:
        if self.where is None:
            return f"{self.detail} [{self.code}]"
        return (
            f"{self.detail} [{self.code}]\n"
            f"  line {self.where.line}, column {self.where.column}: {self.where.text}"
        )


class ProgramError(ServiceError):
    """The text of the loss is at fault; `where` points into it."""


class RequestError(ServiceError):
    """The request around the loss is at fault: inputs, parameters, names or formats."""


class SessionRestored(RequestError):
    """The call was not done: the session came from a save meanwhile, as after a restart of the server.

    It stands at `step`, where it was saved. Go on from there: send again what was sent since. The session
    object follows by itself.
    """

    @property
    def step(self) -> int:
        """Steps that were done when it was saved."""
        return int(self.extra["step"])

    @property
    def sequence(self) -> int:
        """Number of the last call that was done before."""
        return int(self.extra["sequence"])

    @property
    def generation(self) -> int:
        """Of the session now: one more whenever it came from a save."""
        return int(self.extra["generation"])

    @classmethod
    def of(cls, name: str, step: int, sequence: int, generation: int) -> SessionRestored:
        """The exception where the server did not refuse a call, and its standing says so."""
        detail = (
            f"session '{name}' came from its save of step {step}; send again what was sent after step {step}"
        )
        extra = {"step": step, "sequence": sequence, "generation": generation}
        return cls(detail, code="session_restored", status=409, extra=extra)


class NotFound(ServiceError):
    """There is no such model, version or path."""


class Unavailable(ServiceError):
    """The server is busy, stopping or out of memory: the same call may succeed later."""


class DeadlineExceeded(ServiceError):
    """The deadline passed before the answer was ready."""


class ServerError(ServiceError):
    """The server failed; nothing is wrong with the call as far as it knows."""


def family(status: int) -> type[ServiceError]:
    """The exception for a code this client does not know, by its HTTP status."""
    if status == 404:
        return NotFound
    if status == 503:
        return Unavailable
    if status == 504:
        return DeadlineExceeded
    return RequestError if status < 500 else ServerError
