"""The synchronous client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import httpx
from numpy.typing import ArrayLike

from nablad.calls import DEFAULT_TIMEOUT, DEFAULT_URL, Call, Calls
from nablad.halves import Floats
from nablad.handles import DEDUPE_BYTES, Handle
from nablad.messages import FailedModel, ModelInfo, OperatorInfo, ValueInfo, WarmProgram
from nablad.plans import PlanReport
from nablad.polling import BUSY_POLL
from nablad.question import Inputs, Loss, Models, Question, Terms, Tree
from nablad.results import CheckResult, EvaluateResult, GradientResult, Params
from nablad.sending import Sender
from nablad.shortcuts import Shortcuts
from nablad.training.methods import Training
from nablad.wire import Format

T = TypeVar("T")


class Client(Shortcuts, Training):
    """A connection to a nablad server: `with nablad.Client() as client:`.

    Args:
        url: where the server listens, `http://host:port` or `unix:/path`.
        floats: `"float16"` or `"bfloat16"`: floats of calls and answers travel in two bytes an entry, for
            slow networks; a loss, and what `put` and `set_params` keep, travel exactly.
        compression: `"zstd"` compresses bodies and answers: for networks below 0.3 Gbit/s, or sparse arrays.
        shared_memory: let large bodies lie in memory shared with the server, on a Unix socket and Linux.
        format: `"frame"`, `"msgpack"`, or `"json"` for reading along; all are exact.
        dedupe: send large arrays once. Those of `inputs`, `params` and `state` are hashed at each call, and
            named by their handles where the server has them; what changed is noticed and sent. Hashing takes
            about 1.1 ms a megabyte: less than a network of 1 Gbit/s (8 ms), more than loopback (under 1 ms),
            where `put` is the better choice, which hashes nothing at a call.
        dedupe_bytes: arrays from this size on are looked at so.
        timeout: seconds, or an `httpx.Timeout`; by default ten minutes, since a first call compiles.
        busy_poll: seconds for which a call looks for its answer without sleeping, where the one before came
            within that time and no other is under way; 0 to leave the processor to others.
        transport: an httpx transport in place of nablad's own, e.g. `httpx.MockTransport(handler)`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        format: Format = "frame",  # noqa: A002 - the word that callers use
        dedupe: bool = False,
        dedupe_bytes: int = DEDUPE_BYTES,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        shared_memory: bool = False,
        floats: Floats | None = None,
        compression: str | None = None,
        busy_poll: float = BUSY_POLL,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._calls = Calls(format, dedupe_bytes if dedupe else None, floats)
        self._sender = Sender(
            url,
            timeout,
            transport,
            shared_memory=shared_memory,
            compression=compression,
            busy_poll=busy_poll,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self._sender.url}>"

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()

    def create_model(
        self,
        name: str,
        architecture: Mapping[str, Any] | None = None,
        params: Tree | None = None,
        state: Tree | None = None,
        seed: int = 0,
        *,
        stablehlo: bytes | bytearray | None = None,
    ) -> ModelInfo:
        """Host an architecture under `name`, with these parameters or ones drawn from `seed`.

        In place of an architecture, `stablehlo` hosts what `jax.export` serialised; its parameters are
        sent along.
        """
        return self._send(self._calls.create_model(name, architecture, params, state, seed, stablehlo))

    def models(self) -> list[ModelInfo]:
        """All hosted models."""
        return self._send(self._calls.models())

    def failed_models(self) -> list[FailedModel]:
        """What the server was given and could not load, with the reasons."""
        return self._send(self._calls.failed_models())

    def model(self, name: str) -> ModelInfo:
        """One hosted model, described."""
        return self._send(self._calls.model(name))

    def delete_model(self, name: str) -> None:
        """Stop hosting a model, and remove it from the server's repository."""
        self._send(self._calls.delete_model(name))

    def load_model(self, name: str) -> ModelInfo:
        """Read a model from the server's repository, as after an unload or a repair."""
        return self._send(self._calls.load_model(name))

    def unload_model(self, name: str) -> ModelInfo:
        """Take a model out of the server's memory; its repository keeps it."""
        return self._send(self._calls.unload_model(name))

    def params(self, name: str, version: str | None = None) -> Params:
        """The resident parameters and state of a model: the current ones, or those of another version."""
        return self._send(self._calls.params(name, version))

    def set_params(
        self, name: str, params: Tree, state: Tree | None = None, *, version: str | None = None
    ) -> str:
        """Replace resident parameters (and state, where given); gives the new version.

        With a `version`, which must be theirs, they become resident beside the current ones, which stay so:
        for bindings that name it, `models={"model": {"name": "net", "version": version}}`.
        """
        return self._send(self._calls.set_params(name, params, state, version))

    def put(self, value: ArrayLike | Tree, pinned: bool = False) -> Handle:
        """Keep an array, or a flat tree of arrays, on the server; calls name it by the handle.

        A handle stands wherever an array, a tree or its leaf may in `inputs`, `params` and `state`, and costs
        a call nothing, however large the value. Equal content has equal handles, for all clients of a server.
        Lists and numbers take the dtype that NumPy gives them.

        The server lets go of what was used longest ago when it needs room, unless it is `pinned`, and of
        everything when it restarts. Then this client puts the value again by itself, as long as the arrays
        are alive and unchanged; it holds them weakly.

        Raises:
            Unavailable: `resident_limit`, where it does not fit beside what is pinned.
        """
        return self._send(self._calls.put(value, pinned))

    def pin(self, handle: Handle | str, pinned: bool = True) -> ValueInfo:
        """Let a value stay whatever else comes, or (`pinned=False`) let it go when room is needed."""
        return self._send(self._calls.pin(handle, pinned))

    def release(self, handle: Handle | str) -> None:
        """Let the server forget a value; one that is gone already is no error."""
        self._send(self._calls.release(handle))

    def values(self) -> list[ValueInfo]:
        """What the server keeps of the values that were put, most recently used first."""
        return self._send(self._calls.values())

    def operators(self) -> list[OperatorInfo]:
        """The operator table of the server."""
        return self._send(self._calls.operators())

    def gradient(
        self,
        loss: Loss,
        *,
        inputs: Inputs,
        model: str | None = None,
        models: Models | None = None,
        params: Tree | Mapping[str, Tree] | None = None,
        state: Tree | Mapping[str, Tree] | None = None,
        wrt: Sequence[str] = ("params",),
        terms: Terms | None = None,
        term_gradients: str = "none",
        outputs: Sequence[str] = (),
        mode: str | None = None,
        nesting: str = "auto",
        strategies: Mapping[str, str] | None = None,
        examples_at_once: int | None = None,
        memory_limit: int | None = None,
        tune: bool = True,
        batch: bool = True,
        buckets: Sequence[int] = (),
        seed: int = 0,
        deadline_ms: float | None = None,
    ) -> GradientResult:
        """The loss, its terms and its gradients.

        Args:
            loss: a program's text, or a Python function of the names in `inputs` and `models`, written with
                NumPy and `nablad.grad` and friends.
            inputs: arrays, numbers or parameter-shaped trees by name. Arrays keep their dtype: float64 in,
                float64 computed; so do NumPy's scalars. Plain numbers and lists take the float type of
                the rest.
            model: a hosted model, bound to the name `model`.
            models: several hosted models by the names the program uses.
            params: parameters for this call in place of the resident ones (by model where several).
            state: state for this call, likewise.
            wrt: what to differentiate: `"params"`, `"u.params"`, `"u.params[layer_1.weight]"`, inputs.
            terms: named scalars to return; a mapping gives weights and makes their weighted sum the loss.
            term_gradients: `"norms"` returns the norm of each term's gradients too, `"full"` the gradients.
            outputs: named values to return.
            mode: `"eval"` (default) or `"train"`, for batch normalisation.
            nesting: how inner gradients are differentiated: `"auto"`, `"reverse_over_reverse"` or
                `"forward_over_reverse"`. All agree to rounding.
            strategies: strategies pinned by operator, `{"laplacian": "forward_over_reverse"}`; `plan` lists
                what there is.
            examples_at_once: compute so many examples at a time: less memory, the same numbers. By default
                the server chooses.
            memory_limit: bytes that the computation may take, by estimate; the server takes fewer examples at
                once, then other strategies, and refuses what fits in none.
            tune: whether the call counts towards tuning its program; a plan that is learned already is used
                all the same (`nesting="default"` never is).
            batch: whether the call may be computed together with others that wait for the same program.
            buckets: numbers of examples to compile for: fewer are filled up to the next one, where that is
                exact; `plan.bucket` of the answer tells.
            seed: seed of the program's random operators.
            deadline_ms: give up after this many milliseconds.

        Raises:
            ProgramError: the loss is at fault; `.where` points into its text.
            RequestError: inputs, parameters or names are at fault.
            NotFound: no such model or version.
            ConnectionFailed: the server does not answer.
        """
        question = Question(
            inputs,
            model,
            models,
            params,
            state,
            mode,
            nesting,
            seed,
            deadline_ms,
            strategies,
            tune,
            examples_at_once,
            memory_limit,
            batch,
            buckets,
        )
        asked: dict[str, Any] = {"wrt": list(wrt), "terms": terms, "outputs": list(outputs)}
        asked["term_gradients"] = term_gradients
        return self._send(self._calls.gradient(loss, question, **asked))

    def check(
        self,
        loss: Loss,
        *,
        inputs: Inputs,
        model: str | None = None,
        models: Models | None = None,
        params: Tree | Mapping[str, Tree] | None = None,
        state: Tree | Mapping[str, Tree] | None = None,
        wrt: Sequence[str] = ("params",),
        terms: Terms | None = None,
        mode: str | None = None,
        nesting: str = "auto",
        strategies: Mapping[str, str] | None = None,
        seed: int = 0,
        deadline_ms: float | None = None,
    ) -> CheckResult:
        """The gradients against central differences, both in float64; arguments as of `gradient`."""
        question = Question(
            inputs, model, models, params, state, mode, nesting, seed, deadline_ms, strategies
        )
        asked = {"wrt": list(wrt), "terms": terms}
        return self._send(self._calls.check(loss, question, **asked))

    def plan(
        self,
        program: Loss,
        *,
        inputs: Inputs,
        model: str | None = None,
        models: Models | None = None,
        params: Tree | Mapping[str, Tree] | None = None,
        wrt: Sequence[str] | None = ("params",),
        mode: str | None = None,
        nesting: str = "auto",
        strategies: Mapping[str, str] | None = None,
        examples_at_once: int | None = None,
        memory_limit: int | None = None,
    ) -> PlanReport:
        """What would run and why: each derivative, its candidates and their costs; `print` draws it.

        Nothing is compiled. `wrt=None` plans an evaluation without an outer gradient.
        """
        question = Question(
            inputs,
            model,
            models,
            params,
            mode=mode,
            nesting=nesting,
            strategies=strategies,
            examples_at_once=examples_at_once,
            memory_limit=memory_limit,
        )
        asked = {"wrt": list(wrt)} if wrt is not None else {}
        return self._send(self._calls.plan(program, question, **asked))

    def evaluate(
        self,
        program: Loss,
        *,
        inputs: Inputs,
        outputs: Sequence[str] | None = None,
        model: str | None = None,
        models: Models | None = None,
        params: Tree | Mapping[str, Tree] | None = None,
        state: Tree | Mapping[str, Tree] | None = None,
        mode: str | None = None,
        nesting: str = "auto",
        strategies: Mapping[str, str] | None = None,
        examples_at_once: int | None = None,
        memory_limit: int | None = None,
        tune: bool = True,
        batch: bool = True,
        buckets: Sequence[int] = (),
        seed: int = 0,
        deadline_ms: float | None = None,
    ) -> EvaluateResult:
        """Named values of a program without an outer gradient; by default its last expression, `result`.

        Other arguments as of `gradient`.
        """
        question = Question(
            inputs,
            model,
            models,
            params,
            state,
            mode,
            nesting,
            seed,
            deadline_ms,
            strategies,
            tune,
            examples_at_once,
            memory_limit,
            batch,
            buckets,
        )
        asked = {"outputs": list(outputs) if outputs is not None else None}
        return self._send(self._calls.evaluate(program, question, **asked))

    def warm(
        self,
        program: Loss,
        *,
        inputs: Inputs,
        wrt: Sequence[str] | None = ("params",),
        terms: Terms | None = None,
        outputs: Sequence[str] = (),
        model: str | None = None,
        models: Models | None = None,
        params: Tree | Mapping[str, Tree] | None = None,
        mode: str | None = None,
        nesting: str = "auto",
        batch_sizes: Sequence[int] = (),
        buckets: Sequence[int] = (),
    ) -> list[WarmProgram]:
        """Compile a program for arrays like these before somebody waits for it; their data stay here.

        `wrt=None` warms an evaluation. `batch_sizes` are numbers of calls to be computed together. Other
        arguments as of `gradient`. Gives what was compiled, and how long each took.
        """
        question = Question(inputs, model, models, params, mode=mode, nesting=nesting, buckets=buckets)
        asked: dict[str, Any] = {"batch_sizes": list(batch_sizes)}
        if outputs:
            asked["outputs"] = list(outputs)
        if wrt is not None:
            asked["wrt"] = list(wrt)
        return self._send(self._calls.warm(program, question, terms, **asked))

    def _outputs(self, name: str, operator: str, **members: Any) -> dict[str, Any]:
        return (self._send(self._calls.shortcut(name, operator, **members))).outputs

    def _send(self, call: Call[T]) -> T:
        exchange = self._calls.exchange(call)
        request = next(exchange)
        while True:
            answer = self._sender.send(request)
            try:
                request = exchange.send(answer)
            except StopIteration as done:
                found: T = done.value
                return found
