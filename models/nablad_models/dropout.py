"""Values left out at random in train mode."""

from __future__ import annotations

import equinox as eqx
from jax import Array

from nablad.problems import Refusal
from nablad_models.layer import Call, Layer
from nablad_models.leaves import Leaves


def dropout(probability: float) -> Layer:
    """Each value is zero with the given probability in train mode, the others divided by one minus it.

    Raises `Refusal("invalid_request")` in train mode without a key.
    """
    layer = eqx.nn.Dropout(probability)

    def forward(_: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        if not call.train or probability == 0:
            return x, {}
        if call.key is None:
            raise Refusal(
                "invalid_request",
                f"{call.path} (dropout) in train mode draws at random and needs a key: "
                'send a seed, or use mode "eval".',
            )
        # One draw for the whole batch: every value has its own bit, whatever axes it lies on.
        return layer(x, key=call.key), {}

    return Layer(gives=lambda shape: shape, forward=forward, keeps_shape=True)
