"""A program's text is Python: with these names in scope it runs as a loss function that can be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import nablad

OF_NUMPY = (
    *("abs", "arange", "arcsin", "arctan", "arctan2", "broadcast_to", "clip", "cos", "cumsum", "diag"),
    *("einsum", "exp", "expand_dims", "expm1", "eye", "flip", "linspace", "log", "log1p", "max", "maximum"),
    *("mean", "minimum", "ones", "ones_like", "outer", "prod", "reshape", "roll", "sin", "sinh", "sqrt"),
    *("square", "stack", "sum", "take", "tan", "tanh", "trace", "transpose", "var", "where"),
)
OF_NABLAD = (
    *("batched_jacobian", "d", "divergence", "erf", "gelu", "grad", "hessian", "hutchinson_trace", "hvp"),
    *("jacobian", "jvp", "laplacian", "log_softmax", "logsumexp", "norm", "ravel", "relu", "sigmoid", "silu"),
    *("softmax", "softplus", "stop_gradient", "vjp", "vmap"),
)
SCOPE: dict[str, Any] = {
    **{name: getattr(np, name) for name in OF_NUMPY},
    **{name: getattr(nablad, name) for name in OF_NABLAD},
    **{name: getattr(np.linalg, name) for name in ("det", "solve")},
    "concat": np.concatenate,
    "dot": np.vdot,
}


def as_function(text: str, names: Iterable[str]) -> Callable[..., Any]:
    """The text as the body of a function of the inputs and models that it names."""
    *rows, last = text.split("\n")
    body = "".join(f"    {row}\n" for row in rows)
    scope = dict(SCOPE)
    exec(f"def loss({', '.join(names)}):\n{body}    return {last}\n", scope)
    found: Callable[..., Any] = scope["loss"]
    return found
