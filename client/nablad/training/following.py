"""How a loop on the server is followed, without the I/O: what to ask for next, and what events mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nablad.calls import Call, Calls
from nablad.errors import Diverged, NotFound
from nablad.problems import Problem
from nablad.question import Encode
from nablad.training.calls import begin_run, events
from nablad.training.description import Computation, Optimiser, Subject, drawn, sampler, settings_of
from nablad.training.events import Event
from nablad.training.history import History
from nablad.training.messages import Ended, Report


@dataclass(frozen=True)
class Loop:
    """A training loop, as its caller describes it."""

    subject: Subject
    computation: Computation
    samplers: Mapping[str, Mapping[str, Any]]
    optimiser: Optimiser | None
    steps: int | None
    phases: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    """All further members of the request; None where the server's default stands."""

    def members(self, encode: Encode) -> dict[str, Any]:
        """The members of the request."""
        beside = {**self.subject.trained, **drawn(self.samplers)}
        given = {
            "optimiser": None if self.optimiser is None else settings_of(self.optimiser),
            "steps": self.steps,
            "phases": [dict(phase) for phase in self.phases],
            **{name: value for name, value in self.settings.items() if value is not None},
        }
        return {
            **self.subject.members(encode),
            **self.computation.members(self.subject.names, encode, beside),
            "samplers": {name: sampler(name, given, encode) for name, given in self.samplers.items()},
            **given,
        }

    @property
    def total(self) -> int | None:
        """Steps of all phases together, where that is told."""
        counts = [phase.get("steps") for phase in self.phases] if self.phases else [self.steps]
        return None if None in counts else sum(count for count in counts if count is not None)


class Following:
    """Where the reading of a run's events stands.

    With the `members` of the request it begins the run, and goes on from its last save where the server was
    started again; without them it follows a run that is there.
    """

    def __init__(
        self,
        calls: Calls,
        name: str | None,
        members: Mapping[str, Any] | None = None,
        total: int | None = None,
    ) -> None:
        self._calls = calls
        self._members = dict(members) if members is not None else None
        self.total = total
        self.name = name
        self.history = History()
        self.ended: Ended | None = None
        self.kind: str | None = None
        """How it ended: `done`, `stopped` or `diverged`."""
        self.checkpoint: int | None = None
        self.started = False
        """Whether anything was read."""
        self._begun = members is None
        self._last: str | None = None

    @classmethod
    def of(cls, calls: Calls, loop: Loop) -> Following:
        """Begins a loop."""
        members = loop.members(calls.copied)
        return cls(calls, members.get("name"), members, loop.total)

    @property
    def stops_when_left(self) -> bool:
        """Whether the run is to be stopped when nobody reads on."""
        return self.ended is None and self._members is not None and not self._members.get("keep_going")

    @property
    def repeatable(self) -> bool:
        """Whether what is asked for now may be asked for twice: a run that was just begun may not."""
        return self._begun or self.checkpoint is not None

    def call(self) -> Call[None]:
        """What to ask for now, whose answer is a stream of events."""
        if self._begun:
            assert self.name is not None
            return events(self._calls, self.name, self._last)
        assert self._members is not None
        return begin_run(self._calls, self._members)

    def take(self, event: Event) -> Report | None:
        """What an event means: a report, or a change of state here.

        Raises:
            Diverged: the run ended so.
            ServiceError: it failed.
        """
        self.started = True
        self._last = event.id if event.id is not None else self._last
        data = event.data
        if event.kind == "started":
            self.name, self._begun = str(data["name"]), True
        elif event.kind == "report":
            report = Report.model_validate(data)
            self.history.add(report)
            return report
        elif event.kind == "checkpoint":
            self.checkpoint = int(data["step"])
        elif event.kind == "failed":
            raise Problem.model_validate(data).exception()
        elif event.kind in ("done", "stopped", "diverged"):
            self.end(event.kind, Ended.model_validate(data))
            if event.kind == "diverged":
                assert self.ended is not None
                raise Diverged(self.ended.reason, step=self.ended.step, checkpoint=self.ended.checkpoint)
        return None

    def end(self, kind: str, ended: Ended) -> None:
        """Take note of the end."""
        self.kind, self.ended = kind, ended
        self.checkpoint = ended.checkpoint if ended.checkpoint is not None else self.checkpoint

    def lost(self, error: NotFound) -> None:
        """The server does not know the run any more: begin again where it was saved, or raise the error."""
        if error.code != "unknown_run" or self._members is None or self.checkpoint is None:
            raise error
        self._members = {**self._members, "name": self.name, "resume": True}
        self._begun, self._last = False, None
