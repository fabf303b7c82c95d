"""The order of a session's calls without the I/O: their numbers, and the failures nobody has looked at."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from nablad.errors import SessionRestored
from nablad.training.messages import Standing
from nablad.training.pending import Outcome


class Order:
    """Numbers for a session's calls, one after the other. Safe to use from several threads.

    A call that failed leaves open whether its number was used: then no number is given until `follow` is told
    where the session stands.
    """

    def __init__(self, standing: Standing) -> None:
        self._name = standing.name
        self._latest = standing.sequence
        """Number of the last call that told a step."""
        self._go_on(standing.generation, standing.sequence, standing.step)
        self._unsure = False
        self._told = standing.generation
        """The last generation that the caller knows of."""
        self._failed: list[tuple[Outcome, BaseException]] = []
        self._lock = threading.Lock()

    def admit(self) -> int:
        """The generation that a new call belongs to.

        Raises:
            NabladError: a call before has failed, and nobody looked at it.
        """
        with self._lock:
            self._raise_unseen()
            return self.generation

    def number(self, generation: int | None = None) -> dict[str, int] | None:
        """The members that number a call; None where it is to be asked first where the session stands.

        `generation` is that of a call which was admitted before; without it the call is admitted now.

        Raises:
            SessionRestored: the session is of another generation by now.
            NabladError: as `admit`.
        """
        with self._lock:
            if generation is None:
                self._raise_unseen()
            elif generation != self.generation:
                raise self._restored()
            if self._unsure:
                return None
            taken = {"sequence": self.next, "generation": self.generation}
            self.next += 1
            return taken

    def failed(self, outcome: Outcome, error: BaseException) -> None:
        """Take note of a call that failed; after a restoration the numbers go on from there."""
        with self._lock:
            self._failed.append((outcome, error))
            if not isinstance(error, SessionRestored):
                self._unsure = True
            elif error.generation > self.generation:
                self._go_on(error.generation, error.sequence, error.step)

    def took(self, number: Mapping[str, int], result: object) -> None:
        """Take note of the step that the result of a numbered call tells; results come in any order."""
        step = getattr(getattr(result, "stepped", None) or result, "step", None)
        with self._lock:
            here = number["generation"] == self.generation
            if step is not None and here and number["sequence"] > self._latest:
                self.step = step
                self._latest = number["sequence"]

    def follow(self, standing: Standing) -> None:
        """Go on from where the session stands; nothing is under way.

        Raises:
            SessionRestored: it came from a save meanwhile, and the caller does not know.
        """
        with self._lock:
            self._unsure = False
            known = self.generation
            self._go_on(standing.generation, standing.sequence, standing.step)
            if standing.generation != known:
                raise self._restored()

    def _go_on(self, generation: int, sequence: int, step: int) -> None:
        self.generation, self.next, self.step = generation, sequence + 1, step
        self._latest = sequence
        self._stood = (step, sequence, generation)

    def _restored(self) -> SessionRestored:
        return SessionRestored.of(self._name, *self._stood)

    def raise_unseen(self) -> None:
        """Raise the first failure that nobody has looked at."""
        with self._lock:
            self._raise_unseen()

    def _raise_unseen(self) -> None:
        # All calls under way tell of one restoration: it is raised once.
        for outcome, error in self._failed:
            if outcome.seen and isinstance(error, SessionRestored):
                self._told = max(self._told, error.generation)
        unseen = [(outcome, error) for outcome, error in self._failed if not self._known(outcome, error)]
        self._failed = unseen[1:]
        if unseen:
            outcome, error = unseen[0]
            if isinstance(error, SessionRestored):
                self._told = error.generation
            error.add_note(f"This is the answer to {outcome.what}, which nobody had looked at.")
            raise error

    def _known(self, outcome: Outcome, error: BaseException) -> bool:
        return outcome.seen or (isinstance(error, SessionRestored) and error.generation <= self._told)
