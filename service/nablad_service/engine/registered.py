"""Functions that the operator of the server registers, for what a text cannot say.

An adaptive ODE solver, an implicit layer, a loss that has Python in it: called by name in a program, like any
operator. They run in the server's process and never travel; what a program hands them is arrays, trees, and
`def`s of its own, which arrive as pure JAX functions.
"""

from __future__ import annotations

import ast
import inspect
import keyword
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine.environment import Environment, Meaning
from nablad_service.engine.modes import no_forward_mode, no_reverse_mode
from nablad_service.engine.values import Value, arrays_in, in_float_type
from nablad_service.language import graph
from nablad_service.language.signatures import OperatorSignature

if TYPE_CHECKING:
    from nablad_service.engine.evaluation import Evaluation


@dataclass(frozen=True)
class Registered:
    """A function and how programs call it."""

    signature: OperatorSignature
    function: Callable[..., Any]


def registered_as(name: str, function: Callable[..., Any], operators: Collection[str]) -> Registered:
    """What programs may call `name`; its signature and the first sentence of its docstring are shown.

    Raises:
        ValueError: where the name cannot be one, is taken by an operator, or the signature cannot be written
            in a program (keyword defaults must be literals).
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"'{name}' is not a name that a program can call")
    if name in operators:
        raise ValueError(f"'{name}' is an operator already; register the function under another name")
    if not callable(function):
        raise ValueError(f"'{name}' is no function: {function!r}")
    written = ", ".join(
        _written(name, parameter) for parameter in inspect.signature(function).parameters.values()
    )
    doc = (inspect.getdoc(function) or "A function of this server.").split("\n\n")[0].replace("\n", " ")
    return Registered(OperatorSignature(name, f"{name}({written})", doc, "registered"), function)


def _written(name: str, parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        raise ValueError(f"'{name}' takes **{parameter.name}; programs need the names of its arguments")
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.default is parameter.empty:
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise ValueError(f"'{name}' needs {parameter.name}= by keyword; give it a default")
        return parameter.name
    try:
        ast.literal_eval(repr(parameter.default))
    except (ValueError, SyntaxError):
        raise ValueError(
            f"the default of {parameter.name} in '{name}' is no literal: {parameter.default!r}"
        ) from None
    return f"{parameter.name}={parameter.default!r}"


def registered_call(evaluation: Evaluation, node: graph.Registered, environment: Environment) -> Value:
    """The value of a call of a registered function.

    A body becomes a `jax.tree_util.Partial`: a function that is a pytree of all that it reads, so that
    solvers which differentiate implicitly see every array that it depends on.
    """
    meaning = evaluation.meaning

    def run(body: graph.Body, free: Mapping[int, Value], *arguments: Value) -> Value:
        if len(arguments) != len(body.parameters):
            takes, given = len(body.parameters), len(arguments)
            detail = f"'{node.function}' calls the function it is given with {given} arguments, not {takes}"
            raise Refusal("arity", detail)
        inner = environment.child(free).inside(body, arguments, jnp.int32(0))
        # The rule for outermost gradients has no jvp, and solvers push tangents through their bodies.
        inner.outermost = False
        return arrays_in(evaluation.body(body, inner), "what the function gives", meaning.dtype)

    def settled(value: int | graph.Body) -> Any:
        if isinstance(value, int):
            return environment.values[value]
        free = {index: environment.values[index] for index in value.free}
        return jax.tree_util.Partial(partial(run, value), free)

    arguments = [settled(value) for value in node.arguments]
    keywords = {name: settled(value) for name, value in node.keywords}
    try:
        result = meaning.functions[node.function].function(*arguments, **keywords)
    except Refusal:
        raise
    except Exception as error:
        if no_forward_mode(error) or no_reverse_mode(error):
            raise
        first = str(error).strip().split("\n")[0]
        if "object is not callable" in first:
            first = "it calls an argument that is no function; give a def or a model where it wants one"
        detail = f"{node.function} failed on the server: {type(error).__name__}: {first}"
        raise Refusal("function_failed", detail) from error
    answer = arrays_in(_in_declared_order(result, meaning), f"what {node.function} gives", meaning.dtype)
    return in_float_type(meaning.dtype, answer)


def _in_declared_order(result: Any, meaning: Meaning) -> Any:
    """A tree of a model's parameters in the model's order: JAX gives plain dicts back sorted by name."""
    if isinstance(result, tuple):
        return tuple(_in_declared_order(item, meaning) for item in result)
    if isinstance(result, dict):
        for model in meaning.models.values():
            if set(result) == set(model.parameter_shapes):
                return {name: result[name] for name in model.parameter_shapes}
    return result
