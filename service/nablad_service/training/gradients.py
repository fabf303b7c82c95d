"""The gradient of a program as a function of what is trained, to be called inside other compiled pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from nablad_service.engine.executable import Traced
from nablad_service.engine.together import Place, place_of, read
from nablad_service.query import Query, arguments
from nablad_service.training.labels import parameter_label, parameter_of

Arrays = Mapping[str, Any]
"""What is trained, and its gradients, by label."""


class Around(NamedTuple):
    """What a program takes beside what is trained."""

    inputs: Mapping[str, Any]
    """Arrays and trees by name, those that are trained aside."""
    state: Mapping[str, Any]
    """Of models, by the program's names."""
    seed: Any
    """Of random operators, uint32."""
    weights: Mapping[str, Any]
    """Of terms, where the loss is their weighted sum."""


class Found(NamedTuple):
    """What one evaluation gives."""

    value: Any
    terms: Mapping[str, Any]
    gradients: Arrays
    state: Mapping[str, Any]
    """As it is from now on: changed where a model trains its own."""
    term_norms: Mapping[str, Any]
    """Norm of each term's gradient, by term and by what is trained; empty unless the query asks for it."""
    outputs: Mapping[str, Any]
    finite: Any


@dataclass(frozen=True, eq=False)
class Gradient:
    """A program's value and gradients, traced once; the plan's choices are in the trace."""

    labels: tuple[str, ...]
    """Of what is trained, sorted."""
    places: Mapping[Place, Any]
    """Where the program's arguments lie, in their order, with their dtypes."""
    run: Callable[..., Any]
    unflatten: Callable[[Any], Any]

    def __call__(self, params: Arrays, around: Around) -> Found:
        """Value and gradients at `params`, arrays by label. Can be traced, not differentiated."""
        inputs, own = dict(around.inputs), dict[str, dict[str, Any]]()
        for label, array in params.items():
            parameter = parameter_of(label)
            if parameter is None:
                inputs[label] = array
            else:
                own.setdefault(parameter[0], {})[parameter[1]] = array
        given = {**around._asdict(), "inputs": inputs, "params": own}
        # A line search asks at parameters in float64 whatever they are elsewhere: its steps are.
        leaves = [jnp.asarray(read(given, place), dtype) for place, dtype in self.places.items()]
        answer = self.unflatten(self.run(*leaves))
        return Found(
            answer["value"],
            answer["terms"],
            self._by_label(answer["gradients"], params),
            {**around.state, **_as_before(answer["state"], around.state)},
            answer.get("term_norms", {}),
            answer["outputs"],
            answer["finite"],
        )

    def loss(self, around: Around) -> Callable[[Arrays], Any]:
        """The loss as a function of what is trained, which can be differentiated once, in reverse mode.

        Its gradient is the one that the program was traced with: nothing is differentiated anew.
        """

        @jax.custom_vjp
        def loss(params: Arrays) -> Any:
            return self(params, around).value

        def forward(params: Arrays) -> tuple[Any, Arrays]:
            found = self(params, around)
            return found.value, found.gradients

        def backward(gradients: Arrays, cotangent: Any) -> tuple[Arrays]:
            return ({label: cotangent * gradient for label, gradient in gradients.items()},)

        loss.defvjp(forward, backward)
        return loss

    def _by_label(self, gradients: Mapping[str, Any], params: Arrays) -> dict[str, Any]:
        found = {}
        for entry, gradient in gradients.items():
            if not isinstance(gradient, Mapping):
                found[entry] = gradient
                continue
            model = entry.removesuffix(".params")
            found |= {parameter_label(model, leaf): one for leaf, one in gradient.items()}
        # A program whose data are wider computes in their float type.
        return {label: found[label].astype(params[label].dtype) for label in self.labels}


def _as_before(changed: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """State that was changed, in the dtypes that it had."""
    return {
        model: {leaf: one.astype(before[model][leaf].dtype) for leaf, one in leaves.items()}
        for model, leaves in changed.items()
    }


def gradient_of(traced: Traced, query: Query) -> Gradient:
    """The gradient of a query that was traced; its `wrt` names models' parameters whole, and inputs."""
    leaves = jax.tree_util.tree_leaves_with_path(arguments(query))
    structure: Any = jax.tree.structure(traced.computation.out_info)
    return Gradient(
        labels_of(query),
        {place_of(path): leaf.dtype for path, leaf in leaves},
        jaxpr_as_fun(traced.computation.jaxpr),
        structure.unflatten,
    )


def labels_of(query: Query) -> tuple[str, ...]:
    """The labels of what a query differentiates with respect to, sorted."""
    found = []
    for variable in query.signature.wrt:
        if variable.kind == "input":
            found.append(str(variable.name))
        else:
            model = str(variable.name)
            found += [parameter_label(model, leaf) for leaf in query.params[model]]
    return tuple(sorted(found))


def asked(query: Query, params: Arrays, around: Around) -> Query:
    """A query with the values that its program was evaluated with, on the host.

    Args:
        query: of the program; where its inputs are trees they are those of the evaluation already.
        params: what is trained, by label.
        around: the rest.
    """
    inputs = dict(query.inputs)
    inputs |= {name: np.asarray(one) for name, one in around.inputs.items() if not isinstance(one, Mapping)}
    trained = {name: dict(leaves) for name, leaves in query.params.items()}
    for label in labels_of(query):
        parameter = parameter_of(label)
        if parameter is None:
            inputs[label] = np.asarray(params[label])
        else:
            trained[parameter[0]][parameter[1]] = np.asarray(params[label])
    return replace(
        query,
        inputs=inputs,
        params=trained,
        state={
            name: {leaf: np.asarray(around.state[name][leaf]) for leaf in leaves}
            for name, leaves in query.state.items()
        },
        weights={name: float(weight) for name, weight in around.weights.items()},
        seed=int(around.seed),
    )


def norms_of(gradients: Arrays, entry_of: Callable[[str], str]) -> dict[str, Any]:
    """The norm of the gradients of each entry of `wrt`."""
    squares: dict[str, Any] = {}
    for label, gradient in gradients.items():
        entry = entry_of(label)
        squares[entry] = squares.get(entry, 0.0) + jnp.sum(gradient**2)
    return {entry: jnp.sqrt(square) for entry, square in squares.items()}
