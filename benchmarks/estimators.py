"""Estimators of a trace: their error and time against the number of products with the matrix.

    python benchmarks/estimators.py              # every matrix: tables, docs/benchmarks/estimators.md, a plot
    python benchmarks/estimators.py --quick      # small networks, few repetitions, nothing written
    python benchmarks/estimators.py --json FILE  # rows as JSON too

The matrices are Jacobians and Hessians of networks, and one whose spectrum decays fast. Plain estimators take
the mean of v'Av over probes that the service's own samplers draw. Hutch++, which is the kind "hutch++" of
`hutchinson`, and XTrace, which no operator of the service uses, are written here for a matrix given by its
products; they spend products on the range of A first.

References: R. A. Meyer, C. Musco, C. Musco and D. P. Woodruff, Hutch++: Optimal Stochastic Trace Estimation,
SOSA 2021; E. N. Epperly, J. A. Tropp and R. J. Webber, XTrace: Making the Most of Every Sample in Stochastic
Trace Estimation, SIAM J. Matrix Anal. Appl. 45 (2024).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nablad_service.engine.engine import Engine
from nablad_service.engine.operators.random import PROBES
from nablad_service.hosting import ModelStore

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "estimators.md"
PLOT = PAGE.with_suffix(".png")
FRACTIONS = (0.05, 0.1, 0.2, 1 / 3, 0.6)
"""Products, as parts of the order of the matrix."""
FEWER = 10
"""By what the repetitions for large matrices are divided."""
RANGE_FIRST = ("hutch++", "xtrace")
METHODS = (*PROBES, *RANGE_FIRST)

Array: TypeAlias = np.ndarray[Any, Any]
Product: TypeAlias = Callable[[Any], Any]
"""From columns (n, k) to A times each of them."""


# -- the matrices


@dataclass(frozen=True)
class Matrix:
    """A, as what a caller has: its products; and its entries, for the exact trace and many repetitions."""

    name: str
    product: Product
    entries: Array

    @classmethod
    def of(cls, name: str, n: int, product: Product) -> Matrix:
        """From the product alone."""
        compiled = jax.jit(product)
        return cls(name, compiled, np.asarray(compiled(jnp.eye(n, dtype="float32")), "float64"))


def network(sizes: Sequence[int]) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Parameters of a dense tanh network at its start, and the function."""
    models = ModelStore(max_models=1)
    hosted = models.put("net", {"preset": "mlp", "sizes": list(sizes), "activation": "tanh"}, None, None, 0)
    params = {name: jnp.asarray(leaf, "float32") for name, leaf in hosted.params.items()}
    return params, lambda p, x: hosted.model.apply(p, {}, x, train=False)[0]


def trained(loss: Callable[[Any], Any], p: Any, steps: int) -> Any:
    """The parameters after so many steps of Adam."""

    @jax.jit
    def step(state: Any, count: Any) -> tuple[Any, None]:
        p, m, s = state
        g = jax.grad(loss)(p)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        s = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, s, g)

        def moved(p: Any, m: Any, s: Any) -> Any:
            return p - 1e-2 * m / (1 - 0.9**count) / (jnp.sqrt(s / (1 - 0.999**count)) + 1e-8)

        return (jax.tree.map(moved, p, m, s), m, s), None

    none = jax.tree.map(jnp.zeros_like, p)
    counts = jnp.arange(1, steps + 1, dtype="float32")
    return jax.lax.scan(step, (p, none, none), counts)[0][0]


def jacobians(d: int, width: int, steps: int) -> list[Matrix]:
    """Of a dense flow at one point: as it starts, and after it has learned to map noise to a curve."""
    p, f = network((d, width, width, d))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((256, d)), "float32")
    y = jnp.sin(2 * x) + 0.5 * jnp.roll(x, 1, axis=1)

    def matrix(name: str, p: Any) -> Matrix:
        _, push = jax.linearize(lambda x: f(p, x), x[0])
        return Matrix.of(name, d, jax.vmap(push, in_axes=1, out_axes=1))

    after = trained(lambda p: jnp.mean((f(p, x) - y) ** 2), p, steps)
    return [matrix(f"Jacobian of a flow, d = {d}, start", p), matrix(f"the same, {steps} steps", after)]


def hessians(width: int, steps: int) -> list[Matrix]:
    """Of a least squares loss in all parameters."""
    p, f = network((2, width, width, 1))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, (256, 2)), "float32")
    y = jnp.sin(3 * x[:, :1]) * jnp.cos(2 * x[:, 1:])

    def loss(p: Any) -> Any:
        return jnp.mean((f(p, x) - y) ** 2)

    def matrix(name: str, p: Any) -> Matrix:
        flat, unravel = ravel_pytree(p)
        _, push = jax.linearize(jax.grad(lambda flat: loss(unravel(flat))), flat)
        return Matrix.of(f"Hessian of a loss, {flat.size} parameters, {name}", flat.size, in_columns(push))

    return [matrix("start", p), matrix(f"{steps} steps", trained(loss, p, steps))]


def in_columns(push: Product) -> Product:
    """A product with one vector, for the columns of a matrix."""
    return jax.vmap(push, in_axes=1, out_axes=1)


def decaying(n: int) -> Matrix:
    """Eigenvalues 1/k², eigenvectors at random."""
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    A = jnp.asarray((Q / np.arange(1, n + 1) ** 2) @ Q.T, "float32")
    return Matrix.of(f"eigenvalues 1/k², n = {n}", n, lambda V: A @ V)


def matrices(*, quick: bool) -> list[Matrix]:
    if quick:
        return [*jacobians(12, 16, 20), *hessians(4, 20), decaying(30)]
    return [*jacobians(64, 128, 300), *hessians(28, 500), decaying(400)]


# -- the estimators


def plain(product: Product, V: Array) -> float:
    """The mean of v'Av over the columns v."""
    return float(np.sum(V * product(V)) / V.shape[1])


def hutch_plus_plus(product: Product, V: Array) -> float:
    """The trace on the range of A V₁, exactly, and beside it by V₂: a third of the products for each step."""
    k = V.shape[1] // 2
    Q, _ = np.linalg.qr(product(V[:, :k]))
    G = V[:, k:] - Q @ (Q.T @ V[:, k:])
    return float(np.sum(Q * product(Q)) + np.sum(G * product(G)) / G.shape[1])


def xtrace(product: Product, V: Array) -> float:
    """Hutch++ with each probe in turn left out of the range and used beside it, averaged.

    Without probe i the range of A V is Q(I - sᵢsᵢ')Q', where sᵢ is column i of R⁻ᵀ at unit length.
    """
    n, k = V.shape
    Y = product(V)
    Q, R = np.linalg.qr(Y)
    Z = product(Q)
    H = Q.T @ Z
    S = np.linalg.inv(R).T
    S = S / np.linalg.norm(S, axis=0)
    W = Q.T @ V
    X = W - S * np.sum(S * W, axis=0)
    beside = V - Q @ X
    quadratic = np.sum(V * Y, 0) - np.sum((Z.T @ V) * X, 0) - np.sum(X * R, 0) + np.sum(X * (H @ X), 0)
    # Their directions are uniform in n - k + 1 dimensions; their lengths are divided out.
    scale = (n - k + 1) / np.sum(beside**2, axis=0)
    return float(np.mean(np.trace(H) - np.sum(S * (H @ S), axis=0) + scale * quadratic))


ESTIMATORS: Mapping[str, Callable[[Product, Array], float]] = {
    **dict.fromkeys(PROBES, plain),
    "hutch++": hutch_plus_plus,
    "xtrace": xtrace,
}
COLUMNS: Mapping[str, tuple[str, float]] = {
    **{kind: (kind, 1.0) for kind in PROBES},
    "hutch++": ("rademacher", 2 / 3),
    "xtrace": ("normal", 1 / 2),
}
"""What kind of random columns a method needs, and how many a product."""


def columns(method: str, n: int, products: int, repetitions: int, seed: int) -> Array:
    """Random columns (repetitions, n, columns), as the service draws them."""
    kind, share = COLUMNS[method]
    count = round(share * products)
    drawn = PROBES[kind](jax.random.key(seed), (count, repetitions, n), jnp.float32)
    return np.moveaxis(np.asarray(drawn, "float64"), 0, 2)


# -- measuring


@dataclass(frozen=True)
class Row:
    """One estimator on one matrix."""

    matrix: str
    n: int
    trace: float
    method: str
    products: tuple[int, ...]
    rms: tuple[float, ...]
    """Relative to the trace, by number of products."""
    ms: tuple[float, ...]


def counts(n: int) -> tuple[int, ...]:
    """Numbers of products: what thirds and halves can be taken of, fewer than the exact trace takes."""
    found = {max(6, 6 * round(fraction * n / 6)) for fraction in FRACTIONS}
    return tuple(sorted(count for count in found if count < n))


def errors(matrix: Matrix, method: str, repetitions: int) -> tuple[float, ...]:
    """The relative root mean square error, by number of products."""
    A, exact = matrix.entries, float(np.trace(matrix.entries))
    found = []
    for products in counts(len(A)):
        V = columns(method, len(A), products, repetitions, products)
        off = [ESTIMATORS[method](lambda V: A @ V, one) - exact for one in V]
        found.append(float(np.sqrt(np.mean(np.square(off))) / abs(exact)))
    return tuple(found)


def times(matrix: Matrix, rounds: int) -> dict[str, tuple[float, ...]]:
    """Median milliseconds by method and number of products, all in turn: products by the network in float32.

    Drawing the random columns is left out, QR decompositions are NumPy's.
    """

    def product(V: Any) -> Any:
        return np.asarray(matrix.product(jnp.asarray(V)))

    n = len(matrix.entries)
    cases = {
        (method, products): columns(method, n, products, 1, 0)[0].astype("float32")
        for method in METHODS
        for products in counts(n)
    }
    taken: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for (method, products), V in cases.items():
            started = time.perf_counter()
            ESTIMATORS[method](product, V)
            if turn:  # the first run compiles
                taken[method, products].append((time.perf_counter() - started) * 1e3)
    return {
        method: tuple(statistics.median(taken[method, products]) for products in counts(n))
        for method in METHODS
    }


def measure(matrix: Matrix, repetitions: int, rounds: int) -> list[Row]:
    """A row a method."""
    clock = times(matrix, rounds)
    n, exact = len(matrix.entries), float(np.trace(matrix.entries))
    return [
        Row(matrix.name, n, exact, method, counts(n), errors(matrix, method, repetitions), clock[method])
        for method in METHODS
    ]


# -- what is written


def by_matrix(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.matrix, []).append(row)
    return found


def table(rows: Sequence[Row]) -> str:
    """A Markdown table for each matrix: error in percent of the trace, and milliseconds."""
    parts = []
    for name, group in by_matrix(rows).items():
        heads = " | ".join(str(count) for count in group[0].products)
        lines = [
            f"### {name}",
            "",
            f"n = {group[0].n}, trace {group[0].trace:.4g}; RMS error in % of the trace, and ms.",
            "",
            f"| products | {heads} |",
            "| --- |" + " --- |" * len(group[0].products),
        ]
        for row in group:
            cells = [f"{100 * rms:.3g}, {ms:.2f}" for rms, ms in zip(row.rms, row.ms, strict=True)]
            lines.append(f"| {row.method} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def crossing(group: Sequence[Row], method: str) -> int | None:
    """From how many products on a method has a smaller error than both random signs and orthogonal probes."""
    by_name = {row.method: row for row in group}
    plain_best = np.minimum(by_name["rademacher"].rms, by_name["orthogonal"].rms)
    better = np.asarray(by_name[method].rms) < plain_best
    for place, products in enumerate(group[0].products):
        if better[place:].all():
            return products
    return None


def summary(rows: Sequence[Row]) -> str:
    """From where on the methods that find the range first win, and what orthogonality gains."""
    lines = []
    for name, group in by_matrix(rows).items():
        found = []
        for method in RANGE_FIRST:
            at = crossing(group, method)
            part = "nowhere" if at is None else f"from {at} products on ({at / group[0].n:.2f} n)"
            found.append(f"{method} {part}")
        by_name = {row.method: row.rms for row in group}
        third = int(np.searchsorted(group[0].products, group[0].n / 3 - 3))
        gain = by_name["orthogonal"][third] / by_name["rademacher"][third]
        lines.append(
            f"- {name}: smaller errors than plain probes by {' and '.join(found)}; orthogonal probes have "
            f"{gain:.2f} of the error of random signs at {group[0].products[third]} products."
        )
    return "\n".join(lines)


def machine() -> str:
    """What the times depend on."""
    device = jax.devices()[0].device_kind
    return f"{os.cpu_count()} cores, {device}, {platform.machine()}, JAX {jax.__version__}"


def noise(repetitions: int) -> float:
    """Percent of itself to which a root mean square of so many is known."""
    return float(100 / np.sqrt(2 * repetitions))


def page(rows: Sequence[Row], repetitions: int) -> str:
    """The page of the documentation."""
    return f"""# Estimators of a trace

`python benchmarks/estimators.py` on: {machine()}; `--quick` takes small networks, `--json FILE` writes the
rows as JSON.

How far is an estimate of tr A off after so many products with A? A is the Jacobian of a flow, or the Hessian
of a loss in its parameters, at the start and after training, or a matrix with a spectrum that decays fast.
The plain estimators, which `hutchinson` and `hutchinson_trace` draw by `kind`, take the mean of v'Av over
probes. Hutch++ and XTrace find the range of A first, take the trace on it exactly, and estimate only the
rest. Hutch++ is the kind `"hutch++"` of both operators; XTrace is in this benchmark alone.

Errors are root mean squares over {repetitions} repetitions in float64, {repetitions // FEWER} for the
Hessians: each is known to about {noise(repetitions):.0f} %, {noise(repetitions // FEWER):.0f} % for these.
Times are medians of one estimate in float32, its products by the
network, all methods in turn; the probes are drawn beforehand. With n products the exact trace can be had.

## In short

{summary(rows)}

![RMS error against the number of products, by matrix]({PLOT.name})

## All numbers

{table(rows)}
"""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Errors against products, a panel a matrix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = by_matrix(rows)
    figure, panels = pyplot.subplots(1, len(groups), figsize=(3.2 * len(groups), 3.2))
    for panel, (name, group) in zip(np.atleast_1d(panels), groups.items(), strict=True):
        for row in group:
            style = "--" if row.method in RANGE_FIRST else "-"
            panel.loglog(row.products, row.rms, style, marker="o", ms=3, lw=1.2, label=row.method)
        panel.axvline(group[0].n / 3, color="#bbbbbb", lw=1)
        panel.set_title(name.replace(", ", "\n", 1), fontsize=8)
        panel.set_xlabel("products (grey: n/3)", fontsize=8)
        panel.tick_params(labelsize=7, which="both")
    np.atleast_1d(panels)[0].set_ylabel("RMS error / trace", fontsize=8)
    np.atleast_1d(panels)[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE", type=Path)
    options = parser.parse_args()
    Engine.start()  # 64-bit types, as in the service
    repetitions, rounds = (20, 2) if options.quick else (160, 5)
    rows = []
    for matrix in matrices(quick=options.quick):
        large = not options.quick and len(matrix.entries) > 500
        rows += measure(matrix, repetitions // FEWER if large else repetitions, rounds)
    print(f"{table(rows)}\n\n{summary(rows)}\n\n{machine()}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if not options.quick:
        PAGE.write_text(page(rows, repetitions))
        draw(rows, PLOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
