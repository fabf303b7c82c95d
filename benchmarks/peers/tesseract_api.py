"""The gradient behind Tesseract: `TESSERACT_API_PATH=tesseract_api.py tesseract-runtime serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float32

sys.path.insert(0, str(Path(__file__).parent))
import mlp

GRADIENT = mlp.flat_gradient(mlp.sizes())


class InputSchema(BaseModel):
    """Parameters as one vector, x and y."""

    params: Differentiable[Array[(None,), Float32]]
    x: Array[(None, None), Float32]
    y: Array[(None, None), Float32]


class OutputSchema(BaseModel):
    """The loss."""

    loss: Differentiable[Float32]


def apply(inputs: InputSchema) -> OutputSchema:
    """Not asked for: the gradient is."""
    raise NotImplementedError


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of the loss, times its cotangent."""
    gradient = np.asarray(GRADIENT(inputs.params, inputs.x, inputs.y))
    cotangent = cotangent_vector["loss"]
    return {"params": gradient if cotangent == 1 else cotangent * gradient}
