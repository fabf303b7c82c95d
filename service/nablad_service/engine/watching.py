"""Looking at values and cotangents while a program runs: identities that tell the host what is not finite.

`seen` reports a value, `seen_backwards` the cotangent that is pulled back through it; both work inside maps,
loops and derivatives of any nesting, which is why they are primitives of their own: a callback under `vmap`
would be called once an example, and one under a derivative would see no cotangent.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from nablad_service.engine.values import Value, is_float, map_tree


class Record:
    """What was not finite in one run: nodes by their values, (consumer, read) pairs by their cotangents."""

    def __init__(self) -> None:
        self.values: set[int] = set()
        self.cotangents: set[tuple[int, int]] = set()

    def clear(self) -> None:
        """Forget the last run."""
        self.values.clear()
        self.cotangents.clear()

    def note(self, tag: int | tuple[int, int], finite: Any) -> Any:
        """Called from the running program."""
        if not finite:
            if isinstance(tag, int):
                self.values.add(tag)
            else:
                self.cotangents.add(tag)
        return np.bool_(True)


def seen(value: Value, node: int, record: Record) -> Value:
    """`value`, of `node`; its entries that are not finite are noted."""
    return _each(value, lambda x: _noted.bind(x, tag=node, record=record))


def seen_backwards(value: Value, consumer: int, read: int, record: Record) -> Value:
    """`value`, of the node `read`, as `consumer` takes it; what is pulled back from there is noted."""
    return _each(value, lambda x: _passed.bind(x, tag=(consumer, read), record=record))


def _each(value: Value, function: Any) -> Value:
    if isinstance(value, tuple):
        return tuple(_each(item, function) for item in value)
    if isinstance(value, dict):
        return map_tree(lambda leaf: _each(leaf, function), value)
    return function(value) if is_float(value) else value


_noted = Primitive("noted")
_passed = Primitive("passed")


def _note(x: Any, *, tag: Any, record: Record) -> Any:
    told = jax.ShapeDtypeStruct((), bool)
    done = jax.pure_callback(partial(record.note, tag), told, jnp.all(jnp.isfinite(x)))
    # The value waits for the callback, or XLA would drop a call whose answer nobody uses.
    return jnp.where(done, x, jnp.zeros_like(x))


def _jvp_of_noted(primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
    return _noted.bind(*primals, **how), tangents[0]


def _transpose_of_passed(cotangent: Any, x: Any, **how: Any) -> list[Any]:
    return [cotangent if isinstance(cotangent, ad.Zero) else _noted.bind(cotangent, **how)]


def _batched(primitive: Primitive) -> Any:
    # One report for all examples.
    return lambda arguments, axes, **how: (primitive.bind(*arguments, **how), axes[0])


for _primitive, _does in ((_noted, _note), (_passed, lambda x, **how: x)):
    _primitive.def_impl(_does)
    _primitive.def_abstract_eval(lambda x, **how: x)
    mlir.register_lowering(_primitive, mlir.lower_fun(_does, multiple_results=False))
    batching.primitive_batchers[_primitive] = _batched(_primitive)
ad.primitive_jvps[_noted] = _jvp_of_noted
ad.deflinear2(_passed, _transpose_of_passed)
