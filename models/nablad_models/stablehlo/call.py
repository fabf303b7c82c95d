"""The JAX primitive behind an artifact: it maps over examples, and differentiates in reverse.

`jax.export` gives a call that has no batching rule, and whose `custom_vjp` would be mapped as it stands: the
gradient in the parameters of a mapped model would then be taken example by example and summed. A primitive of
our own maps first: a mapped axis is folded into the batch axis of the artifact, so that the pullback of n
examples is one call that sums over all of them.

    order 0:  answers = f(operands) order k:  cotangents of the operands of order k - 1 = vjp(operands of
    order k - 1, cotangents of its answers)

Reverse mode is all there is: the bytes hold no jvp. Like JAX's `custom_vjp`, the primitive leaves a linear
one behind that only transposes, and that raises TypeError where forward mode is really run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from nablad.problems import Refusal
from nablad_models.stablehlo.artifact import Artifact

NO_FORWARD_MODE = (
    "can't apply forward-mode autodiff (jvp) to a StableHLO artifact: it holds reverse mode only, "
    "as a custom_vjp function does."
)

call_p = Primitive("stablehlo_model")
call_p.multiple_results = True
# Named as what JAX leaves behind a custom_vjp: who looks for tangents that cannot be pushed looks for that.
tangent_p = Primitive("custom_lin")
tangent_p.multiple_results = True


def call(artifact: Artifact, operands: Sequence[Array]) -> list[Array]:
    """The answers to flat operands, parameters first, in the shapes and dtypes that were exported.

    Differentiable in reverse to `artifact.order`, and to be mapped in any operand.

    Raises `Refusal("limit")` while a derivative beyond that is traced.
    """
    return call_p.bind(*operands, artifact=artifact, order=0)


def _evaluate(*operands: Any, artifact: Artifact, order: int) -> list[Any]:
    return artifact.orders[order](*operands)


def _avals(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    def abstract(*avals: Any, **params: Any) -> list[Any]:
        specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        found = jax.eval_shape(partial(function, **params), *specs)
        return [jax.core.ShapedArray(spec.shape, spec.dtype) for spec in found]

    return abstract


call_p.def_impl(lambda *operands, **params: jax.jit(partial(_evaluate, **params))(*operands))
call_p.def_abstract_eval(_avals(_evaluate))
mlir.register_lowering(call_p, mlir.lower_fun(_evaluate, multiple_results=True))


# -- derivatives


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, artifact: Artifact, order: int) -> Any:
    answers = call_p.bind(*primals, artifact=artifact, order=order)
    moving = tuple(not isinstance(tangent, ad.Zero) for tangent in tangents)
    moved = [tangent for tangent, moves in zip(tangents, moving, strict=True) if moves]
    pushed = tangent_p.bind(*primals, *moved, artifact=artifact, order=order, moving=moving)
    return answers, pushed


def _tangent_avals(*avals: Any, artifact: Artifact, order: int, moving: tuple[bool, ...]) -> list[Any]:
    answers: list[Any] = call_p.abstract_eval(*avals[: len(moving)], artifact=artifact, order=order)[0]
    return answers


def _transpose(
    cotangents: Sequence[Any], *operands: Any, artifact: Artifact, order: int, moving: tuple[bool, ...]
) -> list[Any]:
    primals, tangents = operands[: len(moving)], operands[len(moving) :]
    if not all(ad.is_undefined_primal(tangent) for tangent in tangents):
        _no_forward_mode()
    if order == artifact.order:
        raise Refusal("limit", artifact.out_of_derivatives())
    given = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    pulled = call_p.bind(*primals, *given, artifact=artifact, order=order + 1)
    # Whole numbers have no cotangents, and never move.
    of_floats = iter(pulled)
    of_operands = [next(of_floats) if floats else None for floats in artifact.orders[order].float_operands]
    wanted = [one for one, moves in zip(of_operands, moving, strict=True) if moves]
    return [None] * len(primals) + wanted


def _no_forward_mode(*_: Any, **__: Any) -> NoReturn:
    raise TypeError(NO_FORWARD_MODE)


ad.primitive_jvps[call_p] = _jvp
ad.primitive_transposes[tangent_p] = _transpose
ad.primitive_jvps[tangent_p] = _no_forward_mode
batching.primitive_batchers[tangent_p] = _no_forward_mode
tangent_p.def_impl(_no_forward_mode)
tangent_p.def_abstract_eval(_tangent_avals)
mlir.register_lowering(tangent_p, _no_forward_mode)


# -- mapping


def _map(operands: Sequence[Any], axes: Sequence[Any], *, artifact: Artifact, order: int) -> Any:
    """One call after the other.

    Folding the mapped axis into the batch would be one call, and wrong where examples mix in the batch. What
    an artifact mixes cannot be read from it with certainty, and a trial with numbers finds only the mixing
    that those numbers switch on.
    """
    mapped = [axis is not None for axis in axes]
    moving = [
        jnp.moveaxis(x, axis, 0) for x, axis, moves in zip(operands, axes, mapped, strict=True) if moves
    ]

    def one_run(run: list[Any]) -> list[Any]:
        each = iter(run)
        given = (next(each) if moves else x for x, moves in zip(operands, mapped, strict=True))
        return list(call_p.bind(*given, artifact=artifact, order=order))

    answers = jax.lax.map(one_run, moving)
    return answers, [0] * len(answers)


batching.primitive_batchers[call_p] = _map
