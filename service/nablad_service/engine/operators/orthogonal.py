"""Probes that are orthogonal to one another in blocks of d: signed and shuffled lines of a cosine transform.

With C the orthonormal DCT-II matrix of order d, S a diagonal of random signs and π a random permutation, the
probes of a block are vₖ = √d S C[πₖ], k = 1..d. Each πₖ alone is uniform, so E[v v'] = I as for other probes,
and the signs cancel what is off the diagonal. The d lines of C are orthonormal, so that the sum over a whole
block of v v' is d I without any error: its mean of v'Jv is the trace itself. A part of a block is a random
sample without replacement of d numbers whose mean is the trace.

No orthogonalization is computed: a batched QR decomposition can hang on CPU, and is dearer than a network.

References: F. X. Yu et al., Orthogonal Random Features, NeurIPS 2016 (signed structured transforms);
W. G. Cochran, Sampling Techniques, 3rd ed., Wiley 1977, section 2.5 (sampling without replacement).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Probes of shape (count, *examples, d): the coordinates last, and what is between has its own draw.

    A block's permutation is shared by its examples, each of which begins at a random place of it: any two
    lines of an example are as likely as any others, and what two examples take is uncorrelated. Float64 and
    float32 alike: angles are reduced as whole numbers before a cosine is taken of them.
    """
    count, *examples, d = shape
    blocks = -(-count // d)
    for_signs, for_order, for_start = jax.random.split(key, 3)
    signs = jax.random.rademacher(for_signs, (blocks, *examples, d), dtype)
    orders = jax.vmap(lambda key: jax.random.permutation(key, d))(jax.random.split(for_order, blocks))
    starts = jax.random.randint(for_start, (blocks, *examples), 0, d)

    number = jnp.arange(count)
    block, within = number // d, number % d
    ahead = (count, *(1 for _ in examples))
    line = orders[block.reshape(ahead), (starts[block] + within.reshape(ahead)) % d][..., None]
    # cos(π (2i + 1) k / 2d), of which the cosine has the period 4d in (2i + 1) k.
    turns = ((2 * jnp.arange(d, dtype=jnp.int64) + 1) * line.astype(jnp.int64)) % (4 * d)
    waves = jnp.cos(turns.astype(dtype) * (jnp.pi / (2 * d)))
    scale = jnp.where(line == 0, 1.0, jnp.sqrt(2.0)).astype(dtype)
    return (signs[block] * scale * waves).astype(dtype)
