"""The asynchronous client: the surface of `Client`, awaited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import httpx
from numpy.typing import ArrayLike, NDArray

from nablad.calls import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    Call,
    Calls,
    Inputs,
    Loss,
    Models,
    Question,
    Terms,
    Tree,
)
from nablad.messages import FailedModel, ModelInfo, OperatorInfo, WarmProgram
from nablad.plans import PlanReport
from nablad.results import CheckResult, EvaluateResult, GradientResult, Params
from nablad.sending import AsyncSender
from nablad.tracing.operators import Estimate
from nablad.wire import Format

T = TypeVar("T")


class AsyncClient:
    """A connection to a nablad server: `async with nablad.AsyncClient() as client:`.

    Args:
        url: where the server listens, `http://host:port` or `unix:/path`.
        format: `"frame"`, `"msgpack"`, or `"json"` for reading along; all are exact.
        timeout: seconds, or an `httpx.Timeout`; by default ten minutes, since a first call compiles.
        transport: an httpx transport in place of nablad's own, e.g. `httpx.ASGITransport(app)`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        format: Format = "frame",  # noqa: A002 - the word that callers use
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._calls = Calls(format)
        self._sender = AsyncSender(url, timeout, transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncClient {self._sender.url}>"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sender.aclose()

    async def create_model(
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
        return await self._send(self._calls.create_model(name, architecture, params, state, seed, stablehlo))

    async def models(self) -> list[ModelInfo]:
        """All hosted models."""
        return await self._send(self._calls.models())

    async def failed_models(self) -> list[FailedModel]:
        """What the server was given and could not load, with the reasons."""
        return await self._send(self._calls.failed_models())

    async def model(self, name: str) -> ModelInfo:
        """One hosted model, described."""
        return await self._send(self._calls.model(name))

    async def delete_model(self, name: str) -> None:
        """Stop hosting a model, and remove it from the server's repository."""
        await self._send(self._calls.delete_model(name))

    async def load_model(self, name: str) -> ModelInfo:
        """Read a model from the server's repository, as after an unload or a repair."""
        return await self._send(self._calls.load_model(name))

    async def unload_model(self, name: str) -> ModelInfo:
        """Take a model out of the server's memory; its repository keeps it."""
        return await self._send(self._calls.unload_model(name))

    async def params(self, name: str) -> Params:
        """The resident parameters and state of a model, with their version."""
        return await self._send(self._calls.params(name))

    async def set_params(self, name: str, params: Tree, state: Tree | None = None) -> str:
        """Replace resident parameters (and state, where given); gives the new version."""
        return await self._send(self._calls.set_params(name, params, state))

    async def operators(self) -> list[OperatorInfo]:
        """The operator table of the server."""
        return await self._send(self._calls.operators())

    async def gradient(
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
        return await self._send(self._calls.gradient(loss, question, **asked))

    async def check(
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
        return await self._send(self._calls.check(loss, question, **asked))

    async def plan(
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
        return await self._send(self._calls.plan(program, question, **asked))

    async def evaluate(
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
        return await self._send(self._calls.evaluate(program, question, **asked))

    async def warm(
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
        return await self._send(self._calls.warm(program, question, terms, **asked))

    async def apply(
        self,
        name: str,
        x: ArrayLike,
        *,
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> NDArray[Any]:
        """The output of a hosted model, with its resident parameters or these."""
        found: NDArray[Any] = await self._one(name, "apply", x=x, params=params, state=state, mode=mode)
        return found

    async def jacobian(
        self,
        name: str,
        x: ArrayLike,
        *,
        wrt: str = "x",
        batched: bool = False,
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> NDArray[Any]:
        """The Jacobian of a model's output in its input or (`wrt="params"`) its parameters.

        `batched` gives one Jacobian an example, shape (batch, output size, input size).
        """
        given = {"x": x, "params": params, "state": state}
        found: NDArray[Any] = await self._one(name, "jacobian", wrt=wrt, batched=batched, mode=mode, **given)
        return found

    async def jvp(
        self,
        name: str,
        x: ArrayLike,
        v: ArrayLike | Tree,
        *,
        wrt: str = "x",
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> NDArray[Any]:
        """J v; v has the shape of x, or is a tree shaped like the parameters."""
        found: NDArray[Any] = await self._one(
            name, "jvp", x=x, v=v, wrt=wrt, params=params, state=state, mode=mode
        )
        return found

    async def vjp(
        self,
        name: str,
        x: ArrayLike,
        u: ArrayLike,
        *,
        wrt: str = "x",
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> Any:
        """u' J; an array shaped like x, or a tree shaped like the parameters."""
        return await self._one(name, "vjp", x=x, u=u, wrt=wrt, params=params, state=state, mode=mode)

    async def hvp(
        self,
        name: str,
        x: ArrayLike,
        v: ArrayLike | Tree,
        *,
        wrt: str = "x",
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> Any:
        """H v, of the sum of the model's output."""
        return await self._one(name, "hvp", x=x, v=v, wrt=wrt, params=params, state=state, mode=mode)

    async def hutchinson(
        self,
        name: str,
        x: ArrayLike,
        v: ArrayLike | None = None,
        *,
        probes: int = 16,
        seed: int = 0,
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> Estimate:
        """The trace of the Jacobian per example, estimated, with its standard error.

        Probes v have one more leading axis than x; without them `probes` signs are drawn by `seed`.
        """
        given = {"x": x, "v": v, "params": params, "state": state}
        members = {"probes": probes, "seed": seed, "mode": mode, **given}
        found = (await self._send(self._calls.shortcut(name, "hutchinson", **members))).outputs
        return Estimate(found["estimate"], found["standard_error"])

    async def _one(self, name: str, operator: str, **members: Any) -> Any:
        return (await self._send(self._calls.shortcut(name, operator, **members))).result

    async def _send(self, call: Call[T]) -> T:
        return call.finish(await self._sender.send(call))
