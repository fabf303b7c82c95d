"""A loss that wants far more memory than it may have, within the limit: what is asked for and what is used.

    python benchmarks/memory.py            # 40 GB by count, in 2: takes a few minutes
    python benchmarks/memory.py --quick    # 4 GB in 0.4: within a minute

The residual of a Poisson equation in 64 dimensions: the plain form keeps the two tangents of every coordinate
of every point for the pullback. The memory that is used is the process's own, at its highest, less what it
holds when the run begins: the program is compiled by then, and a run with few points has made threads and
their stacks. What compiling took above that is counted as if the run had, a few tens of megabytes: limits
are large beside it. The answer is compared with that of a smaller number of points, repeated: the mean is
the same.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

from nablad.messages import GradientRequest
from nablad_service.engine.engine import Engine
from nablad_service.hosting import ModelStore
from nablad_service.query import Query
from nablad_service.requests.validation import gradient_query

LOSS = "u = model(x)[:, 0]\nmean((laplacian(u, x) + u)**2)"
DIMENSIONS = 64
WIDTH = 64
DIFFERENT = 64
"""Points that are not repeated."""


def query(models: ModelStore, points: int, memory_limit: int | None = None) -> Query:
    """The loss at so many points, the first `DIFFERENT` of them over and over."""
    few = np.random.default_rng(0).standard_normal((DIFFERENT, DIMENSIONS)).astype("float32")
    request = GradientRequest(
        loss=LOSS,
        models={"model": "net"},
        inputs={"x": np.tile(few, (points // DIFFERENT, 1))},
        memory_limit=memory_limit,
    )
    return gradient_query(request, models.get)


def highest() -> int:
    """The most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held() -> int:
    """The memory that this process has now, in bytes; where the system does not tell, the most it has had."""
    table = Path("/proc/self/statm")
    return int(table.read_text().split()[1]) * resource.getpagesize() if table.exists() else highest()


def main() -> int:
    """Estimate, run within the limit, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    points, limit = (16_384, 4 * 10**8) if options.quick else (163_840, 2 * 10**9)
    engine, models = Engine.start(), ModelStore(max_models=1)
    models.put("net", {"preset": "mlp", "sizes": [DIMENSIONS, WIDTH, WIDTH, 1]}, None, None, 0)

    plain = engine.trace(query(models, points)).cost.peak_bytes
    few = query(models, DIFFERENT)
    expected = engine.compile(engine.trace(few)).run(few)
    limited = query(models, points, limit)
    traced = engine.trace(limited)
    executable = engine.compile(traced)
    before, started = held(), time.perf_counter()
    answer = executable.run(limited)
    seconds, used = time.perf_counter() - started, highest() - before

    largest = max(np.abs(leaf).max() for leaf in expected["gradients"]["params"].values())
    off = max(
        float(np.abs(answer["gradients"]["params"][name] - leaf).max() / largest)
        for name, leaf in expected["gradients"]["params"].items()
    )
    print(traced.plan.explain())
    print(f"plain   {plain / 1e9:8.3f} GB by count")
    print(f"limit   {limit / 1e9:8.3f} GB")
    print(f"plan    {traced.cost.peak_bytes / 1e9:8.3f} GB by count")
    print(f"used    {used / 1e9:8.3f} GB more than at its start, in {seconds:.1f} s")
    print(f"off     {off:8.1e} of the largest entry of the gradient at {DIFFERENT} points")
    return 0 if off < 1e-4 and used <= limit else 1


if __name__ == "__main__":
    raise SystemExit(main())
