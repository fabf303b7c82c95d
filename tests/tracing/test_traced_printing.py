"""A loss function prints as the text that it sends."""

from __future__ import annotations

from typing import Any

import numpy as np

import nablad


def test_a_loss_function_prints_as_the_text_it_sends() -> None:
    def loss(model: Any, x: Any, y: Any) -> Any:
        yhat = model(x)
        J = nablad.jacobian(yhat, x)
        data = np.sum((yhat - y) ** 2)
        return data + np.linalg.norm(0.01 * J) ** 2

    data = np.zeros((10, 2))
    assert str(nablad.trace(loss, inputs={"x": data, "y": data}, models=["model"])).splitlines() == [
        "yhat = model(x)",
        "J = jacobian(yhat, x)",
        "data = sum((yhat - y)**2)",
        "data + norm(0.01 * J)**2",
    ]
