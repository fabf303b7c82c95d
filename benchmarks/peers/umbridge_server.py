"""The gradient behind UM-Bridge: `python umbridge_server.py PORT`, in an environment that has it."""

from __future__ import annotations

import sys

import mlp
import numpy as np
import umbridge


class Gradient(umbridge.Model):
    """One output, the loss, of three vectors: parameters, x, y."""

    def __init__(self) -> None:
        super().__init__("loss")
        widths = mlp.sizes()
        examples = int(sys.argv[2])
        self._gradient = mlp.flat_gradient(widths)
        count = sum(int(np.prod(shape)) for shape in mlp.shapes(widths).values())
        self._sizes = [count, examples * widths[0], examples * widths[-1]]

    def get_input_sizes(self, config: object) -> list[int]:
        return self._sizes

    def get_output_sizes(self, config: object) -> list[int]:
        return [1]

    def supports_gradient(self) -> bool:
        return True

    def gradient(
        self,
        out_wrt: int,
        in_wrt: int,
        parameters: list[list[float]],
        sens: list[float],
        config: object,
    ) -> list[float]:
        vectors = [np.asarray(vector, np.float32) for vector in parameters]
        return [sens[0] * entry for entry in np.asarray(self._gradient(*vectors)).tolist()]


if __name__ == "__main__":
    # Without its checks of sizes, which cost it time.
    umbridge.serve_models([Gradient()], int(sys.argv[1]), error_checks=False)
