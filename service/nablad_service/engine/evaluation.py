"""A program's value, node by node in definition order: the rules that give each kind of node its meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad.quantities import scaled
from nablad_service.engine import cautions, values
from nablad_service.engine.differentiating import derivative, with_its_derivatives
from nablad_service.engine.environment import Environment, Learned, Meaning
from nablad_service.engine.indexing import carried, check_index, common_length, leaf_of, mapped_axes
from nablad_service.engine.model_calls import model_call
from nablad_service.engine.modes import NoForwardMode, no_forward_mode, no_reverse_mode
from nablad_service.engine.operators import TABLE
from nablad_service.engine.registered import registered_call
from nablad_service.engine.towers import Group, groups
from nablad_service.engine.values import Value, arrays_in, show
from nablad_service.engine.watching import Record, seen, seen_backwards
from nablad_service.language import graph
from nablad_service.language.places import place

MOST_AXES = 32
"""NumPy on either end has no more."""


@dataclass
class Evaluation:
    """One tracing of a program. `learned` may come from an earlier tracing and is added to."""

    meaning: Meaning
    learned: dict[int, Learned] = field(default_factory=dict)
    known: dict[tuple[int, Any], Learned] = field(default_factory=dict)
    """The same for each derivative and all shapes that it met."""
    cautions: dict[int, str] = field(default_factory=dict)
    """What looks like a mistake though it has a meaning, by node."""
    kinks: dict[int, str] = field(default_factory=dict)
    """Derivatives that went through a piecewise linear function, with its name."""
    grouped: dict[tuple[int, ...], Mapping[int, Group]] = field(default_factory=dict)
    """Derivatives that are computed together, by the nodes that are evaluated side by side."""
    record: Record | None = None
    """Where to note what is not finite; only a diagnosis does."""

    def evaluate(self, targets: Iterable[int], environment: Environment) -> list[Value]:
        """The values of `targets`; fills `environment` on the way.

        Raises:
            Refusal: pointing at the piece of text that has no value.
        """
        wanted = tuple(targets)
        schedule = self.meaning.program.schedule(wanted)
        environment.groups = self.groups(schedule, environment)
        for index in schedule:
            if index not in environment.values:
                environment.values[index] = self.value(index, environment)
        return [environment.values[index] for index in wanted]

    def value(self, index: int, environment: Environment) -> Value:
        """One node, its reads being known; a refusal on the way learns where in the text it happened."""
        node = self.meaning.program.nodes[index]
        where = place(self.meaning.program.text, node.span) if node.span else None
        try:
            if self.record is not None:
                environment = self._watched(node, environment, self.record)
            with jax.named_scope(f"node_{index}"):
                value = with_its_derivatives(self, index, environment)
                if value is None:
                    value = RULES[type(node)](self, node, environment)
            if self.record is not None:
                value = seen(value, index, self.record)
            for leaf in jax.tree.leaves(value):
                if isinstance(leaf, jax.Array):
                    self.check_size(leaf.shape, leaf.dtype, environment.examples)
            return value
        except Refusal as refusal:
            refusal.where = refusal.where or where
            raise
        except jax.errors.UnexpectedTracerError:
            raise  # a mistake of ours, or of a registered function, is not the caller's
        except (TypeError, ValueError, IndexError, ZeroDivisionError, NotImplementedError) as error:
            if no_forward_mode(error):
                raise NoForwardMode(_first_line(error)) from error
            if no_reverse_mode(error) or isinstance(error, NotImplementedError):
                raise Refusal("not_differentiable", f"JAX says: {_first_line(error)}", where) from error
            # The rules check what they can; what JAX itself refuses still deserves a place and a sentence.
            given = ", ".join(show(environment.values[read]) for read in node.reads[:4])
            detail = f"this does not work with {given}: {_first_line(error)}"
            raise Refusal("shape_mismatch", detail, where) from error

    def _watched(self, node: graph.Node, environment: Environment, record: Record) -> Environment:
        """The environment as `node` sees it: what is pulled back through each of its reads is noted."""
        known = environment.values
        reads = {read: seen_backwards(known[read], node.index, read, record) for read in node.reads}
        return replace(environment, values={**known, **reads})

    # -- rules, one a kind of node

    def constant(self, node: graph.Constant, environment: Environment) -> Value:
        return node.value

    def input(self, node: graph.Input, environment: Environment) -> Value:
        raise Refusal("missing_input", f"the input '{node.name}' has no value")

    def parameters(self, node: graph.Parameters, environment: Environment) -> Value:
        raise Refusal("invalid_params", f"model '{node.model}' has no parameters bound")

    def identity(self, node: graph.Identity, environment: Environment) -> Value:
        return environment.values[node.value]

    def apply(self, node: graph.Apply, environment: Environment) -> Value:
        row = TABLE[node.operator]
        arguments = [environment.values[index] for index in node.arguments]
        keywords = {name: environment.values[index] for name, index in node.keywords}
        if row.takes_dtype:
            keywords["dtype"] = self.meaning.dtype
        if row.takes_key:
            keywords["key"] = environment.key
        result = row.apply(*arguments, **keywords)
        if self._too_narrow(result):
            # JAX makes float32 of int32 and of truth values, whatever the floats of the program are.
            result = row.apply(*(self._floating(argument) for argument in arguments), **keywords)
        if caution := cautions.of_shapes(node, arguments):
            self.cautions[node.index] = caution
        return values.in_float_type(self.meaning.dtype, result)

    def _too_narrow(self, result: Value) -> bool:
        """Whether floats were made that have fewer digits than the program's."""
        width = jnp.dtype(self.meaning.dtype).itemsize
        return any(values.is_float(leaf) and leaf.dtype.itemsize < width for leaf in jax.tree.leaves(result))

    def _floating(self, argument: Value) -> Value:
        if isinstance(argument, tuple):
            return tuple(self._floating(item) for item in argument)
        return argument.astype(self.meaning.dtype) if values.is_array(argument) else argument

    def check_size(self, shape: tuple[int, ...], dtype: Any, examples: int) -> None:
        """Refuse an array that is larger than the server allows, before anyone makes it."""
        if len(shape) > MOST_AXES:
            raise Refusal("limit", f"this makes an array of {len(shape)} axes; the limit is {MOST_AXES}")
        needed = math.prod(shape) * dtype.itemsize * examples
        if needed > self.meaning.limits.array_bytes:
            detail = (
                f"this makes an array of shape {tuple(shape)}{f' for {examples} examples' * (examples > 1)}, "
                f"{scaled(needed, 'B')}; "
                f"the limit is {scaled(self.meaning.limits.array_bytes, 'B')}"
            )
            raise Refusal("limit", detail)

    def make_tuple(self, node: graph.MakeTuple, environment: Environment) -> Value:
        return tuple(environment.values[index] for index in node.items)

    def index(self, node: graph.Index, environment: Environment) -> Value:
        value = environment.values[node.value]
        entries = [self._entry(entry, environment) for entry in node.entries]
        if isinstance(value, dict):
            return leaf_of(value, entries)
        if isinstance(value, tuple):
            position = values.static_int(entries[0], "the position in a tuple") if len(entries) == 1 else None
            if position is None or not -len(value) <= position < len(value):
                raise Refusal("shape_mismatch", f"a tuple of {len(value)} has no position {entries[0]}")
            return value[position]
        operand = values.array(value, "what is indexed")
        check_index(operand, entries)
        if any(values.is_array(entry) for entry in entries):
            # Data cannot be refused: a position out of range gives NaN, as in take.
            return operand.at[tuple(entries)].get(mode="fill", fill_value=None)
        return operand[tuple(entries)]

    def _entry(self, entry: Any, environment: Environment) -> Any:
        if isinstance(entry, graph.Slice):
            bounds = (entry.start, entry.stop, entry.step)
            return slice(
                *(
                    None if bound is None else values.static_int(environment.values[bound], "a slice bound")
                    for bound in bounds
                )
            )
        return environment.values[entry] if isinstance(entry, int) else entry

    def unpack(self, node: graph.Unpack, environment: Environment) -> Value:
        value = environment.values[node.value]
        if isinstance(value, tuple):
            count = len(value)
        else:
            operand = values.array(value, "what is unpacked")
            count = operand.shape[0] if operand.ndim else 0
        if count != node.count:
            raise Refusal("shape_mismatch", f"{show(value)} has {count} parts, {node.count} names are given")
        return value[node.position]

    def map(self, node: graph.Map, environment: Environment) -> Value:
        arguments = [environment.values[index] for index in node.arguments]
        axes, length = mapped_axes(node.in_axes, arguments)

        def one_example(run: Any, *examples: Value) -> Value:
            inner = environment.inside(node.body, examples, run)
            inner.examples = environment.examples * length
            inner.maps = environment.maps + 1
            return arrays_in(self.body(node.body, inner), "a mapped function", self.meaning.dtype)

        return jax.vmap(one_example, in_axes=(0, *axes))(jnp.arange(length), *arguments)

    def loop(self, node: graph.Loop, environment: Environment) -> Value:
        first, second = (environment.values[index] for index in node.arguments)
        if node.operator == "fori":
            length = values.static_int(first, "the number of iterations (or a length, x.shape[0])")
            init, xs = second, jnp.arange(max(length, 0), dtype=jnp.int32)
        else:
            init, xs = first, arrays_in(second, "what scan goes over", self.meaning.dtype)
            length = common_length(xs)
        iterations = environment.iterations * max(length, 1)
        if iterations > self.meaning.limits.iterations:
            detail = f"the loops run {iterations} times; the limit is {self.meaning.limits.iterations}"
            raise Refusal("limit", detail)
        init = arrays_in(init, f"the start of {node.operator}", self.meaning.dtype)

        def step(carry: Value, numbered: tuple[Any, Value]) -> tuple[Value, Value]:
            run, x = numbered
            arguments = (x, carry) if node.operator == "fori" else (carry, x)
            inner = environment.inside(node.body, arguments, run)
            inner.iterations = iterations
            result = arrays_in(
                self.body(node.body, inner), f"the body of {node.operator}", self.meaning.dtype
            )
            if node.operator == "fori":
                return carried(result, init, node.operator), None
            if not isinstance(result, tuple) or len(result) != 2:
                raise Refusal("wrong_kind", f"the body of scan returns (carry, y), not {show(result)}")
            return carried(result[0], init, node.operator), result[1]

        numbers = jnp.arange(max(length, 0), dtype=jnp.int32)
        last, ys = jax.lax.scan(step, init, (numbers, xs), length=max(length, 0))
        return last if node.operator == "fori" else (last, ys)

    def body(self, body: graph.Body, inner: Environment) -> Value:
        inner.groups = self.groups(body.nodes, inner)
        for index in body.nodes:
            if index not in inner.values:
                inner.values[index] = self.value(index, inner)
        return inner.values[body.result]

    def groups(self, scope: tuple[int, ...], environment: Environment) -> Mapping[int, Group] | None:
        """The derivatives among `scope` that are computed together."""
        if not (self.meaning.differentiated and environment.outermost):
            return None
        if scope not in self.grouped:
            self.grouped[scope] = groups(self.meaning.program, scope)
        return self.grouped[scope]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


RULES: dict[type[graph.Node], Callable[[Evaluation, Any, Environment], Value]] = {
    graph.Constant: Evaluation.constant,
    graph.Input: Evaluation.input,
    graph.Parameters: Evaluation.parameters,
    graph.Identity: Evaluation.identity,
    graph.Apply: Evaluation.apply,
    graph.MakeTuple: Evaluation.make_tuple,
    graph.Index: Evaluation.index,
    graph.Unpack: Evaluation.unpack,
    graph.ModelCall: lambda evaluation, node, environment: model_call(evaluation.meaning, node, environment),
    graph.Map: Evaluation.map,
    graph.Loop: Evaluation.loop,
    graph.Registered: registered_call,
    graph.Derivative: derivative,
}
