"""How a session is begun, or gone on with."""

from __future__ import annotations

from dataclasses import dataclass

from nablad.calls import Call, Calls
from nablad.training.calls import SessionCalls, begin_session
from nablad.training.description import Optimiser, Subject, settings_of
from nablad.training.messages import Standing


@dataclass(frozen=True)
class Opening:
    """What a session is opened with.

    Raises:
        ValueError: a session without a name cannot be gone on with, one without an optimiser not begun.
    """

    calls: Calls
    subject: Subject
    optimiser: Optimiser | None
    name: str | None
    seed: int
    resume: bool

    def __post_init__(self) -> None:
        if self.resume and self.name is None:
            raise ValueError("resume=True goes on with the session of a name: give name= too")
        if self.optimiser is None and not self.resume:
            raise ValueError(
                'a session needs an optimiser: optimiser={"name": "adam", "learning_rate": 1e-3}'
            )

    @property
    def keep(self) -> bool:
        """Whether the session stays when it is left: a name is there to come back to."""
        return self.name is not None

    def kept(self) -> Call[Standing] | None:
        """Asks for the session that is kept under the name, where that is wanted."""
        return SessionCalls(self.calls, self.name).standing() if self.resume and self.name else None

    def fresh(self) -> Call[Standing] | None:
        """Begins a session, where there is an optimiser for one."""
        if self.optimiser is None:
            return None
        members = {
            **self.subject.members(self.calls.copied),
            "optimiser": settings_of(self.optimiser),
            "name": self.name,
            "seed": self.seed,
        }
        return begin_session(self.calls, members)
