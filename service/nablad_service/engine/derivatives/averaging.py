"""From samples to an estimate: their mean, its standard error, and when there are enough of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Samples = Callable[[jax.Array], jax.Array]
"""From probes (count, *x.shape) to v'Jv of each, (count, *x.shape[:-1])."""

BATCH = 8
"""Probes that are drawn before the error is looked at again."""


def standard_error(samples: jax.Array) -> jax.Array:
    """s / √K, the standard error of the mean of K independent samples."""
    return _root(jnp.var(samples, axis=0, ddof=1) / len(samples))


def standard_error_of_blocks(samples: jax.Array, d: int) -> jax.Array:
    """The standard error of the mean of K samples that were drawn without replacement, in blocks of d.

    A whole block has the mean that is estimated. Of the m = K mod d samples beyond, the sum has the variance
    m (1 - m/d) S², where S² is the variance within a block (Cochran, Sampling Techniques, section 2.5). S² is
    pooled over all blocks, without bias.
    """
    count, shape = len(samples), samples.shape[1:]
    whole, beyond = divmod(count, d)
    if beyond == 0:
        return jnp.zeros(shape, samples.dtype)
    blocks = samples[: whole * d].reshape(whole, d, *shape)
    squares = jnp.sum((blocks - jnp.mean(blocks, axis=1, keepdims=True)) ** 2, axis=(0, 1))
    rest = samples[whole * d :]
    squares += jnp.sum((rest - jnp.mean(rest, axis=0)) ** 2, axis=0)
    within = squares / (whole * (d - 1) + beyond - 1)
    return _root(within * beyond * (1 - beyond / d) / count**2)


class Moments(NamedTuple):
    """What is known of the samples so far."""

    used: jax.Array
    mean: jax.Array
    squares: jax.Array
    """The sum of squared deviations from the mean."""

    @classmethod
    def of(cls, samples: jax.Array) -> Moments:
        """Of one batch."""
        mean = jnp.mean(samples, axis=0)
        return cls(jnp.asarray(len(samples), jnp.int32), mean, jnp.sum((samples - mean) ** 2, axis=0))

    def joined(self, other: Moments) -> Moments:
        """Of both batches.

        Reference: T. F. Chan, G. H. Golub and R. J. LeVeque, Updating formulae and a pairwise algorithm for
        computing sample variances, Stanford STAN-CS-79-773 (1979).
        """
        # As floats of the samples: JAX divides int32 in float32, and multiplies it until it overflows.
        ours, theirs = (one.used.astype(self.mean.dtype) for one in (self, other))
        share = theirs / (ours + theirs)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * share * ours
        return Moments(self.used + other.used, self.mean + share * apart, squares)

    @property
    def standard_error(self) -> jax.Array:
        """s / √K."""
        used = self.used.astype(self.mean.dtype)
        return _root(self.squares / ((used - 1) * used))


def until_small(
    samples: Samples, draw: Callable[[int, Any], jax.Array], most: int, until: jax.Array
) -> Moments:
    """Batches of probes until the largest standard error of all examples is at most `until`, or all are used.

    A loop over all batches, each skipped when there are enough (`lax.cond`), rather than a `while`: it has a
    derivative in reverse, in which what was skipped is skipped too. What a batch needs is forgotten and made
    again there. Whether to go on is no function of the parameters: the gradient is that of the mean of the
    probes that were used. Inside a `vmap` the condition differs by example, and both branches are computed.

    The first batch takes what does not fill a batch, so that all others are equal.
    """
    first = most if most < 2 * BATCH else BATCH + most % BATCH
    begun = Moments.of(samples(draw(first, 0)))

    def more(known: Moments, number: jax.Array) -> Moments:
        return known.joined(Moments.of(samples(draw(BATCH, number))))

    def step(known: Moments, number: jax.Array) -> tuple[Moments, None]:
        enough = jnp.all(jax.lax.stop_gradient(known.standard_error) <= until)
        return jax.lax.cond(enough, lambda known, _: known, more, known, number), None

    forgetting = jax.checkpoint(step, prevent_cse=False)
    return jax.lax.scan(forgetting, begun, jnp.arange(1, 1 + (most - first) // BATCH))[0]


def _root(variance: jax.Array) -> jax.Array:
    """The square root, with the derivative 0 where all samples agree: there it has none."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
