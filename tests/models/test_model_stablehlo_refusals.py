"""Whatever bytes come as an artifact, the answer is one refusal that says what is wrong with them."""

import contextlib
import dataclasses
import random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import Effect
from jax.interpreters import mlir

from nablad.problems import Refusal
from nablad_models import export_model, load_exported
from nablad_models.stablehlo import examination, reading
from nablad_models.stablehlo.code import check_code
from nablad_models.stablehlo.reading import read

pytest.importorskip("flatbuffers")

B = export.symbolic_shape("b")[0]
PARAMS = {"w": jax.ShapeDtypeStruct((2, 3), "float32")}
X = jax.ShapeDtypeStruct((B, 2), "float32")


def dense(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"])


def exported(function: Any = dense, *arguments: Any, **options: Any) -> export.Exported:
    return export.export(jax.jit(function), platforms=("cpu", "cuda"), **options)(*arguments or (PARAMS, X))


def serialized(exported: export.Exported, order: int = 0) -> bytes:
    return bytes(exported.serialize(vjp_order=order))


def refusal(data: bytes) -> str:
    """What the child says, said here: none of these ends a process."""
    with pytest.raises(Refusal) as refused:
        check_code(read(data))
    assert refused.value.code == "invalid_artifact"
    assert 10 < len(refused.value.detail) < 500
    return refused.value.detail


def test_the_plain_one_passes() -> None:
    check_code(read(serialized(exported(), 2)))


# -- what may not be in it


def foreign(x: Any) -> Any:
    return jax.ffi.ffi_call("run_this", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


@jax.custom_vjp
def innocent(x: Any) -> Any:
    return jnp.sin(x)


innocent.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (foreign(ct),))
UNCHECKED = {"disabled_checks": [export.DisabledSafetyCheck.custom_call("run_this")]}


def test_a_custom_call_is_refused_by_its_name() -> None:
    assert "'run_this'" in refusal(serialized(exported(lambda p, x: foreign(x), **UNCHECKED)))


def test_a_custom_call_in_a_nested_vjp_is_found() -> None:
    hidden = exported(lambda p, x: innocent(x) * jnp.sum(p["w"]), **UNCHECKED)
    check_code(read(serialized(hidden, 0)))
    assert "'run_this'" in refusal(serialized(hidden, 1))


def test_lapack_is_refused_here_and_where_it_is_written() -> None:
    def solved(params: Any, x: Any) -> Any:
        return x @ jnp.linalg.inv(params["w"] @ params["w"].T)

    assert "lapack_sgetrf_ffi" in refusal(serialized(exported(solved)))
    with pytest.raises(Refusal, match="LAPACK"):
        export_model(solved, PARAMS, {"x": np.zeros(2, "float32")}, derivative_order=0)


def test_a_huge_array_in_few_bytes() -> None:
    huge = exported(lambda p, x: x + jnp.sum(jnp.sin(jnp.full(2**30, jnp.sum(p["w"])))))
    assert f"{2**30} entries" in refusal(serialized(huge))


# -- what this server cannot run


def test_from_a_newer_jax() -> None:
    newer = dataclasses.replace(exported(), calling_convention_version=99)
    assert "newer than this server's" in refusal(serialized(newer))
    data = serialized(exported())
    assert b"StableHLO_v1." in data
    assert "newer than this server's" in refusal(data.replace(b"StableHLO_v1.", b"StableHLO_v9."))


def test_another_platform_says_how_to_export() -> None:
    alone = export.export(jax.jit(dense), platforms=("cuda",))(PARAMS, X)
    assert 'platforms=("cpu", "cuda")' in refusal(serialized(alone))
    with pytest.raises(Refusal, match="not for cuda"):
        read(serialized(export.export(jax.jit(dense), platforms=("cpu",))(PARAMS, X)), "gpu")


def test_several_devices() -> None:
    assert "2 devices" in refusal(serialized(dataclasses.replace(exported(), nr_devices=2)))


class Loud(Effect):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loud)

    def __hash__(self) -> int:
        return 1


def test_side_effects() -> None:
    printing = serialized(dataclasses.replace(exported(), unordered_effects=(Loud(),)))
    assert "side effects that this server does not know" in refusal(printing)
    mlir.lowerable_effects.add_type(Loud)
    assert "side effects (a callback" in refusal(printing)


def test_deeper_than_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_ORDERS", 1)
    assert "more than 1 nested" in refusal(serialized(exported(), 2))


# -- what is no model

WHOLE = jax.ShapeDtypeStruct((B,), "int32")
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "no parameters first": (lambda x: x, (X,), "first argument"),
    "no inputs": (lambda p: p["w"], (PARAMS,), "no inputs"),
    "a tuple": (lambda p, x: (x, x), (PARAMS, X), "one array or a dict"),
    "an answer without batch": (lambda p, x: jnp.sum(x), (PARAMS, X), "batch axis b first"),
    "a whole answer": (lambda p, n: n, (PARAMS, WHOLE), "is int32"),
    "whole parameters": (
        lambda p, x: x,
        ({"n": jax.ShapeDtypeStruct((), "int32")}, X),
        "parameter n is int32",
    ),
    "two float types": (
        lambda p, x: x,
        ({"w": jax.ShapeDtypeStruct((), "float64")}, X),
        "float32 and float64",
    ),
    "yes or no": (lambda p, x: x * 1.0, (PARAMS, jax.ShapeDtypeStruct((B,), "bool")), "input x is bool"),
    "an unspeakable name": (lambda p, x: x["a b"], (PARAMS, {"a b": X}), "'a b' cannot be the name"),
    "a name of the language": (lambda p, x: x["params"], (PARAMS, {"params": X}), "cannot be the name"),
    "a name twice": (
        lambda p, x: x,
        ({"a.b": jax.ShapeDtypeStruct((), "float32"), "a": {"b": jax.ShapeDtypeStruct((), "float32")}}, X),
        "two arrays have the name 'a.b'",
    ),
    "an open parameter": (
        lambda p, x: x,
        ({"w": jax.ShapeDtypeStruct(export.symbolic_shape("n", scope=B.scope), "float32")}, X),
        "open size",
    ),
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_a_function_that_is_no_model(case: str) -> None:
    function, arguments, says = SIGNATURES[case]
    with jax.numpy_dtype_promotion("standard"):
        assert says in refusal(serialized(exported(function, *arguments)))


def test_vjps_that_belong_to_another_function() -> None:
    one, other = exported(), exported(lambda p, x: x * jnp.sum(p["w"]))
    swapped = dataclasses.replace(one, _get_vjp=lambda _: other.vjp())
    assert "does not have the shapes" in refusal(serialized(swapped, 1))


class Weights(NamedTuple):
    w: Any


def test_parameters_in_a_class() -> None:
    export.register_namedtuple_serialization(Weights, serialized_name="tests.Weights")
    data = serialized(exported(lambda p, x: x @ p.w, Weights(PARAMS["w"]), X))
    assert "must be a dict" in refusal(data)
    with pytest.raises(Refusal, match="not in classes of their own"):  # the child has never heard of it
        load_exported(data, max_bytes=2**20)


# -- bytes


@pytest.mark.parametrize("data", [b"", b"{}", b"\x93NUMPY", bytes(1000), b"\xff" * 1000])
def test_other_bytes(data: bytes) -> None:
    assert "torn" in refusal(data)


def test_bytes_that_end_early() -> None:
    data = serialized(exported(), 1)
    for end in range(0, len(data) - 1, 97):
        with pytest.raises(Refusal) as refused:
            read(data[:end])
        assert refused.value.code == "invalid_artifact"


def test_the_size_is_looked_at_first() -> None:
    with pytest.raises(Refusal, match="has 11 bytes, at most 10") as refused:
        load_exported(bytes(11), max_bytes=10)
    assert refused.value.code == "invalid_artifact"


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_pass_or_are_refused_whatever_they_do_to_the_child(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(serialized(exported(), 1))
    for _ in range(4):
        data[rng.randrange(len(data))] = rng.randrange(256)
    # Bits of a constant, or of a name, make another artifact rather than none; some keep the child for ever.
    with contextlib.suppress(Refusal):
        assert load_exported(bytes(data), max_bytes=len(data), seconds=20).derivative_order <= 1


def test_a_child_that_dies_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination.sys, "executable", "false")
    with pytest.raises(Refusal, match="the process that tried the artifact ended") as refused:
        load_exported(serialized(exported()), max_bytes=2**20)
    assert refused.value.code == "invalid_artifact"


def test_a_child_that_takes_long_is_a_refusal() -> None:
    with pytest.raises(Refusal, match="longer than 0 seconds") as refused:
        load_exported(serialized(exported()), max_bytes=2**20, seconds=0.01)
    assert refused.value.code == "invalid_artifact"
