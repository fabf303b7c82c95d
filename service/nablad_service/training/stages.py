"""The phases of a loop made ready: all traced and checked before the first of them begins."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nablad.problems import Refusal
from nablad.training.messages import Optimiser, Phase, TrainRequest
from nablad_service.engine.placement import Placement
from nablad_service.planning.programs import Programs
from nablad_service.query import Query, arguments
from nablad_service.training.feeds import Block, Feed, feeds_of
from nablad_service.training.gradients import asked, gradient_of
from nablad_service.training.labels import leaf_of
from nablad_service.training.loop import (
    CompiledLoop,
    Given,
    Loop,
    LoopState,
    compile_look,
    compile_loop,
)
from nablad_service.training.optimisers import StepValues, rule_of, values_of
from nablad_service.training.questions import in_dtype
from nablad_service.training.samplers import Sampler
from nablad_service.training.state import TrainingState, first_state

Choices = Mapping[int, str]
MOST_KEPT = 64
"""Compiled loops; the least recently used goes."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A phase with its place in the run, its program and its optimiser."""

    number: int
    begin: int
    end: int
    """Steps of the run: the first of this stage, and the first that is not."""
    optimiser: Optimiser
    query: Query
    choices: Choices
    loop: Loop
    look: Loop | None
    """The same with the norms of the terms' gradients, for a balance."""
    values: StepValues
    feeds: Mapping[str, Feed]
    seed: int

    @property
    def dtype(self) -> str:
        """The float type of everything."""
        return self.query.signature.dtype

    @property
    def key(self) -> Hashable:
        """What its loop is compiled for: two stages of one key share it."""
        blocks = [
            (name, feed.picked, feed.draws, *(array.shape for array in feed.data().values()))
            for name, feed in sorted(self.feeds.items())
        ]
        balanced = self.look is not None
        choices = tuple(sorted(self.choices.items()))
        loop = self.loop
        return (self.query.signature, choices, loop.rule, tuple(blocks), loop.together, balanced)

    def given(
        self, inputs: Any, data: Any, blocks: Mapping[str, Block], weights: Mapping[str, float]
    ) -> Given:
        """The arguments of a call beside the state."""
        return Given(
            inputs,
            blocks,
            data,
            {name: np.asarray(weight, self.dtype) for name, weight in weights.items()},
            self.values,
            np.uint32(self.seed % 2**32),
            np.int32(self.begin),
        )

    def data(self) -> dict[str, dict[str, Any]]:
        """All examples of samplers that have some, on the device."""
        return {name: jax.device_put(feed.data()) for name, feed in self.feeds.items()}

    def start(self, placement: Placement) -> tuple[dict[str, Any], LoopState]:
        """What the program takes that is not trained, and the state at the start values, on the device.

        The optimiser's part of the state is missing still.
        """
        placed = jax.device_put(placement.arguments(self.query))
        params = {label: leaf_of(placed, label) for label in self.loop.gradient.labels}
        models = {name: dict(leaves) for name, leaves in placed["state"].items()}
        return self.fixed(placed["inputs"]), LoopState(params, models, None)

    def fixed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Those inputs of the program that are neither trained nor drawn."""
        drawn = {input_ for feed in self.feeds.values() for input_ in feed.picked.inputs}
        return {
            name: value
            for name, value in inputs.items()
            if name not in drawn and name not in self.loop.gradient.labels
        }

    def asked_at(self, state: LoopState, given: Given, step: int, turn: int) -> Query:
        """What the program is asked in a step, with the `turn`th of its draws, as a query of its own."""
        return asked(self.query, state.params, self.loop.around(state, given, step, turn))

    def like(self) -> TrainingState:
        """The specs of what a save of this stage holds."""
        given = arguments(self.query)
        params = {label: leaf_of(given, label) for label in self.loop.gradient.labels}
        state: TrainingState = jax.eval_shape(
            lambda: first_state(params, given["state"], self.loop.rule, self.values, np.uint32(0))
        )
        return state


def entered(state: LoopState, stage: Stage, compiled: CompiledLoop) -> LoopState:
    """The state at the beginning of a stage: in its float type, with a new optimiser."""

    def cast(leaf: Any) -> Any:
        return leaf.astype(stage.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    params, models = jax.tree.map(cast, (dict(state.params), state.models))
    return LoopState(params, models, compiled.begin(params, stage.values))


def placed(block: Block) -> Block:
    """A block on the device, where it is picked from many times."""
    return block._replace(draws=jax.device_put(block.draws))


def whole(state: LoopState, stage: Stage, step: int) -> TrainingState:
    """A loop's state as a session keeps it, with nothing accumulated."""
    zero = np.zeros((), stage.dtype)
    return TrainingState(
        params=state.params,
        models=state.models,
        optimiser=state.optimiser,
        gradients=jax.tree.map(jnp.zeros_like, state.params),
        value=zero,
        weight=zero,
        step=np.int32(step),
        key=jax.random.key_data(jax.random.key(np.uint32(stage.seed % 2**32))),
    )


def phases_of(request: TrainRequest) -> Sequence[Phase]:
    """The phases of a request, one where it has none.

    Raises:
        Refusal: `invalid_request` where there are both or neither.
    """
    alone = request.optimiser is not None or request.steps is not None
    if request.phases and alone:
        detail = "'phases' and 'optimiser' with 'steps' say the same; send one of them"
        raise Refusal("invalid_request", detail)
    if request.phases:
        return request.phases
    if request.optimiser is None or request.steps is None:
        detail = "a loop needs 'optimiser' and 'steps', or 'phases' with both in each"
        raise Refusal("invalid_request", detail)
    return [Phase(optimiser=request.optimiser, steps=request.steps)]


async def stages_of(
    request: TrainRequest,
    query: Query,
    samplers: Sequence[Sampler],
    programs: Programs,
    chosen: Mapping[str, Choices],
) -> list[Stage]:
    """The stages of a run, all checked; compiles nothing.

    Args:
        request: of `POST /v1/train`.
        query: of its program at the start.
        samplers: what draws some of the program's inputs.
        programs: traces on threads of its own.
        chosen: strategies of the programs by float type, from a save; what is learned now for the others.

    Raises:
        Refusal: for anything wrong with the program or an optimiser.
    """
    found: list[Stage] = []
    begin = 0
    for number, phase in enumerate(phases_of(request)):
        query = in_dtype(query, phase.dtype or query.signature.dtype)
        choices = chosen.get(query.signature.dtype)
        if choices is None:
            learned = programs.learned.get(query.signature)
            choices = learned.choices if learned else {}
        gradient = gradient_of(await programs.following(query, choices), query)
        given = arguments(query)
        params = {label: leaf_of(given, label) for label in gradient.labels}
        rule = rule_of(phase.optimiser, params)
        values = values_of(phase.optimiser, rule, gradient.labels)
        dtypes = {name: query.inputs[name].dtype for one in samplers for name in one.inputs}  # type: ignore[union-attr] # what is drawn is no tree
        together = request.accumulate
        feeds = feeds_of(samplers, request.resample_every, dtypes, together=together)
        loop = Loop(gradient, rule, {name: feed.picked for name, feed in feeds.items()}, together)
        look = None
        if request.balance is not None:
            normed = replace(query, signature=replace(query.signature, term_gradients="norms"))
            look = replace(loop, gradient=gradient_of(await programs.following(normed, choices), normed))
        end = begin + phase.steps
        found.append(
            Stage(
                number,
                begin,
                end,
                phase.optimiser,
                query,
                choices,
                loop,
                look,
                values,
                feeds,
                request.seed,
            )
        )
        begin = end
    return found


class CompiledLoops:
    """Compiled loops by what they are compiled for: once, however many runs ask. Lives on one event loop."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._kept: OrderedDict[Hashable, asyncio.Task[CompiledLoop]] = OrderedDict()

    async def get(self, stage: Stage, weights: Mapping[str, float]) -> CompiledLoop:
        """The compiled loop of a stage.

        Raises:
            Refusal: `too_slow` where compiling it takes longer than the server allows.
        """
        key = stage.key
        making = self._kept.get(key)
        if making is None:
            signature = stage.query.signature
            work = self._programs.compiled("loop", signature, lambda: _compiled(stage, weights))
            making = self._kept[key] = asyncio.ensure_future(work)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        try:
            # Shielded: a run that is stopped must not take the loop from others.
            return await asyncio.shield(making)
        except Refusal:  # too slow, say; the next one may try again
            self._kept.pop(key, None)
            raise


def _compiled(stage: Stage, weights: Mapping[str, float]) -> CompiledLoop:
    like = stage.like()
    inputs = stage.fixed(arguments(stage.query)["inputs"])
    blocks = {name: feed.block(0) for name, feed in stage.feeds.items()}
    state = LoopState(like.params, like.models, like.optimiser)
    data = {name: feed.data() for name, feed in stage.feeds.items()}
    arguments_ = stage.given(inputs, data, blocks, weights)
    compiled = compile_loop(stage.loop, state, arguments_)
    if stage.look is None:
        return compiled
    return replace(compiled, look=compile_look(stage.look, state, arguments_))
