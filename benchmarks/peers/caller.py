"""A peer's own client, told what to do by lines: `python caller.py KIND URL VALUES [FOLDER]`.

It runs in the peers' environment, keeps its connection where the client can, and takes its own time:
`time N` answers with the seconds of N calls as JSON, `save FILE` keeps the gradient, for comparison.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]


def umbridge_client(url: str, given: Any) -> Call:
    """`HTTPModel.gradient`: vectors as lists, a new connection each time."""
    import umbridge

    model = umbridge.HTTPModel(url, "loss")

    def call() -> Any:
        vectors = [given[name].ravel().tolist() for name in ("params", "x", "y")]
        return np.asarray(model.gradient(0, 0, vectors, [1.0]), np.float32)

    return call


def umbridge_kept(url: str, given: Any) -> Call:
    """What `HTTPModel.gradient` sends and reads, over a kept connection: the best of its server."""
    import requests

    session = requests.Session()

    def call() -> Any:
        vectors = [given[name].ravel().tolist() for name in ("params", "x", "y")]
        asked = {"name": "loss", "outWrt": 0, "inWrt": 0, "input": vectors, "sens": [1.0], "config": {}}
        return np.asarray(session.post(f"{url}/Gradient", json=asked).json()["output"], np.float32)

    return call


def tesseract_client(url: str, given: Any) -> Call:
    """`Tesseract.vector_jacobian_product`, arrays in base64 and back as the server is told to."""
    from tesseract_core import Tesseract

    folder = sys.argv[4] if len(sys.argv) > 4 else None
    tesseract = Tesseract.from_url(url, server_output_path=folder)
    one = {"loss": np.float32(1.0)}

    def call() -> Any:
        answer = tesseract.vector_jacobian_product(
            dict(given), vjp_inputs=["params"], vjp_outputs=["loss"], cotangent_vector=one
        )
        return answer["params"]

    return call


KINDS = {"umbridge": umbridge_client, "umbridge kept": umbridge_kept, "tesseract": tesseract_client}


def main() -> None:
    """Warm up, then do as told."""
    kind, url, values = sys.argv[1:4]
    with np.load(values) as file:
        given = {name: file[name] for name in file.files}
    call = KINDS[kind](url, given)
    call()
    print("ready", flush=True)
    for line in sys.stdin:
        what, argument = line.split(maxsplit=1)
        if what == "save":
            np.save(argument.strip(), call())
            print("saved", flush=True)
            continue
        seconds = []
        for _ in range(int(argument)):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
