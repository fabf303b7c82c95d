"""A tree evaluated with JAX by hand: the second route, which shares nothing with the engine.

A derivative evaluates its value anew as a function of the variable, whatever was computed from the variable
included. All derivatives here are taken in reverse mode, and traces from whole Jacobians and Hessians, where
the engine mostly goes forward and never builds these.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from dependence import Definitions, local, moves
from jax.flatten_util import ravel_pytree
from program_tree import Apply, Call, Def, Derivative, Expr, Leaf, Loop, ModelCall, Name, Program, root

Known = dict[str, Any]
Models = Mapping[str, Callable[[Any, Any], Any]]


def loss_by_hand(program: Program, models: Models) -> Callable[[Known], Any]:
    """The loss as a function of inputs and parameters (`"net.params"`) by name."""

    def loss(known: Known) -> Any:
        return ByHand(program.definitions, models).value(program.loss, dict(known))

    return loss


class ByHand:
    """Evaluates expressions; what is known of names comes along, and what is found is added."""

    def __init__(self, definitions: Definitions, models: Models) -> None:
        self.definitions = definitions
        self.models = models

    def value(self, expression: Expr, known: Known) -> Any:
        match expression:
            case Name(name=name):
                if name not in known:
                    known[name] = self.value(self.definitions[name], known)
                return known[name]
            case Leaf(tree=tree, leaf=leaf):
                return known[tree][leaf]
            case Apply(function=function, parts=parts):
                return function(*(self.value(part, known) for part in parts))
            case ModelCall(model=model, x=x, params=params):
                at = self.value(params, known) if params else known[f"{model}.params"]
                return self.models[model](at, self.value(x, known))
            case Derivative():
                return self.derivative(expression, known)
            case Call(function=function, arguments=arguments, axes=axes):
                values = [self.value(argument, known) for argument in arguments]
                if axes is None:
                    return self.call(function, values, known)[0]
                return jax.vmap(lambda *one: self.call(function, one, known)[0], axes)(*values)
            case Loop():
                return self.loop(expression, known)
        raise TypeError(expression)

    def call(self, function: Def, values: Any, known: Known) -> tuple[Any, ...]:
        inside = {name: value for name, value in known.items() if name not in local(function)}
        inside |= {argument.name: value for argument, value in zip(function.arguments, values, strict=True)}
        return tuple(self.value(result, inside) for result in function.results)

    def loop(self, loop: Loop, known: Known) -> Any:
        carry = self.value(loop.init, known)
        if isinstance(loop.over, int):
            for i in range(loop.over):
                (carry,) = self.call(loop.function, (i, carry), known)
            return carry
        ys = []
        for x in self.value(loop.over, known):
            carry, y = self.call(loop.function, (carry, x), known)
            ys.append(y)
        return (carry, jnp.stack(ys))[loop.part]

    def along(self, value: Callable[[Known], Any], variable: Name | Leaf, known: Known) -> tuple[Any, Any]:
        """`value` as a function of the variable, and the variable."""
        x = self.value(variable, known)
        fixed = {
            name: one for name, one in known.items() if not moves(name, root(variable), self.definitions)
        }

        def function(q: Any) -> Any:
            if isinstance(variable, Name):
                return value({**fixed, variable.name: q})
            tree = OrderedDict(known[variable.tree])
            tree[variable.leaf] = q
            return value({**fixed, variable.tree: tree})

        return function, x

    def derivative(self, node: Derivative, known: Known) -> Any:
        vectors = [self.value(vector, known) for vector in node.vectors]
        if node.operator == "d":
            return self.partial(node, node.variables, known)
        function, x = self.along(lambda inner: self.value(node.value, inner), node.variables[0], known)
        match node.operator:
            case "grad":
                return jax.grad(function)(x)
            case "vjp":
                return jax.vjp(function, x)[1](vectors[0])[0]
            case "jvp":
                return backwards_twice(function, x, vectors[0])
            case "hvp":
                return jax.grad(lambda x: _inner(jax.grad(function)(x), vectors[0]))(x)
        flat, unravel = ravel_pytree(x)
        jacobian = jax.jacrev(lambda flat: function(unravel(flat)))
        shape = flat.shape if isinstance(x, dict) else jnp.shape(x)
        if node.operator == "hessian":
            return jax.jacrev(jacobian)(flat).reshape(shape + shape)
        y_shape = jax.eval_shape(function, x).shape
        if node.operator == "laplacian":
            n = math.prod(y_shape)
            H = jax.jacrev(jacobian)(flat).reshape(n, n, flat.size // n, n, flat.size // n)
            return jnp.einsum("iikik->i", H).reshape(y_shape)
        J = jacobian(flat)
        if node.operator == "jacobian":
            return J.reshape((-1, flat.size) if isinstance(x, dict) else y_shape + shape)
        if node.operator == "batched_jacobian":
            n = shape[0]
            return jnp.einsum("ikil->ikl", J.reshape(n, -1, n, flat.size // n))
        n, size = math.prod(shape[:-1]), shape[-1]
        J = J.reshape(n, size, n, size)
        if node.operator == "divergence":
            return jnp.einsum("ikik->i", J).reshape(shape[:-1])
        probes = vectors[0].reshape(-1, n, size)
        return jnp.mean(jnp.einsum("pik,ikil,pil->pi", probes, J, probes), 0).reshape(shape[:-1])

    def partial(self, node: Derivative, variables: tuple[Any, ...], known: Known) -> Any:
        """The last variable's derivative of what remains: its Jacobian's diagonal."""
        if not variables:
            return self.value(node.value, known)
        *others, last = variables
        function, x = self.along(lambda inner: self.partial(node, tuple(others), inner), last, known)
        J = jax.jacrev(function)(x)
        return jnp.diagonal(J.reshape(x.size, x.size)).reshape(x.shape)


def backwards_twice(function: Callable[[Any], Any], x: Any, v: Any) -> Any:
    """J v without forward mode: u'J is linear in u, and its own pullback of v is J v."""
    y, pull = jax.vjp(function, x)
    return jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(y))[1](v)[0]


def _inner(a: Any, b: Any) -> Any:
    return sum(
        jnp.sum(left * right) for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
