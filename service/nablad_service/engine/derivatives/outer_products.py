"""Rows of a Jacobian that are sums of outer products: their squared norms and Gram matrix, without the rows.

For the weight W of z_t = W a_t, with a row's cotangents delta_t = d value / d z_t, the row is the matrix
G = sum over t of delta_t a_t', where t runs over the places at which the layer is applied: none for a dense
layer of one example, the positions of a sequence, the pixels of a picture. So

    |G|^2      =  sum over t, s of (a_t . a_s) (delta_t . delta_s)
    <G, G'>    =  sum over t, s of (a_t . a'_s) (delta_t . delta'_s)

which for one place is |a|^2 |delta|^2: nothing of the size of W is made. With many places it is cheaper to
form G, and then that is done, for the examples a few at a time.

Reference: I. Goodfellow, Efficient per-example gradient computations, arXiv:1510.01799 (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives.in_turn import in_turn

AT_ONCE = 16
"""Examples whose rows are formed at once."""
CLEARLY = 2
"""Times the operations that pairs of places must save: their sum cancels where the rows' own does not."""


@dataclass(frozen=True)
class Outer:
    """Rows that are sums of outer products over places, in groups that do not touch each other.

    `a` has shape (examples, places, groups, in) and `delta` (passes, examples, places, groups, out): each
    pass makes one row an example.
    """

    a: Any
    delta: Any

    def norms(self) -> Any:
        """Squared norms of the rows, (passes, examples)."""
        _, places, _, width = self.a.shape
        if places == 1:
            a, delta = jnp.sum(self.a**2, axis=(1, 3)), jnp.sum(self.delta**2, axis=(2, 4))
            return jnp.einsum("ng,png->pn", a, delta)
        if pairs_pay(places, width, self.delta.shape[-1]):
            a = jnp.einsum("ntgi,nsgi->ngts", self.a, self.a)
            delta = jnp.einsum("pntgo,pnsgo->pngts", self.delta, self.delta)
            # A norm that rounding makes negative would have no root.
            return jnp.maximum(jnp.einsum("ngts,pngts->pn", a, delta), 0)

        def of_one(example: tuple[Any, Any]) -> Any:
            a, delta = example
            return jnp.sum(jnp.einsum("tgi,ptgo->pgoi", a, delta) ** 2, axis=(1, 2, 3))

        examples = self.a, jnp.moveaxis(self.delta, 1, 0)
        if len(self.a) <= AT_ONCE:
            return jax.vmap(of_one, out_axes=1)(examples)
        return in_turn(of_one, examples, at_once=AT_ONCE).T

    def gram(self) -> Any:
        """Products of all pairs of rows, (examples, passes, examples, passes)."""
        examples, places, _, width = self.a.shape
        passes, out = self.delta.shape[0], self.delta.shape[-1]
        rows = examples * passes
        pairs = places**2 * (examples**2 * width + rows**2 * out)
        formed = rows * places * width * out + rows**2 * width * out
        if places > 1 and (pairs * CLEARLY > formed or rows * places**2 > width * out):
            return self.rows().gram()
        a = jnp.einsum("ntgi,msgi->gntms", self.a, self.a)
        delta = jnp.einsum("pntgo,qmsgo->gpntqms", self.delta, self.delta)
        return jnp.einsum("gntms,gpntqms->npmq", a, delta)

    def rows(self) -> Rows:
        """The rows themselves."""
        formed = jnp.einsum("ntgi,pntgo->pngoi", self.a, self.delta)
        return Rows(formed.reshape(*formed.shape[:2], -1))


@dataclass(frozen=True)
class Rows:
    """Rows as they are, `entries` of shape (passes, examples, parameters)."""

    entries: Any

    def norms(self) -> Any:
        """Squared norms of the rows, (passes, examples)."""
        return jnp.sum(self.entries**2, axis=2)

    def gram(self) -> Any:
        """Products of all pairs of rows, (examples, passes, examples, passes)."""
        return jnp.einsum("pni,qmi->npmq", self.entries, self.entries)


def pairs_pay(places: int, width: int, out: int) -> bool:
    """Whether pairs of places take clearly fewer operations than one row of width times out entries."""
    return places == 1 or CLEARLY * places * (width + out) <= width * out
