"""The runs of a server, by tenant and name: begun, found again, stopped when nobody listens, forgotten."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Container, Mapping
from typing import Any

from nablad.problems import Refusal
from nablad.training.messages import RunStanding, TrainRequest
from nablad_service.language.places import nearest
from nablad_service.requests.recalling import Lookups
from nablad_service.training.labels import parameter_of
from nablad_service.training.questions import loop_query
from nablad_service.training.resuming import choices_of
from nablad_service.training.run import Parts, Run
from nablad_service.training.stages import stages_of

PATIENCE = 30.0
"""Seconds for which a run goes on that nobody listens to: a stream that broke is asked for again."""
LEFT = "nobody listens any more; with keep_going it would have gone on"


class Runs:
    """All runs that are under way, and those that ended, until there are `limit` of them.

    A name is one thing for each tenant, a run or a session. Lives on one event loop.

    Args:
        parts: what runs share.
        limit: of runs in memory.
        sessions: tenants and names of the sessions that there are; the saves of such a name are a session's.
        patience: seconds for which a run goes on that nobody listens to.
    """

    def __init__(
        self,
        parts: Parts,
        limit: int,
        sessions: Container[tuple[str, str]],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._parts = parts
        self._limit = limit
        self._sessions = sessions
        self.patience = patience
        self._closed = False
        self._runs: dict[tuple[str, str], Run] = {}
        self._stopping: set[asyncio.Task[Any]] = set()

    async def begin(self, request: TrainRequest, lookups: Lookups, tenant: str) -> Run:
        """Begin a run, or go on with one from its last save.

        Raises:
            Refusal: for anything wrong with the request or its program, a name that is taken, or a save that
                does not fit.
        """
        saves = self._parts.saves
        if saves is None and (request.resume or request.checkpoint_every):
            detail = "this server keeps no saves: leave out checkpoint_every and resume, or start it with"
            raise Refusal("no_checkpoints", f"{detail} --checkpoints DIR")
        if request.resume and request.name is None:
            raise Refusal("invalid_request", "resume goes on with the run of a name; send name too")
        name = request.name or secrets.token_hex(8)
        self._check_free(tenant, name, request)
        saved = None
        if request.resume and saves is not None:
            saved = await asyncio.to_thread(saves.read, tenant, name)
        query, samplers = await asyncio.to_thread(loop_query, request, lookups)
        chosen = choices_of(saved[1]) if saved is not None else {}
        stages = await stages_of(request, query, samplers, self._parts.programs, chosen)
        self._check_free(tenant, name, request)
        self._make_room()
        run = Run(name, tenant, request, stages, self._parts, deserted=self._deserted, saved=saved)
        self._runs[tenant, name] = run
        run.start()
        return run

    def get(self, tenant: str, name: str) -> Run:
        """The run of that name.

        Raises:
            Refusal: `unknown_run`, with the nearest name.
        """
        run = self._runs.get((tenant, name))
        if run is None:
            raise self._unknown(tenant, name)
        return run

    def has(self, tenant: str, name: str) -> bool:
        """Whether a run of that name is in memory, under way or ended."""
        return (tenant, name) in self._runs

    def check_ended(self, tenant: str, name: str) -> None:
        """Make sure that a session may have the saves of a run.

        Raises:
            Refusal: `session_exists` where the run is under way.
        """
        run = self._runs.get((tenant, name))
        if run is not None and run.status == "running":
            detail = f"'{name}' is a run that is under way; stop it, and a session can go on from its save"
            raise Refusal("session_exists", detail)

    def forget(self, tenant: str, name: str) -> None:
        """Forget a run that has ended, where there is one, but not its saves: the name is a session's now."""
        self._runs.pop((tenant, name), None)

    def standing(self, tenant: str, name: str) -> RunStanding:
        """Where a run stands, also one of which only saves are there.

        Raises:
            Refusal: `unknown_run`, with the nearest name.
        """
        run = self._runs.get((tenant, name))
        if run is not None:
            return run.standing()
        about = self._about(tenant, name)
        if about is None or self._parts.saves is None:
            raise self._unknown(tenant, name)
        return RunStanding(
            name=name,
            status="saved",
            step=about["step"],
            steps=None,
            value=about["loop"]["value"],
            saved=self._parts.saves.steps(tenant, name),
            reason=None,
        )

    def all(self, tenant: str) -> list[RunStanding]:
        """Where all runs of a tenant stand, by name."""
        return [self.standing(tenant, name) for name in self._names(tenant)]

    async def trained(self, tenant: str, name: str) -> dict[str, Any]:
        """What is trained as it stands: `step`, `params` and `state` by model, `trained` inputs.

        Raises:
            Refusal: `unknown_run`, with the nearest name.
        """
        run = self._runs.get((tenant, name))
        if run is not None:
            step, leaves = await run.trained()
        else:
            if self._about(tenant, name) is None or self._parts.saves is None:
                raise self._unknown(tenant, name)
            leaves, about = await asyncio.to_thread(self._parts.saves.read, tenant, name)
            step = about["step"]
        return {"step": step, **_sections(leaves)}

    async def delete(self, tenant: str, name: str) -> None:
        """Stop a run and forget it with its saves.

        Raises:
            Refusal: `unknown_run`, with the nearest name.
        """
        self.standing(tenant, name)
        run = self._runs.get((tenant, name))
        if run is not None:
            await run.stop("it was deleted")
            self._runs.pop((tenant, name), None)
        if self._parts.saves is not None:
            await asyncio.to_thread(self._parts.saves.remove, tenant, name)

    async def close(self) -> None:
        """Save and stop all, and begin no other."""
        self._closed = True
        running = [run for run in self._runs.values() if run.status == "running"]
        await asyncio.gather(*(run.stop("the server stops") for run in running))

    def _deserted(self, run: Run) -> None:
        """Stop a run if nobody comes back to it."""
        if run.request.keep_going:
            return

        def look() -> None:
            if not run.events.heard and run.status == "running":
                stopping = asyncio.ensure_future(run.stop(LEFT))
                self._stopping.add(stopping)
                stopping.add_done_callback(self._stopping.discard)

        asyncio.get_running_loop().call_later(self.patience, look)

    def _check_free(self, tenant: str, name: str, request: TrainRequest) -> None:
        run = self._runs.get((tenant, name))
        if run is not None and run.status == "running":
            detail = f"the run '{name}' is under way; listen to it at /v1/train/{name}/events, or stop it"
            raise Refusal("run_exists", detail)
        if (tenant, name) in self._sessions:
            detail = f"'{name}' is a session; go on with it, delete it, or choose another name"
            raise Refusal("run_exists", detail)
        kept = self._parts.saves is not None and bool(self._parts.saves.steps(tenant, name))
        # One that ended before its first step has nothing that could be resumed, or lost.
        if not request.resume and (kept or (run is not None and run.step)):
            detail = (
                f"there is a run or a session '{name}' already; resume it, delete it, or choose another name"
            )
            raise Refusal("run_exists", detail)

    def _make_room(self) -> None:
        """Forget the run that ended first, where there are too many."""
        if self._closed:
            raise Refusal("stopping", "the server stops; ask again", extra={"retry_after": 1})
        ended = [key for key, run in self._runs.items() if run.status != "running"]
        while len(self._runs) >= self._limit and ended:
            del self._runs[ended.pop(0)]
        if len(self._runs) >= self._limit:
            detail = (
                f"{self._limit} runs are under way already; stop one, or have the operator raise max_sessions"
            )
            raise Refusal("overloaded", detail, extra={"retry_after": 30})

    def _about(self, tenant: str, name: str) -> dict[str, Any] | None:
        """The document of the last save of a run; None where there is none, or a session has it."""
        saves = self._parts.saves
        if saves is None or (tenant, name) in self._sessions or name not in saves.names(tenant):
            return None
        try:
            about = saves.about(tenant, name)
        except Refusal:  # damaged, or gone since
            return None
        return about if about.get("kind") == "run" else None

    def _names(self, tenant: str) -> list[str]:
        """Of all runs of a tenant, sorted."""
        saves = self._parts.saves
        kept = [] if saves is None else saves.names(tenant)
        known = {name for whose, name in self._runs if whose == tenant}
        return sorted(known | {name for name in kept if name not in known and self._about(tenant, name)})

    def _unknown(self, tenant: str, name: str) -> Refusal:
        known = self._names(tenant)
        hint = nearest(name, known) or (
            f"; there are {', '.join(known[:20])}" if known else "; there is none"
        )
        return Refusal("unknown_run", f"no run is called '{name[:100]}'{hint}")


def _sections(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path as an answer has them."""
    found: dict[str, dict[str, Any]] = {"params": {}, "state": {}, "trained": {}}
    for path, leaf in leaves.items():
        part, _, label = path.partition("/")
        if part == "models":
            model, _, name = label.partition("/")
            found["state"].setdefault(model, {})[name] = leaf
        elif part == "params":
            parameter = parameter_of(label)
            if parameter is None:
                found["trained"][label] = leaf
            else:
                found["params"].setdefault(parameter[0], {})[parameter[1]] = leaf
    return found
