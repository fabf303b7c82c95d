"""What the code in an artifact may do: compute on arrays, and nothing else.

StableHLO is data, except for its doors: a custom call runs a function of the server's process by name. We
walk the parsed module, not its text, and let through what is listed here.
"""

from __future__ import annotations

import math

from jax import export
from jax.interpreters import mlir
from jaxlib.mlir import ir

from nablad_models.stablehlo.artifact import Artifact
from nablad_models.stablehlo.reading import invalid

CUSTOM_CALLS = {
    # Every artifact with a symbolic size checks it so; JAX folds the call away before anything is compiled.
    "shape_assertion",
}
"""Custom calls that are let through.

LAPACK and cuSOLVER are not: `lapack_dpotrf_ffi` and its kin trust the shapes that the module declares for
their buffers. Networks do without: dense, convolution, pooling, attention, FFT, sorting and special functions
lower to plain StableHLO; `jnp.linalg` does not.
"""

DIALECTS = ("builtin", "func", "stablehlo", "chlo")

REFUSED = {
    f"stablehlo.{name}"
    for name in (
        # they leave the device
        *("infeed", "outfeed", "send", "recv"),
        # they speak to other devices
        *("all_gather", "all_reduce", "all_to_all", "collective_broadcast", "collective_permute"),
        *("cross-replica-sum", "reduce_scatter", "partition_id", "replica_id"),
    )
}

LARGEST = 2**28
"""No array of fixed shape has more entries: a constant of one repeated number is small only in the file."""


def check_code(artifact: Artifact) -> None:
    """Walk the model and each vjp in it.

    Raises `Refusal("invalid_artifact")` naming the first operation that is not let through.
    """
    for order in artifact.orders:
        _check_module(order.exported)


def _check_module(exported: export.Exported) -> None:
    with mlir.make_ir_context():
        module = exported.mlir_module(serialized=False)
        wrong: list[str] = []

        def look(operation: ir.Operation) -> ir.WalkResult:
            problem = _problem(operation)
            if problem is None:
                return ir.WalkResult.ADVANCE
            wrong.append(problem)
            return ir.WalkResult.INTERRUPT

        module.operation.walk(look)
    if wrong:
        raise invalid(wrong[0])


def _problem(operation: ir.Operation) -> str | None:
    name = operation.name
    if name == "stablehlo.custom_call":
        target = ir.StringAttr(operation.attributes["call_target_name"]).value
        if target not in CUSTOM_CALLS:
            return (
                f"the artifact calls '{target}', code outside of it that a server does not run; "
                "write the model without it (jnp.linalg needs LAPACK), or host it as Python"
            )
    elif name.split(".")[0] not in DIALECTS or name in REFUSED:
        return f"the artifact has the operation '{name}', which a server does not run"
    for result in operation.results:
        if isinstance(result.type, ir.RankedTensorType):
            entries = math.prod(size for size in result.type.shape if size >= 0)
            if entries > LARGEST:
                return f"the artifact makes an array of {entries} entries, at most {LARGEST} are let through"
    return None
