"""A program's value, node by node in definition order: the rules that give each kind of node its meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine import cautions, coupling, derivatives, values
from nablad_service.engine.derivatives import Choice, Differentiation, Shapes
from nablad_service.engine.environment import Environment, Learned, Meaning
from nablad_service.engine.flattening import BY_COORDINATES, Flat
from nablad_service.engine.indexing import carried, check_index, common_length, leaf_of, mapped_axes
from nablad_service.engine.model_calls import model_call
from nablad_service.engine.modes import NoForwardMode, need_no_pushed_rule, no_forward_mode, no_reverse_mode
from nablad_service.engine.operators import TABLE
from nablad_service.engine.registered import registered_call
from nablad_service.engine.values import Value, arrays_in, show
from nablad_service.engine.watching import Record, seen, seen_backwards
from nablad_service.language import graph
from nablad_service.language.places import place

AROUND = -2
"""Stands among captured nodes for what a derivative stands in: the runs of maps and loops, key and states."""
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
    record: Record | None = None
    """Where to note what is not finite; only a diagnosis does."""

    def evaluate(self, targets: Iterable[int], environment: Environment) -> list[Value]:
        """The values of `targets`; fills `environment` on the way.

        Raises:
            Refusal: pointing at the piece of text that has no value.
        """
        wanted = tuple(targets)
        for index in self.meaning.program.schedule(wanted):
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
                f"{values.in_words(needed)}; "
                f"the limit is {values.in_words(self.meaning.limits.array_bytes)}"
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
        for index in body.nodes:
            if index not in inner.values:
                inner.values[index] = self.value(index, inner)
        return inner.values[body.result]

    def derivative(self, node: graph.Derivative, environment: Environment) -> Value:
        row = derivatives.TABLE[node.operator]
        x = self._variable(node, environment)
        flat = Flat.of(x) if isinstance(x, dict) and node.operator in BY_COORDINATES else None
        captured = {index: environment.values[index] for index in node.captured}

        if node.leaf is not None:
            # The rest of the tree is captured too: its own gradients flow through it.
            captured[node.wrt] = environment.values[node.wrt]

        # What stands around it holds arrays too, and a rule must not close over any.
        captured[AROUND] = (environment.runs, environment.key, environment.states)

        def function(x: Value, captured: Mapping[int, Value]) -> Value:
            at = x if flat is None else flat.unravel(x)
            if node.leaf is not None:
                at = captured[node.wrt].copy()
                at[node.leaf] = x
            inner = environment.child({**captured, node.wrt: at})
            inner.runs, inner.key, inner.states = captured[AROUND]
            for index in node.path:
                inner.values[index] = self.value(index, inner)
            y = inner.values[node.value] if flat is None else flat.value(inner.values[node.value])
            return y if isinstance(y, dict) and row.of_trees else values.array(y, "what is differentiated")

        vectors = tuple(_as_arrays(environment.values[index]) for index in node.vectors)
        if flat is not None:
            x, vectors = flat.x, tuple(flat.probes(vector) for vector in vectors)
        # By shapes too: a function of the server may call a def with several.
        key = node.index, _shapes_in((x, vectors, captured))
        learned = self.known.get(key)
        if learned is None:
            learned = self._learn(node, lambda x: function(x, captured), x, vectors, environment.examples)
            self.known[key] = learned
            self.learned.setdefault(node.index, learned)
        problem = Differentiation(
            function,
            x,
            captured,
            vectors,
            learned.shapes,
            differentiated=environment.outermost and self.meaning.differentiated,
        )
        return row.strategies[learned.choice.strategy](problem)

    def _variable(self, node: graph.Derivative, environment: Environment) -> Value:
        x = environment.values[node.wrt]
        if node.leaf is not None:
            x = leaf_of(x, [node.leaf])
        if isinstance(x, tuple):
            detail = f"'{node.wrt_name}' is a tuple; name an array, p = stack([a, b]), and compute from it"
            raise Refusal("wrong_kind", detail)
        if values.is_static(x):
            return jnp.asarray(x, self.meaning.dtype)
        x = _as_arrays(x)
        for leaf in jax.tree.leaves(x):
            if not values.is_float(leaf):
                detail = f"'{node.wrt_name}' holds {leaf.dtype}; derivatives need floats"
                raise Refusal("wrong_dtype", detail)
        return x

    def _learn(
        self,
        node: graph.Derivative,
        function: Callable[[Value], Any],
        x: Value,
        vectors: tuple[Value, ...],
        examples: int,
    ) -> Learned:
        """Trace the value once: its shape, and whether examples mix where the operator needs to know."""
        row = derivatives.TABLE[node.operator]
        closed, y = jax.make_jaxpr(function, return_shape=True)(x)
        need_no_pushed_rule(closed)
        dtype = jax.tree.leaves(y)[0].dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise Refusal("wrong_dtype", f"a value of {dtype} has no derivative")
        shapes = Shapes(_spec(x), _spec(y), tuple(_spec(vector) for vector in vectors))
        row.check(shapes)
        self.check_size(row.result_shape(shapes), dtype, examples)
        for x_axis, y_axis in row.independent_axes(shapes):
            if not coupling.keeps_examples_apart(closed, x_axis, y_axis):
                detail = (
                    f"{node.operator} works example by example, but the value's entry i along axis {y_axis} "
                    f"may depend on other entries of '{node.wrt_name}' than its own; write a def of one "
                    "example and vmap it, or take jacobian"
                )
                raise Refusal("couples_examples", detail)
        if caution := cautions.of_derivative(self.meaning.program, node, shapes, closed, self.kinks):
            self.cautions[node.index] = caution
        obstacles = {name: row.obstacle(name, shapes, closed) for name in row.strategies}
        choice = self._choice(node, row, shapes, obstacles)
        apply = () if self.meaning.reverse_only else row.strategies
        others = (name for name in apply if name != choice.strategy and obstacles[name] is None)
        return Learned(shapes, replace(choice, others=tuple(others)))

    def _choice(
        self,
        node: graph.Derivative,
        row: derivatives.DerivativeRow,
        shapes: Shapes,
        obstacles: Mapping[str, str | None],
    ) -> Choice:
        """What the caller pinned, else what the planner chose, else the static rule."""
        meaning = self.meaning
        pinned = meaning.strategies.get(node.operator)
        if meaning.reverse_only:
            if pinned not in (None, row.in_reverse):
                detail = (
                    f"the strategy '{pinned}' of {node.operator} does not apply: something in the program "
                    f"has no forward mode; '{row.in_reverse}' does"
                )
                raise Refusal("strategy", detail)
            return Choice(row.in_reverse, "something in the program has no forward mode")
        if pinned is not None:
            if why := obstacles[pinned]:
                apply = ", ".join(name for name, obstacle in obstacles.items() if obstacle is None)
                found = f"the strategy '{pinned}' of {node.operator} does not apply: {why}"
                raise Refusal("strategy", f"{found}; these do: {apply}")
            return Choice(pinned, "asked for")
        planned = meaning.choices.get(node.index)
        if planned is not None and obstacles[planned] is None:
            return Choice(planned, "fastest when timed")
        if meaning.nesting in row.strategies:
            return Choice(meaning.nesting, "asked for")
        return row.choose(shapes)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _shapes_in(value: Value) -> Any:
    """Structure, shapes and dtypes of a value, to be compared."""
    leaves, structure = jax.tree.flatten(value)
    specs = [(jnp.shape(leaf), str(leaf.dtype)) if values.is_array(leaf) else leaf for leaf in leaves]
    return structure, tuple(specs)


def _spec(value: Value) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), value)


def _as_arrays(value: Value) -> Value:
    return values.map_tree(jnp.asarray, value) if isinstance(value, dict) else values.array(value)


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
    graph.Derivative: Evaluation.derivative,
}
