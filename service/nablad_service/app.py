"""The FastAPI application: routes around the pipeline, refusals as problem documents."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from nablad import __version__
from nablad.blocks import Blocks
from nablad.problems import Refusal
from nablad_service.engine.disk_cache import tell_of_disk
from nablad_service.engine.engine import Engine
from nablad_service.engine.operators import SIGNATURES
from nablad_service.engine.registered import registered_as
from nablad_service.hosting import ModelStore, Shelf, Values, Versions
from nablad_service.hosting.python_models import python_models
from nablad_service.hosting.repository import Repository
from nablad_service.metrics import Metrics
from nablad_service.pipeline import Pipeline
from nablad_service.planning.learned_plans import LearnedPlans
from nablad_service.planning.programs import Programs
from nablad_service.planning.tuning import Tuner
from nablad_service.routes import health, models, operators, programs, sessions, shortcuts, training, values
from nablad_service.routes import metrics as counters
from nablad_service.routes.compression import CompressedAnswers
from nablad_service.routes.counting import Counting
from nablad_service.routes.failures import Failures
from nablad_service.routes.hot import Endpoint, HotPaths
from nablad_service.routes.leaving import Callers
from nablad_service.routes.problems import problem
from nablad_service.routes.schema import openapi
from nablad_service.routes.shared_memory import SharedBodies
from nablad_service.running.batches import Batches, BatchLimits
from nablad_service.running.collecting import settle
from nablad_service.running.scheduler import Scheduler
from nablad_service.settings import Settings
from nablad_service.sockets.shared_memory import SharedMemory
from nablad_service.training.memory import Memory, SessionLimits
from nablad_service.training.pieces import Pieces
from nablad_service.training.run import Parts
from nablad_service.training.runs import Runs
from nablad_service.training.saves import Saves
from nablad_service.training.session import Device, Session
from nablad_service.training.sessions import Sessions
from nablad_service.training.stages import CompiledLoops

DESCRIPTION = """
Gradients of losses that contain derivatives. Host a model with `PUT /v1/models/{name}`, then send a loss to
`POST /v1/gradient`. Bodies are JSON or msgpack by `Content-Type` and `Accept`; refusals are RFC 9457 problem
documents with a stable `code`, and `where` for places in a program's text.
"""

HOT: Mapping[str, Endpoint] = {
    "/v1/gradient": programs.gradient,
    "/v1/evaluate": programs.evaluate,
    "/v1/sessions/{name}/gradient": sessions.gradient,
    "/v1/sessions/{name}/step": sessions.step,
}
"""Endpoints that calls come to in crowds."""


class Application(FastAPI):
    """FastAPI behind the hot paths, once it lives; without them where something is to see every request."""

    hot: HotPaths | None = None
    layers: Sequence[Middleware] = ()
    """Its own middlewares, which calls of hot paths do not need."""

    def observed(self) -> bool:
        """Whether others have put a middleware around it, or FastAPI tells OpenTelemetry of requests."""
        telemetry = getattr(self, "_native_telemetry", None)  # FastAPI has no public word for it
        return (
            self.user_middleware != self.layers
            or "build_middleware_stack" in vars(self)  # which instrumentation of older FastAPI replaces
            or (telemetry is not None and telemetry.enabled())
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        if self.hot is None or not await self.hot.answered(scope, receive, send):
            await super().__call__(scope, receive, send)


def create_app(
    settings: Settings | None = None,
    *,
    repository: Repository | None = None,
    saves: Saves | None = None,
    memory: socket.socket | None = None,
) -> Application:
    """The service as an ASGI application; nothing starts before its lifespan does.

    A middleware that is added before then sees every request, which then takes longer.

    A `repository` or `saves` that are open already are taken over; else the lifespan opens those that the
    settings name.
    `memory` is a listening socket where callers on this host may hand over shared memory.
    """
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        kept = repository
        if kept is None and settings.repository is not None:
            kept = Repository.open(Path(settings.repository))
        # Before the engine allows 64-bit types: the operator's files make what they make elsewhere.
        own = python_models(settings.models, lambda name, given: registered_as(name, given, SIGNATURES))
        cache = Path(settings.cache) if settings.cache else None
        engine = Engine.start(
            settings.limits,
            functions=own.functions,
            compiled=cache / "compiled" if cache else None,
            device_memory=settings.device_memory,
        )
        tell_of_disk(metrics.disk)
        shelf = Shelf(settings.max_resident_bytes)
        store = ModelStore(
            settings.max_models,
            repository=kept,
            python=own,
            max_artifact_bytes=settings.max_artifact_bytes,
            versions=Versions(shelf),
        )
        scheduler = Scheduler(settings.max_queue, seconds=settings.run_seconds, ran=metrics.ran)
        learned = LearnedPlans(
            cache / "plans" if cache else None, f"nablad {__version__}, {engine.platform()}"
        )
        batches = Batches(
            engine,
            BatchLimits(settings.max_batch, settings.max_batch_bytes),
            metrics,
            seconds=settings.compile_seconds,
        )
        compiled = Programs(
            engine,
            learned,
            limit=settings.max_programs,
            threads=settings.compile_threads,
            seconds=settings.compile_seconds,
            metrics=metrics,
        )
        tuner = Tuner(
            engine,
            scheduler,
            learned,
            compiled.replace,
            after_calls=settings.tune_after_calls,
            seconds=settings.compile_seconds,
            metrics=metrics,
        )
        metrics.ask("nablad_models", "Models hosted, loaded or not.", lambda: len(store.cards()))
        metrics.ask("nablad_programs_kept", "Compiled programs in memory.", lambda: len(compiled))
        metrics.ask(
            "nablad_resident_bytes",
            "Values and parameter versions kept for callers.",
            lambda: shelf.statistics().bytes,
        )
        metrics.ask(
            "nablad_device_bytes",
            "Resident arrays on the device.",
            lambda: engine.placement.statistics().bytes,
        )
        metrics.ask(
            "nablad_queue_calls",
            "Calls that wait for the device or run on it.",
            lambda: scheduler.statistics().waiting_or_running,
        )
        app.state.settings = settings
        app.state.pipeline = Pipeline(store, Values(shelf), compiled, scheduler, tuner, batches, metrics)
        app.state.learned = learned
        app.state.engine = engine
        app.state.shelf = shelf
        saved = saves
        if saved is None and settings.checkpoints is not None:
            saved = Saves(Path(settings.checkpoints), keep=settings.saves_kept)
        app.state.saves = saved
        parts = Parts(compiled, scheduler, engine.placement, CompiledLoops(compiled), saved)
        sessions: dict[tuple[str, str], Session] = {}
        app.state.runs = Runs(parts, settings.max_sessions, sessions)
        pieces = Pieces(compiled, settings.max_programs)
        remembered = Memory(
            Device(pieces, scheduler, engine.placement, compiled),
            store,
            saved,
            SessionLimits(
                settings.max_sessions,
                settings.max_session_bytes,
                settings.session_idle_seconds,
                settings.session_wait_seconds,
            ),
            settings.limits,
            sessions,
            app.state.runs,
        )
        remembered.start()
        app.state.sessions = Sessions(remembered)
        metrics.ask("nablad_sessions", "Sessions in memory.", lambda: len(remembered.loaded()))
        metrics.ask(
            "nablad_session_bytes",
            "Parameters, optimiser state and gradients of sessions in memory.",
            lambda: sum(one.bytes for one in remembered.loaded()),
        )
        app.state.device = engine.device()
        if memory is not None:
            app.state.memory = SharedMemory(memory, settings.max_body_bytes)
            app.state.memory.start()
        settle()
        if not app.observed():
            app.hot = HotPaths(HOT, metrics, settings.busy_poll_seconds)
        app.state.ready = True
        yield
        app.state.ready = False
        await app.state.runs.close()
        await remembered.close()
        if memory is not None:
            app.state.memory.close()
        tuner.close()
        batches.close()
        compiled.close()
        scheduler.close()
        if saved is not None:
            saved.close()
        if kept is not None:
            kept.close()

    app = Application(
        title="nablad", version=__version__, description=DESCRIPTION, lifespan=lifespan, redoc_url=None
    )
    app.state.metrics = metrics
    for group in (programs, models, values, shortcuts, sessions, training, operators, health, counters):
        app.include_router(group.router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.state.memory = None
    app.state.blocks = Blocks()
    app.state.callers = Callers()
    app.add_middleware(CompressedAnswers)
    app.add_middleware(SharedBodies)
    app.add_middleware(Failures)
    app.add_middleware(Counting, metrics=metrics)
    app.layers = [*app.user_middleware]
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign] # FastAPI's own way to extend it
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return problem(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        detail = f"{request.method} is not possible on {request.url.path}; see /docs"
        refused = problem(Refusal("method_not_allowed", detail))
        refused.headers["Allow"] = (error.headers or {}).get("Allow", "")
        return refused
    return problem(Refusal("unknown_path", f"there is nothing at {request.url.path}; see /docs"))
