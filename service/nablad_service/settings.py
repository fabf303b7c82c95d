"""Everything an operator may set: options of `nablad serve` or `NABLAD_*` variables, read once."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nablad_service.language import Limits

MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """The server's configuration, one frozen record. Every field is documented in `docs/operating.md`."""

    model_config = SettingsConfigDict(env_prefix="NABLAD_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless told otherwise.")
    port: int = Field(8421, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    uds: str | None = Field(
        None,
        description="Unix socket to listen on in place of a port; beside it where host or port is named too.",
    )
    uds_permissions: str = Field(
        "600", pattern="^[0-7]{3}$", description="Who may connect to the Unix socket, as chmod has it."
    )
    shared_memory: bool = Field(
        True, description="Whether callers on the Unix socket may share memory with the server (Linux)."
    )
    protocol: Literal["own", "stock"] = Field(
        "own", description="How bodies are received: own, straight into place, or stock, as uvicorn does."
    )
    repository: str | None = Field(
        None, description="Folder that keeps hosted models and their parameters; without it, memory does."
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Python file with MODELS and FUNCTIONS of your own; may be repeated."
    )
    max_body_bytes: int = Field(1024 * MEBIBYTE, gt=0, description="Largest request body.")
    max_array_bytes: int = Field(
        4096 * MEBIBYTE, gt=0, description="Largest array that a program may make on its way."
    )
    memory_limit: int | None = Field(
        None,
        gt=0,
        description="Estimated peak memory of a program in bytes; larger ones run on fewer examples at once.",
    )
    max_queue: int = Field(256, gt=0, description="Calls that may wait for the device; more are refused.")
    max_batch: int = Field(
        64, gt=0, description="Calls of one program that are computed together when they wait; 1 for none."
    )
    max_batch_bytes: int = Field(
        1024 * MEBIBYTE, gt=0, description="Estimated peak memory of calls that are computed together."
    )
    max_programs: int = Field(512, gt=0, description="Compiled programs kept; the least recently used goes.")
    max_models: int = Field(1024, gt=0, description="Models hosted at once.")
    max_resident_bytes: int = Field(
        4096 * MEBIBYTE,
        ge=0,
        description="Values and parameter versions kept for callers; the least recently used goes.",
    )
    device_memory: int | None = Field(
        None,
        gt=0,
        description="Bytes of resident arrays on the device; the least recently used stay in host memory.",
    )
    max_artifact_bytes: int = Field(
        64 * MEBIBYTE, gt=0, description="Largest StableHLO artifact that is hosted."
    )
    tune_after_calls: int = Field(
        50,
        ge=0,
        description="Calls of a program before its variants are compiled and timed beside them; 0 for never.",
    )
    cache: str | None = Field(
        None, description="Folder that keeps what timing taught of programs; without it, memory does."
    )
    checkpoints: str | None = Field(
        None, description="Folder that keeps saved training state; without it nothing of it can be saved."
    )
    saves_kept: int = Field(
        5, gt=0, description="Saves of one session or run that stay; the oldest goes when a new one is there."
    )
    max_sessions: int = Field(64, gt=0, description="Sessions, and again runs, at once.")
    max_session_bytes: int = Field(
        4096 * MEBIBYTE,
        gt=0,
        description="Parameters, optimiser state and gradients of sessions in memory; idle ones are saved.",
    )
    session_idle_seconds: float = Field(
        900.0,
        ge=0,
        description="After which an idle session is saved and leaves memory, or is dropped; 0 for never.",
    )
    session_wait_seconds: float = Field(
        30.0, ge=0, description="How long a call of a session waits for one before it that does not come."
    )
    compile_threads: int = Field(1, gt=0, description="Programs compiled at the same time.")
    compile_seconds: float = Field(
        600.0, ge=0, description="How long tracing or compiling a program may take; 0 for no limit."
    )
    run_seconds: float = Field(
        3600.0, ge=0, description="How long one call may occupy the device; 0 for no limit."
    )
    busy_poll_seconds: float = Field(
        0.001,
        ge=0,
        le=1,
        description="How long a lone caller's next request is looked for without sleeping; 0 for never.",
    )
    drain_seconds: float = Field(20.0, ge=0, description="How long a stopping server finishes its calls.")
    text_bytes: int = Field(Limits.text_bytes, gt=0, description="Longest program.")
    depth: int = Field(Limits.depth, gt=0, description="Deepest nesting of brackets and calls.")
    nodes: int = Field(Limits.nodes, gt=0, description="Most operations in a program.")
    derivative_order: int = Field(
        Limits.derivative_order, gt=0, description="Most derivatives inside one another."
    )
    evaluations: int = Field(
        Limits.evaluations, gt=0, description="Most operations that tracing may evaluate."
    )

    iterations: int = Field(
        Limits.iterations, gt=0, description="Most runs of a loop's body, nested loops multiplied."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        """A variable holds several files as PATH does, with ':' between them (';' on Windows)."""
        return tuple(filter(None, given.split(os.pathsep))) if isinstance(given, str) else given

    @field_validator("repository", "uds", "checkpoints")
    @classmethod
    def _named(cls, given: str | None) -> str | None:
        # An empty variable is how a container image's default is taken back.
        return given or None

    @property
    def listens_on_port(self) -> bool:
        """Whether there is a port to listen on: always, but where only a Unix socket is asked for."""
        return self.uds is None or bool(self.model_fields_set & {"host", "port"})

    @property
    def limits(self) -> Limits:
        """The limits on programs."""
        return Limits(
            text_bytes=self.text_bytes,
            depth=self.depth,
            nodes=self.nodes,
            derivative_order=self.derivative_order,
            evaluations=self.evaluations,
            iterations=self.iterations,
            memory_bytes=self.memory_limit,
            array_bytes=self.max_array_bytes,
        )
