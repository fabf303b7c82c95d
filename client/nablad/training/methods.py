"""What a client can do about training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nablad.calls import Call, Calls
from nablad.question import Inputs, Loss, Models, Terms, Tree
from nablad.sending import Sender
from nablad.training.calls import delete_run, delete_session, runs, sessions
from nablad.training.description import Computation, Optimiser, Subject
from nablad.training.following import Following, Loop
from nablad.training.messages import RunStanding, Standing
from nablad.training.opening import Opening
from nablad.training.patience import PATIENCE
from nablad.training.run import Run
from nablad.training.session import Session

T = TypeVar("T")


class Training(ABC):
    """The part of a client that trains: sessions, whose loop is the caller's, and loops on the server."""

    _calls: Calls
    _sender: Sender

    @abstractmethod
    def _send(self, call: Call[T]) -> T:
        """The result of a call."""

    def session(
        self,
        *,
        optimiser: Optimiser | None = None,
        model: str | None = None,
        models: Models | None = None,
        params: Tree | Mapping[str, Tree] | None = None,
        state: Tree | Mapping[str, Tree] | None = None,
        mode: str | None = None,
        trained: Inputs | None = None,
        seed: int = 0,
        name: str | None = None,
        resume: bool = False,
        patience: float = PATIENCE,
    ) -> Session:
        """Training state on the server, and the loop with the caller: `with client.session(...) as s:`.

        Args:
            optimiser: one of optax's, by name, with its settings: `{"name": "adam", "learning_rate": 1e-3}`.
                A schedule stands for the number: `{"schedule": "cosine_decay", "init_value": 1e-3,
                "decay_steps": 2000}`. `clip_norm` bounds the norm of all gradients together, `frozen` names
                what does not change.
            model: the hosted model that is trained, bound to the name `model`.
            models: several, by the names the programs use.
            params: parameters to begin with in place of the resident ones (by model where several).
            state: state to begin with, likewise.
            mode: `"eval"` (default) or `"train"`, for batch normalisation.
            trained: inputs of the programs that are trained like parameters, with start values.
            seed: seed of all that is drawn at random.
            name: a name to keep the session under, beyond the `with` and the life of this client.
            resume: go on with the session of that name where the server keeps one; else begin it.
            patience: seconds to go on trying where the server does not answer.

        Raises:
            RequestError: the optimiser or a setting does not exist; a session is kept under the name.
            NotFound: no such model; nothing to resume, and no optimiser to begin with.
            ConnectionFailed: the server does not answer.
        """
        subject = Subject(model, models, params, state, mode, trained or {})
        return Session(self._send, Opening(self._calls, subject, optimiser, name, seed, resume), patience)

    def sessions(self) -> list[Standing]:
        """The sessions that the server keeps, and where they stand."""
        return self._send(sessions(self._calls))

    def delete_session(self, name: str) -> None:
        """Remove a session and its saves."""
        self._send(delete_session(self._calls, name))

    def runs(self) -> list[RunStanding]:
        """The runs of `train` that the server keeps, and where they stand."""
        return self._send(runs(self._calls))

    def delete_run(self, name: str) -> None:
        """Stop a run, and remove it and its saves."""
        self._send(delete_run(self._calls, name))

    def train(
        self,
        loss: Loss,
        *,
        optimiser: Optimiser | None = None,
        steps: int | None = None,
        phases: Sequence[Mapping[str, Any]] = (),
        model: str | None = None,
        models: Models | None = None,
        params: Tree | Mapping[str, Tree] | None = None,
        state: Tree | Mapping[str, Tree] | None = None,
        mode: str | None = None,
        trained: Inputs | None = None,
        inputs: Inputs | None = None,
        samplers: Mapping[str, Mapping[str, Any]] | None = None,
        resample_every: int | None = None,
        terms: Terms | None = None,
        balance: Mapping[str, Any] | None = None,
        stop: Mapping[str, Any] | None = None,
        report_every: int = 100,
        checkpoint_every: int | None = None,
        keep_going: bool = False,
        nesting: str = "auto",
        strategies: Mapping[str, str] | None = None,
        examples_at_once: int | None = None,
        memory_limit: int | None = None,
        seed: int = 0,
        name: str | None = None,
        resume: bool = False,
        progress: bool = True,
        patience: float = PATIENCE,
    ) -> Run:
        """A whole training loop on the server: `for report in client.train(...)`.

        Nothing travels but reports. Leaving the loop early stops the run, unless `keep_going`.

        Args:
            loss: a program's text, or a Python function, as for `gradient`.
            optimiser: one of optax's, with its settings, as for `session`.
            steps: how many; together with `optimiser`.
            phases: in place of both: `[{"optimiser": {...}, "steps": 2000}, {"optimiser": {"name": "lbfgs"},
                "steps": 500, "dtype": "float64"}]`.
            model: the hosted model that is trained, bound to the name `model`.
            models: several, by the names the program uses.
            params: parameters to begin with in place of the resident ones (by model where several).
            state: state to begin with, likewise.
            mode: `"eval"` (default) or `"train"`, for batch normalisation.
            trained: inputs of the program that are trained like parameters, with start values.
            inputs: arrays, numbers, trees or handles beside what is trained.
            samplers: inputs that the server draws, by name: `{"x": {"distribution": "sobol", "low": [0, -1],
                "high": [1, 1], "n": 2048}}`; `uniform`, `faces` and `latin_hypercube` likewise. With
                `"names": ["t", "x"]` each coordinate is an input of its own. `{"distribution": "batches",
                "data": {"x": x, "y": y}, "n": 32}` takes some examples for each step.
            resample_every: draw anew after so many steps; by default points are drawn once.
            terms: named scalars to report, or their weights when the loss is the weighted sum.
            balance: weigh the terms by the norms of their gradients: `{"every": 100, "decay": 0.9}`.
            stop: end early: `{"value_below": 1e-6}`, `{"no_better_for": 500}`.
            report_every: steps between two reports.
            checkpoint_every: steps between two saves, which a run can be resumed from.
            keep_going: go on without this client; `follow` comes back to it.
            nesting: how inner gradients are differentiated, as for `gradient`.
            strategies: strategies pinned by operator.
            examples_at_once: compute so many examples at a time.
            memory_limit: bytes that the computation may take, by estimate.
            seed: seed of all that is drawn at random.
            name: a name to follow, resume and load the run by.
            resume: go on from the last save of that name.
            progress: show a bar while the reports are read, where standard error is a terminal and rich is
                installed.
            patience: seconds to go on trying where the server does not answer.

        Raises:
            ProgramError: the loss is at fault; `.where` points into its text.
            RequestError: optimiser, samplers, inputs or names are at fault.
            NotFound: no such model; nothing to resume.
            ConnectionFailed: the server does not answer.
        """
        loop = Loop(
            Subject(model, models, params, state, mode, trained or {}),
            Computation(loss, inputs or {}, terms, nesting, strategies, examples_at_once, memory_limit),
            samplers or {},
            optimiser,
            steps,
            phases,
            {
                "resample_every": resample_every,
                "balance": balance,
                "stop": stop,
                "report_every": report_every,
                "checkpoint_every": checkpoint_every,
                "keep_going": keep_going,
                "seed": seed,
                "name": name,
                "resume": resume,
            },
        )
        following = Following.of(self._calls, loop)
        return Run(self._calls, self._sender, following, progress=progress, patience=patience)

    def follow(self, name: str, *, progress: bool = True, patience: float = PATIENCE) -> Run:
        """Come back to a run that the server keeps: its reports from the first one on.

        Leaving it does not stop it.

        Raises:
            NotFound: there is no run of that name.
        """
        following = Following(self._calls, name)
        return Run(self._calls, self._sender, following, progress=progress, patience=patience)
