"""The function that a query asks for: from arrays to value, terms, gradients, outputs, state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine.environment import BEFORE_ALL, Environment
from nablad_service.engine.evaluation import Evaluation
from nablad_service.engine.merged import without_repetition
from nablad_service.engine.values import Tree, arrays_in, show
from nablad_service.language import graph
from nablad_service.language.places import nearest, place
from nablad_service.query import Signature, Variable

VariableKey: TypeAlias = tuple[str, str | None]
"""("x", None) for an input, ("model", "layer_1.weight") for a parameter."""


def variables_of(signature: Signature) -> tuple[VariableKey, ...]:
    """Each input and each parameter that `wrt` asks for, once, however many entries name it."""
    found: dict[VariableKey, None] = {}
    for variable in signature.wrt:
        if variable.kind == "input":
            found[str(variable.name), None] = None
        for model in signature.models:
            if variable.kind != "input" and variable.name in (None, model.name):
                for leaf, _ in model.params:
                    if variable.leaf in (None, leaf):
                        found[model.name, leaf] = None
    return tuple(found)


def objective(evaluation: Evaluation, signature: Signature) -> Callable[[Any], Any]:
    """A function of `arguments(query)`, traceable once; it gives the answer's arrays by section.

    `finite` among them says whether value and gradients (or the outputs) are.
    """

    def compute(arguments: Any) -> Any:
        arguments = _in_program_dtype(evaluation, arguments)
        if signature.kind == "evaluate":
            outputs = _outputs(evaluation, signature, arguments)
            return {"outputs": outputs, "finite": _finite(outputs)}
        variables = OrderedDict((_label(key), _read(arguments, key)) for key in variables_of(signature))
        loss = _loss(evaluation, signature, arguments)
        if evaluation.record is None:
            # A value and what its derivatives compute on the way are then one, and pulled back together.
            loss = without_repetition(loss, differentiable=True)
        if signature.term_gradients == "none":
            (value, answer), gradients = jax.value_and_grad(loss, has_aux=True)(variables)
            found = {"value": value, "gradients": _by_entry(gradients, signature), **answer}
        else:
            found = _with_terms(loss, variables, signature)
        return {**found, "finite": _finite((found["value"], found["gradients"]))}

    return compute


def _with_terms(
    loss: Callable[[Any], tuple[Any, dict[str, Any]]], variables: Mapping[str, Any], signature: Signature
) -> dict[str, Any]:
    """The answer with the gradient of each term: one forward pass, one backward pass a term."""

    def value_and_terms(variables: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        value, answer = loss(variables)
        return (value, answer["terms"]), answer

    (value, terms), pull, answer = jax.vjp(value_and_terms, variables, has_aux=True)
    none = jax.tree.map(jnp.zeros_like, terms)
    (gradients,) = pull((jnp.ones_like(value), none))
    norms, full = OrderedDict[str, Any](), OrderedDict[str, Any]()
    for name in signature.terms:
        one = none.copy()
        one[name] = jnp.ones_like(value)
        (of_term,) = pull((jnp.zeros_like(value), one))
        full[name] = _by_entry(of_term, signature)
        norms[name] = OrderedDict((key, _norm(gradient)) for key, gradient in full[name].items())
    found = {"value": value, "gradients": _by_entry(gradients, signature), "term_norms": norms, **answer}
    return found if signature.term_gradients == "norms" else {**found, "term_gradients": full}


def _finite(tree: Any) -> Any:
    """Whether all entries are: one number, so that a caller who got NaN is told where it began."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    # Infinity times zero is NaN, which every sum keeps; of a maximum, XLA for CPUs may lose it. `isfinite` of
    # every entry it would write out before it looks at them: a quarter of the gradient's memory.
    return jnp.all(jnp.asarray([jnp.sum(leaf * 0) == 0 for leaf in floats], bool))


def _norm(gradient: Any) -> Any:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))


def _by_entry(gradients: Mapping[str, Any], signature: Signature) -> Any:
    """Gradients keyed as in `wrt`. Ordered dicts throughout: JAX gives plain ones back sorted by name."""
    by_key = {key: gradients[_label(key)] for key in variables_of(signature)}
    return OrderedDict((one.key, _collect(one, signature, by_key)) for one in signature.wrt)


def loss_value(evaluation: Evaluation, signature: Signature) -> Callable[[Any], Any]:
    """The loss alone, as a function of `arguments(query)`."""

    def compute(arguments: Any) -> Any:
        value, _ = _loss(evaluation, signature, _in_program_dtype(evaluation, arguments))({})
        return value

    return compute


def _in_program_dtype(evaluation: Evaluation, arguments: Any) -> Any:
    dtype = evaluation.meaning.dtype

    def convert(leaf: Any) -> Any:
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(convert, arguments)


def _label(key: VariableKey) -> str:
    name, leaf = key
    return name if leaf is None else f"{name}.params[{leaf}]"


def _read(arguments: Any, key: VariableKey) -> Any:
    name, leaf = key
    return arguments["inputs"][name] if leaf is None else arguments["params"][name][leaf]


def _write(arguments: Any, variables: Mapping[str, Any], signature: Signature) -> Any:
    inputs = dict(arguments["inputs"])
    params = {name: OrderedDict(tree) for name, tree in arguments["params"].items()}
    for key in variables_of(signature):
        name, leaf = key
        if _label(key) not in variables:
            continue
        if leaf is None:
            inputs[name] = variables[_label(key)]
        else:
            params[name][leaf] = variables[_label(key)]
    return {**arguments, "inputs": inputs, "params": params}


def _collect(variable: Variable, signature: Signature, gradients: Mapping[VariableKey, Any]) -> Any:
    if variable.kind == "input":
        return gradients[str(variable.name), None]
    if variable.kind == "leaf":
        return gradients[str(variable.name), variable.leaf]
    trees = OrderedDict(
        (model.name, OrderedDict((leaf, gradients[model.name, leaf]) for leaf, _ in model.params))
        for model in signature.models
        if variable.name in (None, model.name)
    )
    return next(iter(trees.values())) if len(trees) == 1 else trees


def _environment(evaluation: Evaluation, arguments: Any) -> Environment:
    program = evaluation.meaning.program
    known: dict[int, Any] = {index: arguments["inputs"][name] for name, index in program.inputs.items()}
    for name, index in program.parameters.items():
        known[index] = OrderedDict(arguments["params"][name])
    states = {name: [(BEFORE_ALL, given)] for name, given in arguments["state"].items()}
    return Environment(known, states, jax.random.key(arguments["seed"]))


def _loss(
    evaluation: Evaluation, signature: Signature, arguments: Any
) -> Callable[[Mapping[str, Any]], tuple[Any, dict[str, Any]]]:
    program = evaluation.meaning.program

    def loss(variables: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        environment = _environment(evaluation, _write(arguments, variables, signature))
        targets = [named_value(program, name) for name in (*signature.terms, *signature.outputs)]
        if not signature.weighted:
            targets.append(result_of(program))
        targets += _trained_calls(evaluation, targets)
        found = dict(zip(targets, evaluation.evaluate(targets, environment), strict=True))
        terms = OrderedDict(
            (name, _scalar(evaluation, named_value(program, name), found, f"the term '{name}'"))
            for name in signature.terms
        )
        if signature.weighted:
            value = sum(arguments["weights"][name] * term for name, term in terms.items())
        else:
            value = _scalar(evaluation, result_of(program), found, "the loss")
        outputs = OrderedDict(
            (name, _result(evaluation, name, found[named_value(program, name)])) for name in signature.outputs
        )
        trained = OrderedDict(
            (
                model.name,
                OrderedDict((leaf, environment.last_state(model.name)[leaf]) for leaf, _ in model.state),
            )
            for model in signature.models
            if model.state and len(environment.states[model.name]) > 1
        )
        return value, {"terms": terms, "outputs": outputs, "state": trained}

    return loss


def _outputs(evaluation: Evaluation, signature: Signature, arguments: Any) -> Tree:
    program = evaluation.meaning.program
    environment = _environment(evaluation, arguments)
    targets = [named_value(program, name) for name in signature.outputs]
    found = evaluation.evaluate([*targets, *_trained_calls(evaluation, targets)], environment)
    return OrderedDict(
        (name, _result(evaluation, name, value))
        for name, value in zip(signature.outputs, found, strict=False)
    )


def _trained_calls(evaluation: Evaluation, targets: list[int]) -> list[int]:
    """Calls in train mode, outside maps, that `targets` rest on: they update the running state.

    Also where only a derivative reads them.
    """
    program, modes = evaluation.meaning.program, evaluation.meaning.modes
    nodes = (program.nodes[index] for index in sorted(program.used(targets)))
    return [
        node.index
        for node in nodes
        if isinstance(node, graph.ModelCall)
        and not node.mapped
        and (node.mode or modes[node.model]) == "train"
    ]


def named_value(program: graph.Program, name: str) -> int:
    """The node of a top-level name; `result` is the last expression where no value has that name."""
    if name in program.names:
        return program.names[name]
    if name == "result":
        return result_of(program)
    hint = nearest(name, program.names)
    known = ", ".join(list(program.names)[:20])
    raise Refusal("unknown_name", f"the program has no value '{name}'{hint}; it has {known or 'none'}")


def result_of(program: graph.Program) -> int:
    """The node of the last expression.

    Raises:
        Refusal: `syntax` where the text ends with an assignment or is empty.
    """
    if program.result is None:
        last = list(program.names)[-1] if len(program.names) > len(program.inputs) else "the loss"
        detail = f"the program must end with the value it computes, on a line of its own: {last}"
        raise Refusal("syntax", detail)
    return program.result


def _scalar(evaluation: Evaluation, index: int, found: Mapping[int, Any], what: str) -> Any:
    value = found[index]
    program = evaluation.meaning.program
    is_loss = index == program.result and what == "the loss"
    span = program.result_span if is_loss else program.nodes[index].span
    where = place(program.text, span) if span else None
    if isinstance(value, bool | int | float):
        return jnp.asarray(value, evaluation.meaning.dtype)
    if not hasattr(value, "shape") or value.shape != ():
        hint = "; reduce it with sum or mean" if hasattr(value, "shape") else ""
        raise Refusal("not_scalar", f"{what} must be a scalar, not {show(value)}{hint}", where)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise Refusal("wrong_dtype", f"{what} must be a float, not {show(value)}", where)
    return value


def _result(evaluation: Evaluation, name: str, value: Any) -> Any:
    """A value as arrays: numbers become scalars, tuples and trees stay what they are."""
    try:
        return arrays_in(value, f"'{name}'", evaluation.meaning.dtype)
    except Refusal as refusal:
        program = evaluation.meaning.program
        span = program.nodes[named_value(program, name)].span
        refusal.where = place(program.text, span) if span else None
        raise
