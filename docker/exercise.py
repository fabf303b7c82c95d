"""One model, one gradient with a derivative inside its loss, and the answers that pen and paper give.

`verify.sh` runs this inside a container, beside its server, with the client of the image.
"""

from __future__ import annotations

import os
import time

import numpy as np

import nablad

# A line, u = 3 x + 1, at x = 2: the loss is (u - 5)^2 + (du/dx)^2 = 4 + 9.
LINE = {"layers": [{"dense": [1, 1]}]}
LOSS = """
u = model(x)
slope = grad(sum(u), x)
sum((u - 5)**2) + sum(slope**2)
"""


def main() -> None:
    """Ask, compare, and say how long it took."""
    url = f"http://127.0.0.1:{os.environ.get('NABLAD_PORT', '8421')}"
    with nablad.Client(url, timeout=120) as client:
        line = {"layer_1.weight": np.array([[3.0]]), "layer_1.bias": np.array([1.0])}
        client.create_model("verify", LINE, params=line)
        for which in ("first call", "second call"):
            started = time.perf_counter()
            result = client.gradient(
                LOSS, inputs={"x": np.array([[2.0]])}, model="verify", wrt=["params", "x"]
            )
            print(f"{which}: {(time.perf_counter() - started) * 1e3:.1f} ms")
        client.delete_model("verify")
    params = result.gradients["params"]
    np.testing.assert_allclose(result.value, 13.0, rtol=1e-12)
    np.testing.assert_allclose(params["layer_1.weight"], [[2 * 2 * 2 + 2 * 3]], rtol=1e-12)
    np.testing.assert_allclose(params["layer_1.bias"], [2 * 2], rtol=1e-12)
    np.testing.assert_allclose(result.gradients["x"], [[2 * 2 * 3]], rtol=1e-12)


if __name__ == "__main__":
    main()
