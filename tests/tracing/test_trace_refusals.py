"""What the tracer refuses, and that the message says what to write instead."""

import math
import sys

import numpy as np
import pytest

import nablad.tracing.operators as nablad
from nablad.tracing import TraceError, trace

INPUTS = {
    "x": np.ones((3, 2)),
    "cube": np.ones((2, 2, 2)),
    "nu": 0.1,
    "p": {"w": np.ones((2, 2)), "b": np.ones(2)},
}


def refused(function, message):
    with pytest.raises(TraceError, match=message):
        trace(function, inputs=INPUTS, models=["model"])
    assert sys.getprofile() is None


REFUSALS = [
    # what is returned
    (lambda x: 3.0, "a constant loss"),
    (lambda x: np.ones(2), "a constant loss"),
    (lambda x: None, "returns None"),
    (lambda x: (x, x), "returns a tuple: return one scalar"),
    (lambda x: {"a": x}, "returns a dict: return one scalar"),
    (lambda model: model, "call it on its inputs"),
    # parameters
    (lambda y: y, r"'y' is neither an input nor a model; known: cube, model, nu, p, x"),
    (lambda modl: modl, "'modl' .* nearest: model"),
    (lambda *x: x, r"takes \*x: name each input"),
    # truth and numbers
    (lambda x: x if x[0, 0] > 0 else -x, r"no truth value.*np\.where"),
    (lambda x: (x > 0) and x, "no truth value"),
    (lambda x: max(x[0, 0], x[0, 1]), "no truth value"),
    (lambda x: 0 < x < 1, "no truth value"),
    (lambda x: x * math.sin(x), r"not a number yet.*NumPy functions"),
    (lambda x: float(x), "not a number yet"),
    (lambda x: int(x), "not a number yet"),
    (lambda x: [1, 2][x], "not a number yet"),
    (lambda model, x: range(model(x).shape[0]), "not a number yet"),
    (lambda x: np.asarray(x), "not a number yet"),
    (lambda x: np.array([x, x]), r"np\.stack"),
    (lambda x: np.sum([x[0], x[1]]), r"np\.stack"),
    (lambda x: np.ones(2)[x[0, 0]], "not a number yet"),
    # shapes that only the server knows
    (lambda model, x: len(model(x)), "shapes are known of inputs"),
    (lambda model, x: sum(model(x)), r"index the value \(x\[0\]"),
    (lambda model, x: model(x).ndim, "ndim needs a shape"),
    (lambda nu: len(nu), "without axes"),
    (lambda p: p.shape, "a parameter tree has no shape"),
    (lambda model: model.params.keys(), "only the server knows the leaves"),
    (lambda model: list(model.params), "index the value"),
    # NumPy
    (lambda x: np.hstack([x, x]), r"numpy\.hstack has no word .* nearest: numpy\.\w*stack"),
    (lambda x: np.log10(x), r"numpy\.log10 has no word .* nearest: .*numpy\.log"),
    (lambda x: np.linalg.qr(x), r"numpy\.linalg\.qr has no word"),
    (lambda x: np.linalg.svd(x), "compute_uv=False"),
    (lambda x: np.var(x, ddof=1), "numpy.var is given 'ddof', which the loss language does not have"),
    (lambda x: np.sum(x, dtype=np.float32), "'dtype'"),
    (lambda x: np.sum(x, where=np.ones((3, 2), bool)), "'where'"),
    (lambda x: np.sum(x, 0, None, np.ones(2)), "'out'"),
    (lambda x: np.reshape(x, -1, order="F"), "'order'"),
    (lambda x: np.concatenate([x, x], axis=None), "None cannot be written"),
    (lambda x: np.where(x > 0), "numpy.where needs its argument 'x'"),
    (lambda x: np.linalg.norm(x, 1), "Euclidean norm only, not ord=1"),
    (lambda cube: np.trace(cube), r"np\.einsum"),
    (lambda x: np.dot(x, np.ones((2, 2, 2))), "more than two axes"),
    (lambda x: np.argmax(x, axis=1, keepdims=True), "'keepdims'"),
    (lambda x: np.take(x, 1, mode="wrap"), "mode='wrap'"),
    (lambda nu: np.linspace(0, nu, 5, endpoint=False), "'endpoint'"),
    (lambda x: np.add.reduce(x), r"numpy\.add\.reduce has no word"),
    (lambda x: np.add(np.ones((3, 2)), x, out=np.ones((3, 2))), "no out="),
    (lambda x: np.take(x, 1, out=np.ones(1)), "no out="),
    (lambda x: np.ones((3, 2)).__iadd__(x), "a = a . b in place"),
    (lambda x: x & 1, "& | ~ join conditions".replace("|", r"\|")),
    (lambda x: x.astype(np.float32), "no attribute 'astype'"),
    (lambda x: x.meen(), "no attribute 'meen'; nearest: mean"),
    (lambda x: x.__setitem__(0, 1.0), r"cannot be written into.*np\.where"),
    # what can stand in a loss
    (lambda x: x * math.inf, "number inf: only finite numbers"),
    (lambda x: x + np.nan, "number nan"),
    (lambda x: x * 1j, "a complex number cannot stand in a loss"),
    (lambda x: x * np.array([1j, 2.0]), "dtype complex128"),
    (lambda x: x * None, "None .did a helper function forget its return"),
    (lambda x: x * "a", "a string cannot stand"),
    (lambda p, x: x * {"w": x}, "a parameter tree is used whole"),
    (lambda model, x: x * model, "call it on its inputs"),
    (lambda model: np.sum(model), "call it on its inputs"),
    # indices
    (lambda x: x[x > 0], r"cannot be indexed by a condition.*np\.where"),
    (lambda x: x[True], "cannot be indexed by a condition"),
    (lambda x: x[0.5], "0.5 is no index"),
    (lambda x: x["a\nb"], "cannot be written in a loss"),
    (lambda p: p["weight"], "no leaf 'weight'; known: b, w"),
    (lambda p: p[0], "no leaf 0"),
    # derivatives
    (lambda model, x: nablad.grad(model(x), x[0]), "made on the spot.*name it first"),
    (lambda model, x: nablad.grad(model(x), model), r"write model\.params"),
    (lambda model, x: nablad.grad(model(x), np.ones(2)), "not a value of type ndarray.*as an input"),
    (lambda model, x: nablad.grad(3.0, x), "first argument of grad is a traced value"),
    (lambda model, x: nablad.d(model(x)), "at least one variable"),
    # models
    (lambda model: model(), "called on its inputs"),
    (lambda model, x: model(x, mode="test"), "'eval' or 'train'"),
    (lambda model, x: model(x, params={"w": x}), "give a dict of arrays as an input"),
]


@pytest.mark.parametrize(("function", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_a_function_is_refused(function, message):
    refused(function, message)


def test_a_value_from_another_trace_is_refused():
    kept = []
    trace(lambda x: kept.append(2 * x) or x, inputs=INPUTS, models=[])
    refused(lambda x: x + kept[0], "made inside another loss function")
    with pytest.raises(TraceError, match="works inside a loss function"):
        kept[0] + 1


CALLS = {name: getattr(nablad, name) for name in nablad.__all__ if not name.endswith("Estimate")}
THREE = (
    *("jvp", "vjp", "hvp", "hutchinson", "hutchinson_trace"),
    *("jacobian_vector_product", "vector_jacobian_product"),
)
TWO = ("grad", "jacobian", "batched_jacobian", "d", "hessian", "laplacian", "divergence", "unravel_like")


@pytest.mark.parametrize("name", sorted(CALLS))
def test_operators_work_inside_a_loss_function_only(name):
    arguments = [1.0] * (3 if name in THREE else 2 if name in TWO else 1)
    with pytest.raises(
        TraceError, match=rf"nablad\.{name} works inside a loss function given to client\.gradient"
    ):
        nablad.vmap(abs)(1.0) if name == "vmap" else CALLS[name](*arguments)


def test_hasattr_of_a_traced_value_works():
    found = {}

    def loss(x):
        found.update({name: hasattr(x, name) for name in ("mean", "astype", "__array_interface__", "shape")})
        return x

    trace(loss, inputs=INPUTS, models=[])
    assert found == {"mean": True, "astype": False, "__array_interface__": False, "shape": True}


def test_a_symbol_shows_what_it_is():
    shown = []
    trace(lambda x: shown.extend([repr(x), repr(np.sin(x)), repr(x + 1)]) or x, inputs=INPUTS, models=[])
    assert shown == ["<traced value x>", "<traced value …(…)>", "<traced value … + …>"]
