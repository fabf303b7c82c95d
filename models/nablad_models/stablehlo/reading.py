"""Reading an artifact: what the bytes say about themselves, checked against what this server can run."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend import backend
from jaxlib.mlir.dialects import stablehlo

from nablad.problems import Refusal
from nablad_models.stablehlo.artifact import Artifact, Order, is_empty
from nablad_models.stablehlo.names import Names, names_in

BATCH_NAMES = ("b", "batch")
"""A first axis of this name is the batch axis; other symbolic sizes are sizes that the data decide."""

MOST_ORDERS = 8
"""The loss language nests no deeper; a torn file may point at itself."""

FLOATS = ("float16", "float32", "float64")
"""What the program's float type can be."""


def invalid(detail: str) -> Refusal:
    """The refusal of an artifact."""
    return Refusal("invalid_artifact", f"{detail}.")


def read(data: bytes, platform: str | None = None) -> Artifact:
    """The artifact in `data`, its signature checked, its code not looked at.

    `platform` is where it will run, by default JAX's own.

    Raises `Refusal("invalid_artifact")`.
    """
    try:
        exported = export.deserialize(bytearray(data))
        chain = _chain(exported)
        for one in chain:
            _check(one, platform or backend.get_backend().platform)
        batch = _batch_axis(exported)
        orders = _orders(chain, batch)
    except Refusal:
        raise
    except ImportError as problem:
        raise invalid("this server reads no artifacts: pip install flatbuffers") from problem
    except NotImplementedError as problem:
        raise invalid("the artifact has side effects that this server does not know") from problem
    except Exception as problem:
        if "unregistered type" in str(problem):
            raise invalid(
                "arguments and answers are arrays in dicts, not in classes of their own"
            ) from problem
        # The reader takes what it reads on trust: torn bytes make it stumble in any way there is.
        raise invalid("the bytes are torn, or not those that jax.export serializes") from problem
    try:
        names = names_in(exported.in_tree, exported.out_tree)
    except ValueError as problem:
        raise invalid(str(problem)) from problem
    return Artifact(hashlib.sha256(data).hexdigest(), orders, names, _float_type(exported, names), batch)


def _chain(exported: export.Exported) -> list[export.Exported]:
    chain = [exported]
    while chain[-1].has_vjp():
        if len(chain) > MOST_ORDERS:
            raise invalid(f"the artifact holds more than {MOST_ORDERS} nested derivatives")
        chain.append(chain[-1].vjp())
    return chain


def _check(exported: export.Exported, platform: str) -> None:
    """Refuse a function that this server cannot run."""
    newest = export.maximum_supported_calling_convention_version
    oldest = export.minimum_supported_calling_convention_version
    version = exported.calling_convention_version
    if not oldest <= version <= newest:
        raise invalid(
            f"the artifact was made with a JAX that is {'newer' if version > newest else 'older'} than this "
            f"server's {jax.__version__} (calling convention {version}, known are {oldest} to {newest})"
        )
    # MLIR's bytecode begins with its producer: "ML\xefR", a version, "StableHLO_v1.17.0".
    found = re.search(rb"StableHLO_v(\d+)\.(\d+)\.(\d+)", exported.mlir_module_serialized[:64])
    made = tuple(map(int, found.groups())) if found else ()
    if made > tuple(map(int, stablehlo.get_current_version().split("."))):
        raise invalid(
            f"the artifact was made with a JAX that is newer than this server's {jax.__version__} "
            f"(StableHLO {'.'.join(map(str, made))}, known up to {stablehlo.get_current_version()})"
        )
    if exported.nr_devices != 1:
        raise invalid(f"the artifact was exported for {exported.nr_devices} devices; export it on one")
    if exported.ordered_effects or exported.unordered_effects:
        raise invalid("the artifact has side effects (a callback, a print); remove them and export again")
    for needed in ("cpu", "cuda" if platform == "gpu" else platform):
        if needed not in exported.platforms:
            raise invalid(
                f"the artifact was exported for {', '.join(exported.platforms)}, not for {needed}; export it "
                'with platforms=("cpu", "cuda"): it is tried on the CPU before it runs anywhere'
            )


def _batch_axis(exported: export.Exported) -> str | None:
    """The name of the batch axis."""
    sizes = [size for aval in exported.in_avals for size in aval.shape]
    for size in sizes:
        if not isinstance(size, int) and not str(size).isidentifier():
            raise invalid(f"an open size of an input is one symbol, like b or n, not {size}")
    firsts = {str(aval.shape[0]) for aval in exported.in_avals if aval.shape}
    found = sorted(firsts.intersection(BATCH_NAMES))
    if len(found) > 1:
        raise invalid(f"inputs have two batch axes, {' and '.join(found)}; give them one")
    return found[0] if found else None


def _orders(chain: Sequence[export.Exported], batch: str | None) -> tuple[Order, ...]:
    """The chain with its batch axes; each vjp must take and give what belongs to the function before it."""

    def batched(avals: Sequence[Any]) -> tuple[bool, ...]:
        return tuple(bool(aval.shape) and str(aval.shape[0]) == batch for aval in avals if not is_empty(aval))

    for before, after in itertools.pairwise(chain):
        takes = [_spec(aval) for aval in (*before.in_avals, *map(_tangent, before.out_avals))]
        gives = [_spec(_tangent(aval)) for aval in before.in_avals]
        if [*map(_spec, after.in_avals)] != takes or [*map(_spec, after.out_avals)] != gives:
            raise invalid("a vjp in the artifact does not have the shapes of the function it belongs to")
    if batch and not all(batched(chain[0].out_avals)):
        shapes = ", ".join(f"({', '.join(map(str, aval.shape))})" for aval in chain[0].out_avals)
        raise invalid(f"every answer must have the batch axis {batch} first; they have shapes {shapes}")
    return tuple(
        Order(
            one,
            batched(one.in_avals),
            batched(one.out_avals),
            tuple(np.issubdtype(aval.dtype, np.floating) for aval in one.in_avals if not is_empty(aval)),
        )
        for one in chain
    )


def _float_type(exported: export.Exported, names: Names) -> str:
    """The one float type of the operands; refuses whole numbers among parameters and answers."""
    for what, places, avals in (
        ("parameter", names.parameters, exported.in_avals),
        ("answer", names.answers, exported.out_avals),
    ):
        for name, at in places.items():
            if str(avals[at].dtype) not in FLOATS:
                raise invalid(f"{what} {name} is {avals[at].dtype}; {what}s are {', '.join(FLOATS)}")
            if what == "parameter" and not all(isinstance(size, int) for size in avals[at].shape):
                raise invalid(
                    f"parameter {name} has an open size, {list(avals[at].shape)}; parameters have fixed ones"
                )
    for name, at in names.inputs.items():
        dtype = exported.in_avals[at].dtype
        if str(dtype) not in FLOATS and not np.issubdtype(dtype, np.integer):
            raise invalid(f"input {name} is {dtype}; inputs are {', '.join(FLOATS)} or whole numbers")
    found = {str(aval.dtype) for aval in exported.in_avals if not np.issubdtype(aval.dtype, np.integer)}
    if len(found) != 1:
        raise invalid(
            "parameters and inputs must share one float type, "
            f"they have {' and '.join(sorted(found)) or 'none'}"
        )
    return found.pop()


def _tangent(aval: Any) -> Any:
    return aval.to_tangent_aval()


def _spec(aval: Any) -> tuple[str, str]:
    return str(tuple(aval.shape)), str(aval.dtype)
