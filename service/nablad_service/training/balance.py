"""Weights of a loss's terms from the norms of their gradients.

Each term gets the weight that gives all terms gradients of one norm, and weights move there slowly:

    balanced_i = (sum_j ||grad L_j||) / ||grad L_i||
    weight_i  <- decay * weight_i + (1 - decay) * balanced_i

S. Wang, S. Sankaran, H. Wang, P. Perdikaris, "An Expert's Guide to Training Physics-informed Neural
Networks", arXiv:2308.08468, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def balanced(
    weights: Mapping[str, float], norms: Mapping[str, Mapping[str, float]], decay: float
) -> dict[str, float]:
    """The weights after one look at the norms.

    A term whose gradient is zero, or not finite, keeps its weight: no weight would balance it.

    Args:
        weights: by term.
        norms: of each term's gradient, unweighted, by what is trained.
        decay: how much of the old weights stays.
    """
    whole = {term: math.hypot(*norms[term].values()) for term in weights}
    total = math.fsum(norm for norm in whole.values() if math.isfinite(norm))
    found = {}
    for term, weight in weights.items():
        usable = whole[term] > 0 and math.isfinite(whole[term]) and math.isfinite(total / whole[term])
        found[term] = decay * weight + (1 - decay) * total / whole[term] if usable else weight
    return found
