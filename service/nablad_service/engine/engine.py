"""The engine: query -> plan -> executable -> result. Knows neither HTTP nor threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad.quantities import scaled
from nablad_service.engine import derivatives, differences
from nablad_service.engine.buckets import Bucket, bucket, resized
from nablad_service.engine.costs import Cost
from nablad_service.engine.derivatives import Choice
from nablad_service.engine.diagnosis import Diagnosis
from nablad_service.engine.disk_cache import keep_compiled
from nablad_service.engine.environment import Meaning
from nablad_service.engine.evaluation import Evaluation
from nablad_service.engine.examples import examples_of, for_some_at_a_time
from nablad_service.engine.executable import Executable, Traced
from nablad_service.engine.fusing import asked_for, fused
from nablad_service.engine.memory import fitted
from nablad_service.engine.modes import (
    NoForwardMode,
    need_no_pushed_rule,
    no_forward_mode,
    no_reverse_mode,
)
from nablad_service.engine.objective import loss_value, named_value, objective, result_of
from nablad_service.engine.operators import SIGNATURES
from nablad_service.engine.padding import Unpadded
from nablad_service.engine.placement import Placement
from nablad_service.engine.plan import PlannedExamples, plan_of
from nablad_service.engine.planner import EXAMPLES, Choices, Variant, variants
from nablad_service.engine.registered import Registered, registered_as
from nablad_service.engine.together import Together, Unfit, together
from nablad_service.engine.watching import Record
from nablad_service.language import Limits, Program, graph, parse
from nablad_service.language.places import nearest
from nablad_service.language.signatures import OperatorSignature
from nablad_service.query import Query, Signature, Variable, arguments

T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """Parses, plans, compiles and checks. Create it with `start`, which sets JAX up."""

    limits: Limits
    functions: Mapping[str, Registered] = field(default_factory=dict)
    """What the operator of the server registered, by name."""
    placement: Placement = field(default_factory=Placement)
    """Resident arrays on the device."""

    @classmethod
    def start(
        cls,
        limits: Limits | None = None,
        *,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        compiled: Path | None = None,
        device_memory: int | None = None,
    ) -> Engine:
        """Set JAX up for float32 and float64 programs side by side, and give an engine.

        The switch is JAX's own and process-wide: it only allows 64-bit types. Programs keep to the float
        type of their inputs. `compiled` is a folder that keeps compiled programs, `device_memory` bounds the
        bytes of resident arrays on the device.

        Raises:
            ValueError: where a function cannot be registered under its name.
        """
        jax.config.update("jax_enable_x64", True)
        # GPUs multiply float32 matrices with fewer bits unless told otherwise; a derivative of a derivative
        # has none to spare.
        jax.config.update("jax_default_matmul_precision", "highest")
        if compiled is not None:
            keep_compiled(compiled)
        registered = {
            name: registered_as(name, function, SIGNATURES) for name, function in (functions or {}).items()
        }
        return cls(limits or Limits(), registered, Placement(device_memory))

    @property
    def signatures(self) -> dict[str, OperatorSignature]:
        """What a program may call, by name and alias."""
        return {**SIGNATURES, **{name: one.signature for name, one in self.functions.items()}}

    def device(self) -> str:
        """The device that programs run on, in words."""
        device = jax.devices()[0]
        return f"{device.platform} ({device.device_kind})"

    def platform(self) -> str:
        """What measured times depend on: the device and JAX's version."""
        return f"jax {jax.__version__} on {self.device()}"

    def parse(self, signature: Signature) -> Program:
        """The program of a signature, its names resolved and its inputs all used.

        Raises:
            Refusal: for anything wrong with the text or with `wrt`, `terms` and `outputs`.
        """
        program = parse(
            signature.text,
            inputs=[name for name, _ in signature.inputs],
            models={model.name: [leaf for leaf, _ in model.params] for model in signature.models},
            operators=self.signatures,
            limits=self.limits,
        )
        if signature.kind == "gradient" and not signature.weighted:
            result_of(program)
        for name in (*signature.terms, *signature.outputs):
            named_value(program, name)
        _check_inputs(program)
        program = _fused(program, signature)
        _check_strategies(program, signature)
        if signature.kind == "gradient":
            targets = [named_value(program, name) for name in signature.terms]
            if not signature.weighted:
                targets.append(result_of(program))
            for variable in signature.wrt:
                _check_reaches(program, variable, targets)
        return program

    def trace(self, query: Query, choices: Choices | None = None) -> Traced:
        """Check shapes and dtypes by abstract evaluation and choose a strategy for each derivative.

        `choices` are the planner's; without them the static rules decide. Where the program would need more
        memory than it may have, fewer examples are computed at once.

        Raises:
            Refusal: pointing at the piece of text that does not fit.
        """
        traced = self._planned(query, choices or {})
        limit = self.memory_limit(query)
        if limit is None or traced.cost.peak_bytes <= limit:
            return traced
        examples = None if query.signature.examples_at_once else examples_of(query)
        return fitted(
            traced,
            lambda choices: self._planned(query, choices, why="so that it fits in memory"),
            traced.plan.alternatives(),
            examples.number if examples else None,
            limit,
            self.parse(query.signature),
        )

    def memory_limit(self, query: Query) -> int | None:
        """Bytes that the computation of a query may take: the less of what server and caller allow."""
        limits = (self.limits.memory_bytes, query.signature.memory_limit)
        return min((limit for limit in limits if limit is not None), default=None)

    def _planned(self, query: Query, choices: Choices, why: str = Meaning.why) -> Traced:
        pinned = query.signature.examples_at_once
        at_once = pinned or int(choices.get(EXAMPLES, 0))
        evaluation, computation = self._traced(query, choices, why)
        plan = plan_of(evaluation, query.signature)
        examples = examples_of(query) if at_once else None
        if pinned and examples is None:
            raise Refusal("strategy", "examples_at_once is asked for, but no input is an array of examples")
        if examples is not None and at_once < examples.number:
            computation = for_some_at_a_time(computation, query, examples, at_once)
            why = "asked for" if pinned else why
            plan = replace(plan, examples=PlannedExamples(examples.number, at_once, why))
        answer = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(computation.out_info))
        if answer > self.limits.array_bytes:
            size, limit = scaled(answer, "B"), scaled(self.limits.array_bytes, "B")
            detail = f"the answer would have {size}, the limit is {limit}; ask for less of it"
            raise Refusal("limit", detail)
        return Traced(plan, computation, answer)

    def variants(
        self,
        query: Query,
        default: Traced | None = None,
        skipped: Callable[[Choices, str], None] = lambda choices, why: None,
    ) -> list[Variant]:
        """The ways to compute a query that are worth knowing, with their costs; compiles nothing.

        `default` is its trace by the static rules, where there is one already; `skipped` is told of choices
        that are not counted, and why.

        Raises:
            Refusal: as `trace` does.
        """
        plain = default or self.trace(query)
        if plain.plan.examples is not None:
            return [Variant((), plain.cost)]  # no more of them at once would fit in memory

        def count(choices: Choices) -> tuple[Cost, str]:
            return self._count(query, choices) if choices else (plain.cost, str(plain.computation.jaxpr))

        return variants(plain.plan.alternatives(), count, self.examples(query), skipped=skipped)

    def counted(self, query: Query, trials: Sequence[Choices]) -> list[Variant]:
        """The variants of some choices, with their costs; those that cannot be traced are left out."""
        found = []
        for choices in trials:
            with contextlib.suppress(LookupError):
                found.append(Variant(tuple(sorted(choices.items())), self._count(query, choices)[0]))
        return found

    def _count(self, query: Query, choices: Choices) -> tuple[Cost, str]:
        try:
            traced = self._planned(query, choices)
        except Refusal as refusal:
            raise LookupError(refusal.detail) from refusal
        return traced.cost, str(traced.computation.jaxpr)

    def examples(self, query: Query) -> int | None:
        """How many examples the planner may divide; None where there are none, or the caller has decided."""
        signature = query.signature
        if signature.nesting != "auto" or signature.examples_at_once is not None:
            return None
        found = examples_of(query)
        return found.number if found else None

    def _traced(self, query: Query, choices: Choices, why: str = Meaning.why) -> tuple[Evaluation, Any]:
        def work(evaluation: Evaluation) -> tuple[Evaluation, Any]:
            computation = jax.jit(objective(evaluation, query.signature)).trace(arguments(query))
            need_no_pushed_rule(computation.jaxpr)
            return evaluation, computation

        return self._in_some_mode(query, work, choices, why)

    def _in_some_mode(
        self,
        query: Query,
        work: Callable[[Evaluation], T],
        choices: Choices | None = None,
        why: str = Meaning.why,
    ) -> T:
        """`work` with an evaluation of the query; with one in reverse mode alone where forward mode fails."""
        try:
            return work(self._evaluation(query, choices or {}, why))
        except (NotImplementedError, NoForwardMode, TypeError, ValueError) as error:
            if not no_forward_mode(error):
                _refuse_what_has_no_derivative(error)
                raise
        try:
            return work(self._evaluation(query, {}, reverse_only=True))
        except (NotImplementedError, NoForwardMode, TypeError, ValueError) as error:
            _refuse_what_has_no_derivative(error)
            raise

    def compile(self, traced: Traced) -> Executable:
        """Compile for the device."""
        compiled = traced.computation.lower().compile()
        return Executable(traced.plan, compiled, traced.answer_bytes, traced.computation, self.placement)

    def bucket(self, query: Query, number: int, size: int) -> Bucket:
        """Compile a query of `number` examples for `size` of them and fewer.

        Raises:
            Unpadded: where that is not known to be exact; it says why.
        """
        if query.signature.examples_at_once is not None:
            raise Unpadded("its examples are computed in chunks")
        return bucket(lambda examples: self.trace(resized(query, number, examples)), size, self.placement)

    def together(self, executable: Executable, query: Query, size: int, limit: int) -> Together:
        """Compile `size` requests like `query` as one computation of at most `limit` bytes, by estimate.

        Raises:
            Unfit: where they must be computed one by one; it says why.
        """
        own = self.memory_limit(query)
        if any(isinstance(node, graph.Registered) for node in self.parse(query.signature).nodes):
            raise Unfit("it calls a function that the server's operator registered")
        if executable.plan.examples is not None:
            raise Unfit("its examples are computed in chunks, to save memory")
        least = limit if own is None else min(limit, own)
        return together(executable.computation, query, size, least, self.placement)

    def diagnose(self, query: Query) -> Diagnosis:
        """Compile the program once more so that it reports where its result stops being finite.

        All derivatives are taken in reverse mode alone: what is pulled back can be watched step by step.
        """
        plain, _ = self._traced(query, {})
        known = {
            key: replace(one, choice=Choice(in_reverse(plain.meaning.program, key[0]), "to be watched"))
            for key, one in plain.known.items()
        }
        record = Record()
        evaluation = replace(plain, known=known, record=record)
        compute = objective(evaluation, query.signature)
        compiled = jax.jit(compute).trace(arguments(query)).lower().compile()
        return Diagnosis(plain.meaning.program, compiled, record)

    def compile_check(self, query: Query) -> Callable[[], dict[str, Any]]:
        """Compile the query's gradients against central differences; the result runs them."""
        signature = query.signature

        def work(evaluation: Evaluation) -> Any:
            gradients, value = objective(evaluation, signature), loss_value(evaluation, signature)
            computation = jax.jit(differences.checker(gradients, value, signature)).trace(arguments(query))
            need_no_pushed_rule(computation.jaxpr)
            return computation

        compiled = self._in_some_mode(query, work).lower().compile()
        return lambda: differences.report(jax.device_get(compiled(self.placement.arguments(query))))

    def _evaluation(
        self, query: Query, choices: Choices, why: str = Meaning.why, *, reverse_only: bool = False
    ) -> Evaluation:
        signature = query.signature
        meaning = Meaning(
            program=self.parse(signature),
            models=query.models,
            modes={model.name: model.mode for model in signature.models},
            dtype=jnp.dtype(signature.dtype),
            nesting=signature.nesting,
            differentiated=signature.kind == "gradient",
            limits=self.limits,
            functions=self.functions,
            strategies=dict(signature.strategies),
            choices=choices,
            why=why,
            reverse_only=reverse_only,
        )
        return Evaluation(meaning)


def _refuse_what_has_no_derivative(error: Exception) -> None:
    """Raise `not_differentiable` where JAX has neither mode for a piece of the program."""
    if isinstance(error, NotImplementedError) or no_forward_mode(error) or no_reverse_mode(error):
        first = str(error).strip().splitlines()[0]
        raise Refusal("not_differentiable", f"JAX cannot differentiate this: {first}") from error


def in_reverse(program: Program, index: int) -> str:
    """The strategy of a derivative that uses reverse mode alone."""
    node = program.nodes[index]
    assert isinstance(node, graph.Derivative)
    return derivatives.TABLE[node.operator].in_reverse


def _fused(program: Program, signature: Signature) -> Program:
    """The program with squares found without their Jacobian, unless the caller says how to find that."""
    pinned = {operator for operator, _ in signature.strategies}
    kept = asked_for(program, (*signature.terms, *signature.outputs))
    return fused(program, set(kept), {"jacobian", "grad"} - pinned)


def _check_strategies(program: Program, signature: Signature) -> None:
    """Refuse pinned strategies that nothing in the program can follow."""
    used = {node.operator for node in program.nodes if isinstance(node, graph.Derivative)}
    for operator, strategy in signature.strategies:
        row = derivatives.TABLE.get(operator)
        if row is None:
            hint = nearest(operator, derivatives.TABLE) or f"; there are {', '.join(derivatives.TABLE)}"
            raise Refusal("strategy", f"no derivative operator is called '{operator}'{hint}")
        if strategy not in row.strategies:
            hint = nearest(strategy, row.strategies) or f"; it has {', '.join(row.strategies)}"
            raise Refusal("strategy", f"{operator} has no strategy '{strategy}'{hint}")
        if operator not in used:
            known = f"it has {', '.join(sorted(used))}" if used else "it has no inner derivatives"
            detail = f"a strategy is pinned for {operator}, which the program does not use; {known}"
            raise Refusal("strategy", detail)


def _check_inputs(program: Program) -> None:
    read = {index for node in program.nodes for index in node.reads} | {program.result}
    read |= {node.wrt for node in program.nodes if isinstance(node, graph.Derivative)}
    unused = [name for name, index in program.inputs.items() if index not in read]
    if unused:
        names = ", ".join(f"'{name}'" for name in unused)
        detail = f"the program does not use the input {names}; leave it out (a def counts where it is called)"
        raise Refusal("extra_input", detail)


def _check_reaches(program: Program, variable: Variable, targets: list[int]) -> None:
    used = program.used(targets)
    if variable.kind == "input":
        reached = program.inputs[str(variable.name)] in used
    else:
        models = [variable.name] if variable.name else list(program.parameters)
        reached = any(program.parameters[str(model)] in used for model in models)
    if not reached:
        raise Refusal("independent", f"the loss does not depend on '{variable.key}', which wrt asks for")
