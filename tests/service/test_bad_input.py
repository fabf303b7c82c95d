"""Whatever is sent, the answer is a problem document that helps, soon, and the next caller is served."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest
from local_server import local_server

from nablad.problems import CODES

WITHIN = 5.0
"""Seconds; the promise is one, and machines that run tests may be slow. The slowest is printed."""
LONGEST_SENTENCE = 1000
INTERNALS = re.compile(r"<function|<class|Traceback|0x[0-9a-f]{6}|NoneType|Binding|list\[str\]|Tracer")

X = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
INPUTS: dict[str, Any] = {
    "x": X,
    "y": X,
    "p": [0.3, 0.7],
    "k": {"dtype": "int32", "shape": [2], "data": [1, 2]},
}
GOOD = {"loss": "sum(model(x)**2)", "models": {"model": "net"}, "inputs": {"x": X}}
JSON = {"Content-Type": "application/json"}
MSGPACK = {"Content-Type": "application/msgpack"}


class Stopwatch:
    slowest, what = 0.0, "nothing"


@pytest.fixture(scope="session")
def stopwatch(request: pytest.FixtureRequest) -> Iterator[type[Stopwatch]]:
    yield Stopwatch
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nslowest refusal: {Stopwatch.slowest:.2f} s, {Stopwatch.what}")


@pytest.fixture
def refused(http: httpx.Client, stopwatch: type[Stopwatch], request: pytest.FixtureRequest) -> Any:
    """Send, check everything that holds for every refusal, and give its document."""

    def send(
        code: str,
        body: Any = None,
        *,
        path: str = "/v1/gradient",
        method: str = "POST",
        says: tuple[str, ...] = (),
        silent: tuple[str, ...] = (),
        headers: dict[str, str] = JSON,
    ) -> dict[str, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        started = time.perf_counter()
        response = http.request(method, path, content=content, headers=headers)
        took = time.perf_counter() - started
        good = http.post("/v1/gradient", json=GOOD)
        assert good.status_code == 200, "the next good request is answered"
        if took > stopwatch.slowest:
            stopwatch.slowest, stopwatch.what = took, request.node.name[:60]
        return checked(response, took, code, says, silent)

    return send


def checked(
    response: httpx.Response, took: float, code: str, says: tuple[str, ...], silent: tuple[str, ...]
) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json", response.content[:200]
    document: dict[str, Any] = response.json()
    assert document["code"] in code.split("|"), document
    kind = CODES[document["code"]]
    assert document["type"] == "about:blank"
    assert document["title"] == kind.title
    assert response.status_code == document["status"] == kind.status
    assert response.status_code < 500 or document["code"] == "deadline"
    detail = document["detail"]
    assert 10 <= len(detail) <= LONGEST_SENTENCE, len(detail)
    assert len(detail.splitlines()) == 1
    assert not INTERNALS.search(detail), detail
    for piece in says:
        assert piece in detail, detail
    for piece in silent:
        assert piece not in detail, detail
    assert took < WITHIN
    return document


def marked(text: str) -> tuple[str, dict[str, Any] | None]:
    """A text without its marks « », and the place between them."""
    plain = text.replace("«", "").replace("»", "")
    if "«" not in text:
        return plain, None
    before, rest = text.split("«")
    piece = rest.split("»")[0].split("\n")[0]
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    shown = piece if len(piece) <= 80 else piece[:77] + "..."
    return plain, {"line": line, "column": column, "end_column": column + len(piece), "text": shown}


def asked(text: str, **more: Any) -> dict[str, Any]:
    """A request with the inputs that its text names."""
    inputs = {name: value for name, value in INPUTS.items() if re.search(rf"\b{name}\b", text)}
    return {"program": text, "models": {"model": "net"}, "inputs": inputs, **more}


# The piece of text that the refusal must point at stands between « and »; `code` may list equals with |.
PROGRAMS: dict[str, tuple[str, ...]] = {
    # name: (text, code, what the sentence must hold...)
    # -- names
    "misspelt operator": ("sum(«tahn»(x))", "unknown_name", "'tahn'", "did you mean 'tan"),
    "misspelt derivative": ("sum(«jacobain»(x, x))", "unknown_name", "did you mean 'jacobian'"),
    "misspelt name": ("residual = x - 1\nsum(«residaul»**2)", "unknown_name", "did you mean 'residual'"),
    "misspelt model": ("sum(«modle»(x))", "unknown_name", "did you mean 'model'"),
    "misspelt variable of a derivative": ("grad(sum(x), «xx»)", "unknown_name", "did you mean 'x'"),
    "missing input": ("sum(x - «target»)", "unknown_name|missing_input", "'target'", "inputs"),
    "unknown name of 60 thousand letters": (f"sum(x) + «{'q' * 60_000}»", "unknown_name"),
    "unknown among thousands of names": (
        "\n".join(f"name{i}=1" for i in range(4500)) + "\nsum(x)+«other»",
        "unknown_name",
    ),
    "unknown name near thousands of others": (
        "\n".join(f"name_{i:04d}=1" for i in range(4500)) + "\nsum(x)+«nameX_1234»",
        "unknown_name",
        "did you mean 'name_1234'",
    ),
    "used before its definition": ("b = sum(«late»)\nlate = x\nb", "unknown_name"),
    "assigned twice": ("a = x\n«a» = x\nsum(a)", "redefined_name", "'a'"),
    "assigned over an input": ("«x» = 3\nsum(x)", "redefined_name", "'x'"),
    "assigned over a model": ("«model» = 3\nsum(x)", "redefined_name", "'model'"),
    "unpacked over an input": ("a, «x» = p\na", "redefined_name", "'x'"),
    "def over an input": ("«def x(a):»\n    return a\nx(2)", "redefined_name", "'x'"),
    "hidden operator": ("sum = x\n«sum»(x)", "hidden_operator", "'sum'", "rename"),
    "operator as a value": ("sum(x) + «tanh»", "wrong_kind", "'tanh'", "call it"),
    "model as a value": ("sum(x) + «model»", "wrong_kind", "'model'", "model.params"),
    "def as a value": ("def f(a):\n    return a\n«f»", "wrong_kind", "'f'", "call it"),
    "operator with .params": ("«sum».params", "wrong_kind|unknown_name"),
    "input called": ("«x»(2)", "wrong_kind", "'x'"),
    # -- arity
    "too few arguments": ("«tanh()» + sum(x)", "arity", "tanh(x)", "lacks", "'x'"),
    "too many arguments": ("sum(«tanh(x, x)»)", "arity", "tanh(x)", "2 are given"),
    "unknown keyword": ("«sum(x, axs=0)»", "arity", "'axs'", "did you mean 'axis'"),
    "argument given twice": ("«sum(x, x=x)»", "arity", "'x'", "twice"),
    "keyword repeated": ("«sum(x, axis=0, axis=1)»", "arity|syntax", "'axis'"),
    "derivative without a variable": ("«grad(sum(x))»", "arity", "grad(y, x)", "'x'"),
    "derivative with two variables": ("«grad(sum(x), x, x)»", "arity", "3 are given"),
    "hvp without a vector": ("«hvp(sum(x), x)»", "arity", "'v'"),
    "d without a variable": ("«d(x)»", "arity", "d(u, *x)"),
    "def with too few": ("def f(a, b):\n    return a\nsum(«f(x)»)", "arity", "f(a, b)", "1 is given"),
    "def with too many": ("def f(a):\n    return a\nsum(«f(x, x)»)", "arity", "f(a)", "2 are given"),
    "def with an unknown keyword": ("def f(a):\n    return a\nsum(«f(x, b=x)»)", "arity", "'b'"),
    "def with one argument twice": (
        "def f(a, a):\n    return a\nsum(f(x, x))",
        "arity|syntax|redefined_name",
        "'a'",
    ),
    "model without input": ("sum(«model()»)", "arity", "model(x)"),
    "model with two inputs": ("sum(«model(x, x)»)", "arity", "takes 1 input"),
    "model with an unknown keyword": ("sum(«model(x, parms=x)»)", "arity", "'parms'"),
    "model in an unknown mode": ('sum(«model(x, mode="trian")»)', "wrong_kind", '"train"'),
    "vmap without a function": ("sum(vmap(«3»)(x))", "wrong_kind", "vmap(f)(x)"),
    "vmap that is not called": ("«vmap(sum)»", "wrong_kind", "vmap(f)(x)"),
    "vmap of vmap": ("sum(vmap(«vmap»)(x))", "wrong_kind"),
    "vmap of a derivative": ("sum(vmap(«grad»)(x, x))", "wrong_kind"),
    "vmap under another name": ("f = vmap\nsum(«f(x)»)", "wrong_kind|arity"),
    "vmap with too many axes": ("sum(«vmap(sum, in_axes=(0, 0))(x)»)", "arity", "in_axes"),
    "vmap with a computed axis": ("sum(vmap(sum, in_axes=«x»)(x))", "wrong_kind", "in_axes"),
    "vmap over nothing": ("«vmap(sum)(1.0)» + sum(x)", "shape_mismatch", "axis"),
    "vmap to a text": ('def f(a):\n    return "s"\n«vmap(f)(x)»', "wrong_kind"),
    "vmap to a tuple with a text": ('def f(a):\n    return (a, "s")\n«vmap(f)(x)»', "wrong_kind"),
    # -- shapes, both printed
    "sum of unequal shapes": ("sum(«x + zeros(4)»)", "shape_mismatch", "(3, 2)", "(4,)"),
    "inside a def": (
        "def f(a):\n    b = zeros(3)\n    return sum(«a + b»)\n\nf(x)",
        "shape_mismatch",
        "(3, 2)",
        "(3,)",
    ),
    "inside vmap": (
        "def f(a):\n    return sum(«a * ones(5)»)\nsum(vmap(f)(x))",
        "shape_mismatch",
        "(2,)",
        "(5,)",
    ),
    "inside a derivative inside vmap": (
        "def f(a):\n    u = sum(a**2)\n    g = grad(u, a)\n    return sum(«g - zeros(3)»)\nmean(vmap(f)(x))",
        "shape_mismatch",
        "(2,)",
        "(3,)",
    ),
    "on line three": ("a = x\nb = a * 2\nc = sum(«b @ x»)\nc", "shape_mismatch", "(3, 2)"),
    "after other statements": ("z = zeros(3); w = sum(«x + z»)  # é\nw", "shape_mismatch", "(3, 2)", "(3,)"),
    "after letters beyond ASCII": (
        'ü = "日本語 é"; größe = sum(«x + zeros(3)»)\ngröße',
        "shape_mismatch",
        "(3, 2)",
        "(3,)",
    ),
    "after an emoji": ('a = "🙂🙂"; sum(«x + zeros(3)»)', "shape_mismatch", "(3,)"),
    "after CRLF": ("a = x\r\nsum(«a + zeros(3)»)", "shape_mismatch", "(3,)"),
    "over two lines": ("sum(«x +\n    zeros(3)»)", "shape_mismatch", "(3,)"),
    "last link of a chain": ("«sum(x) + zeros(2) + zeros(3)»", "shape_mismatch", "(2,)", "(3,)"),
    "first link of a chain": ("sum(«x + zeros(3)» + x)", "shape_mismatch", "(3, 2)", "(3,)"),
    "matrix product": ("sum(«x @ x»)", "shape_mismatch", "(3, 2)", "'@'"),
    "matrix products in a chain": ("sum(«x.T @ x @ zeros((4, 4))»)", "shape_mismatch", "(2, 2)", "(4, 4)"),
    "model of the wrong width": ("sum(«model(x.T)»)", "shape_mismatch", "(2,)"),
    "stack": ("sum(«stack([x, x[0]])»)", "shape_mismatch", "(3, 2)", "(2,)"),
    "concat": ("sum(«concat([x, x[0]])»)", "shape_mismatch", "(3, 2)", "(2,)"),
    "reshape": ("sum(«reshape(x, (4, 4))»)", "shape_mismatch", "(3, 2)", "(4, 4)"),
    "solve": ("sum(«solve(x, x)»)", "shape_mismatch", "(3, 2)"),
    "einsum": ('sum(«einsum("ij,jk->ik", x, x)»)', "shape_mismatch", "(3, 2)"),
    "einsum without sense": ('sum(«einsum("ij->ik", x)»)', "shape_mismatch", "'k'"),
    "where": ("sum(«where(x > 0, zeros(3), zeros(2))»)", "shape_mismatch", "(3,)", "(2,)"),
    "where, three ways": (
        "sum(x) + sum(«where(zeros(3) > 0, 0, zeros(2))»)",
        "shape_mismatch",
        "(3,)",
        "(2,)",
    ),
    "dot": ("«dot(x, x.T)»", "shape_mismatch", "(3, 2)", "(2, 3)"),
    "vmap over unequal lengths": (
        "def f(a, b):\n    return sum(a)\nsum(«vmap(f)(x, x.T)»)",
        "shape_mismatch",
        "3",
        "2",
    ),
    "vmap over a ragged tuple": ("def f(a):\n    return a\nsum(«vmap(f)((x, x[0]))»)", "shape_mismatch"),
    "ragged list to a model": ("sum(«model([x, x[0]])»)", "shape_mismatch", "(3, 2)", "(2,)"),
    "ragged list differentiated": ("«d((x, x[0]), x)»", "shape_mismatch|wrong_kind"),
    "ragged list with a scalar differentiated": (
        "«grad([x, sum(x)], x)»",
        "shape_mismatch|not_scalar|wrong_kind",
    ),
    "ragged list summed": ("«sum([x, x[0]])»", "shape_mismatch", "(3, 2)", "(2,)"),
    "unpacked into too few": ("«a», b = x\nsum(a)", "shape_mismatch", "3 parts", "2 names"),
    "axis out of range": ("«sum(x, axis=5)»", "shape_mismatch", "axis 5", "2 axes"),
    "index out of range": ("sum(«x[5]»)", "shape_mismatch", "position 5", "(3, 2)"),
    "index out of range after 1000 assignments": (
        "a0 = x\n" + "\n".join(f"a{i} = a{i - 1}" for i in range(1, 1000)) + "\nsum(«a999[5]»)",
        "shape_mismatch",
        "position 5",
    ),
    "negative index out of range": ("sum(«x[0, -3]»)", "shape_mismatch", "position -3", "(3, 2)"),
    "too many indices": ("sum(«x[0, 0, 0]»)", "shape_mismatch", "(3, 2)"),
    "tuple index out of range": ("«x.shape[2]»", "shape_mismatch", "2"),
    "two ellipses": ("sum(«x[..., ...]»)", "shape_mismatch|wrong_kind"),
    "slice with step zero": ("sum(«x[::0]»)", "shape_mismatch|wrong_kind"),
    "mean of nothing": ("sum(x) + «mean(zeros(0))»", "shape_mismatch", "(0,)"),
    "more axes than arrays have": (
        "x0 = x\n" + "\n".join(f"x{i} = expand_dims(x{i - 1}, 0)" for i in range(1, 72)) + "\nx71",
        "shape_mismatch|limit",
    ),
    "parameters of other shapes": (
        "sum(«model(x, params=model.params + zeros((3, 1, 1)))»)",
        "shape_mismatch|invalid_params",
        "layer_1.weight",
    ),
    "tangent of another shape": ("«jvp(x, x, x.T)»", "shape_mismatch", "(3, 2)", "(2, 3)"),
    "tangent that is a tree": ("«jvp(x, x, model.params)»", "shape_mismatch|wrong_kind"),
    "probes that are a tree": ("«hutchinson_trace(x, x, model.params)»", "shape_mismatch|wrong_kind"),
    "trace of a Jacobian that is not square": (
        "«hutchinson_trace(sum(x), x, x)»",
        "shape_mismatch",
        "(3, 2)",
    ),
    "trace of a matrix that is not square": ("«trace(x)»", "shape_mismatch", "square", "(3, 2)"),
    "Laplacian of a vector field": ("sum(«laplacian(x**2, x)»)", "shape_mismatch", "(3, 2)", "one component"),
    "divergence of a scalar": ("sum(«divergence(sum(x**2, axis=1), x)»)", "shape_mismatch", "square", "(3,)"),
    "a range for each example": (
        "sum(«hutchinson_trace(x**2, x, probes=3, kind='hutch++')»)",
        "wrong_kind",
        "one for each example",
        "ravel",
    ),
    "probes to an exact divergence": ("sum(«divergence(x**2, x, x)»)", "arity", "exact", "hutchinson_trace"),
    "probes to an exact Laplacian": ("«laplacian(sum(x**2), x, x)»", "arity", "exact", "hutchinson_trace"),
    "one probe for a standard error": (
        "sum(«hutchinson(x**2, x, rademacher(x, 1, seed=0))»[0])",
        "shape_mismatch",
        "two probes",
        "(count, 3, 2)",
    ),
    "random numbers without a seed": ("sum(«rademacher(x)»)", "arity", "seed=0"),
    "several random numbers without a seed": ("sum(«normal(x, 3)»)", "arity", "seed=0"),
    "a loop over data": (
        "def f(i, c):\n    return c + i\nsum(«fori(sum(x), f, x)»)",
        "wrong_kind",
        "whole number",
        "x.shape[0]",
    ),
    "a loop with a fraction": ("def f(i, c):\n    return c + i\nsum(«fori(2.5, f, x)»)", "wrong_kind", "2.5"),
    # -- kinds and dtypes
    "text added": ('sum(x) + sum(«"a" + x»)', "wrong_kind", "'a'"),
    "None added": ("«sum(x) + None»", "wrong_kind", "None"),
    "text to tanh": ('sum(«tanh("a")»)', "wrong_kind", "'a'"),
    "text to clip": ('sum(«clip(x, "a", 1)»)', "wrong_kind", "'a'"),
    "text to linspace": ('sum(«linspace("a", 1, 3)»)', "wrong_kind", "'a'"),
    "text to norm": ('«norm(x, eps="a")»', "wrong_kind", "'a'"),
    "tuple as axis of take": ("sum(«take(x, [0, 1], axis=(0, 1))»)", "wrong_kind"),
    "None as axis of stack": ("«stack([x, x], axis=None)»", "wrong_kind", "axis"),
    "None as axis of concat": ("«concat([x, x], axis=None)»", "wrong_kind", "axis"),
    "None as axis of expand_dims": ("«expand_dims(x, None)»", "wrong_kind", "axis"),
    "two axes of stack": ("«stack([x, x], axis=(0, 1))»", "wrong_kind", "axis"),
    "float axis": ("«sum(x, axis=0.5)»", "wrong_kind", "0.5"),
    "computed axis": ("«sum(x, axis=x)»", "wrong_kind", "(3, 2)"),
    "float index": ("«x[1.5]»", "wrong_kind", "1.5"),
    "text index": ('«x["a"]»', "wrong_kind", "'a'"),
    "boolean index": ("«x[x > 0]»", "wrong_kind", "bool"),
    "tree summed": ("«sum(model.params)»", "wrong_kind", "tree"),
    "tree transposed": ("a = model.params\n«a.T»", "wrong_kind", "tree"),
    "unknown parameter": (
        'sum(«model.params["layer_1.weigth"]»)',
        "unknown_name",
        "did you mean 'layer_1.weight'",
    ),
    "parameter by number": ("sum(«model.params[0]»)", "unknown_name|wrong_kind", "layer_1.weight"),
    "params of an array": ("«x.params»", "wrong_kind", "model"),
    "params that are no tree": ("sum(«model(x, params=3)»)", "wrong_kind", "tree"),
    "text as the answer": ('«"abc"»', "wrong_kind", "text"),
    "None as the answer": ("«None»", "wrong_kind"),
    "None inside the answer": ("«(sum(x), None)»", "wrong_kind"),
    "derivative in whole numbers": ("«grad(sum(k * 1.0), k)»", "wrong_dtype", "'k'", "int32"),
    "derivative of whole numbers": ("a = sum(x > 0)\n«grad(a, x)»", "wrong_dtype", "int"),
    "positions that are floats": ("«take(x, x)»", "wrong_dtype", "float32"),
    "root of a negative number": ("sum(x) + «(-8)**0.5»", "wrong_dtype", "real"),
    "zeros of negative length": ("«zeros(-1)»", "shape_mismatch|wrong_kind|limit", "-1"),
    # -- derivatives
    "slice as a variable": ("grad(sum(x), «x[0]»)", "not_a_name", "name it first"),
    "text as a variable": ('grad(sum(x), «"x"»)', "not_a_name", "name"),
    "model as a variable": ("grad(sum(x), «model»)", "not_a_name", "model.params"),
    "gradient of a vector": ("«grad(model(x), x)»", "not_scalar", "(3, 2)", "jacobian"),
    "hessian of a vector": ("«hessian(x, x)»", "not_scalar", "(3, 2)"),
    "independent": ("a = p * 2\n«grad(sum(x), a)»", "independent", "'a'", "stop_gradient"),
    "independent of parameters": ("«grad(sum(x), model.params)»", "independent", "model.params"),
    "the slice that nothing was computed from": (
        "t = p[0]; u = sum(model(p)); «d(u, t)»",
        "independent",
        "'t'",
        "stack([t",
    ),
    "the slice, in a def": (
        "def f(q):\n    t = q[0]\n    u = sum(model(q))\n    return «d(u, t)»\nmean(vmap(f)(x))",
        "independent",
        "'t'",
        "stack([t",
    ),
    "d of unequal shapes": ("«d(sum(x), x)»", "shape_mismatch", "()", "(3, 2)", "grad(u, x)"),
    "batched_jacobian without a common axis": (
        "«batched_jacobian(sum(x), x)»",
        "shape_mismatch",
        "()",
        "(3, 2)",
    ),
    "batched_jacobian in parameters": ("«batched_jacobian(model(x), model.params)»", "wrong_kind", "vmap"),
    "batched_jacobian of a product of examples": (
        "«batched_jacobian(x @ x.T, x)»",
        "couples_examples",
        "vmap",
    ),
    "batched_jacobian of softmax over the batch": (
        "«batched_jacobian(softmax(x, axis=0), x)»",
        "couples_examples",
        "axis 0",
        "vmap",
    ),
    "d where examples mix": ("a = x[:, 0]\n«d(a * sum(a), a)»", "couples_examples", "'a'", "vmap"),
    "hutchinson_trace where examples mix": (
        "«hutchinson_trace(x - mean(x, axis=0), x, y)»",
        "couples_examples",
    ),
    "order nine by d": ("t = p[0]\n«d(sin(t), t, t, t, t, t, t, t, t, t)»", "limit", "9", "8"),
    "order five thousand by d": ("t = p[0]\n«d(sin(t)" + ", t" * 5000 + ")»", "limit", "8"),
    "order nine by assignments": (
        "t0 = sum(x)\n"
        + "\n".join(f"t{i} = sum(grad(t{i - 1}**2, x))" for i in range(1, 9))
        + "\n«grad(t8, x)»",
        "limit",
        "9",
        "8",
    ),
    "order ten by Hessians": (
        "h0 = sum(x)\n"
        + "\n".join(f"h{i} = sum(hessian(h{i - 1}**3, x))" for i in range(1, 5))
        + "\n«hessian(h4, x)»",
        "limit",
        "10",
        "8",
    ),
    # -- sizes
    "terabytes of Hessian": ("w = zeros(2000000) + sum(x)\n«hessian(sum(w**2), w)»", "limit", "16 TB"),
    "petabytes of Jacobian": (
        "w = zeros(30000000) + sum(x)\nv = w**2\n«jacobian(v, w)»",
        "limit",
        "GB",
    ),
    "terabytes of Jacobian in a def": (
        "def f(a):\n    v = a * ones(1000000)\n    return sum(«jacobian(v**2, v)»)\nsum(vmap(f)(p))",
        "limit",
        "GB",
    ),
    "terabytes of outer product": ("w = zeros(1000000) + sum(x)\nsum(«outer(w, w)»)", "limit", "GB"),
    "terabytes by broadcasting": ("w = zeros(1000000) + sum(x)\nsum(«w[:, None] * w»)", "limit", "GB"),
    "terabytes of zeros": ("sum(«zeros(10**12)»)", "limit", "2**31"),
    "terabytes of zeros by two": ("sum(«zeros((10**6, 10**6))»)", "limit", "2**31"),
    "terabytes by indexing": (
        "w = zeros((1, 1000000)) + sum(x)\nsum(«w[arange(1000000) * 0]»)",
        "limit",
        "GB",
    ),
    # -- numbers
    "a tower of nines": ("sum(x) + «9**9**9»", "number_too_large", "float"),
    "a float power": ("sum(x) + «2.0**100000»", "number_too_large", "float"),
    "ten to four hundred": ("sum(x) + «10**400»", "number_too_large", "float"),
    "a nested tower": ("9**9**«9**9**9»", "number_too_large"),
    "a tower in brackets": ("(«(9**9)**9»)**99", "number_too_large"),
    "a product": ("sum(x) + «2**62 * 2»", "number_too_large", "2**63"),
    "a product of floats": ("«1e308 * 10»", "number_too_large"),
    "one by zero": ("sum(x) + «1/0»", "number_too_large", "zero"),
    "zero by zero": ("sum(x) + «0 // 0»", "number_too_large", "zero"),
    "modulo zero": ("sum(x) + «1 % 0»", "number_too_large", "zero"),
    "zero to minus one": ("sum(x) + «0.0**-1»", "number_too_large", "zero"),
    "1e999": ("sum(x) + «1e999»", "number_too_large", "float"),
    "twenty digits": ("sum(x) + «99999999999999999999»", "number_too_large", "2**63"),
    "five thousand digits": ("sum(x) + " + "5" * 5000, "number_too_large|syntax", "digits"),
    "ten thousand hexadecimal digits": ("sum(x) + «0x" + "f" * 10_000 + "»", "number_too_large"),
    "an imaginary number": ("sum(x) + «1j»", "syntax", "complex"),
    "bytes": ('sum(x) + «b"a"»', "syntax", "bytes"),
    "an ellipsis": ("sum(x) + «...»", "syntax", "index"),
    # -- size and depth of the text
    "a million characters": ("sum(x" + " + x" * 250_000 + ")", "limit", "65536"),
    "a comment of a million characters": ("sum(x) # " + "é" * 1_000_000, "limit", "65536"),
    "ten thousand round brackets": ("(" * 10_000 + "x" + ")" * 10_000, "limit|syntax", "nested"),
    "ten thousand square brackets": ("[" * 10_000 + "x" + "]" * 10_000, "limit|syntax", "nested"),
    "ten thousand curly brackets": ("{" * 10_000 + "x" + "}" * 10_000, "limit|syntax", "nested"),
    "ten thousand open brackets": ("sum(" * 10_000 + "x", "limit|syntax", "nested"),
    "ten thousand closed brackets": ("x" + ")" * 10_000, "syntax"),
    "ten thousand calls": ("x" + "(0)" * 10_000, "limit", "nested"),
    "ten thousand indices": ("x" + "[0]" * 10_000, "limit", "nested"),
    "ten thousand signs": ("-" * 10_000 + "x", "limit", "nested"),
    "ten thousand tildes": ("~" * 10_000 + "x", "limit|syntax"),
    "ten thousand nots": ("not " * 10_000 + "x", "limit|syntax"),
    "ten thousand attributes": ("x" + ".T" * 10_000, "limit", "nested"),
    "ten thousand powers": ("x" + "**x" * 10_000, "limit", "nested"),
    "ten thousand comparisons": ("x" + " < x" * 10_000, "syntax", "two values"),
    "ten thousand ifs": ("x" + " if x else x" * 5000, "limit|syntax"),
    "five thousand lambdas": ("lambda: " * 5000 + "x", "limit|syntax"),
    "two hundred brackets": ("[" * 150 + "x" + "]" * 150, "limit", "100"),
    "two hundred attributes": ("sum(x" + ".T" * 150 + ")", "limit", "100"),
    "two hundred calls": ("sin(" * 150 + "x" + ")" * 150, "limit", "100"),
    "a block a hundred deep": (
        "\n".join(" " * i + f"def f{i}(a):" for i in range(99)) + "\n" + " " * 99 + "return 1\nsum(x)",
        "syntax|limit",
    ),
    "fifteen thousand operations": ("sum(x)\n" * 1 + " + ".join(["x"] * 15_000), "limit|syntax"),
    # -- defs
    "a def that calls itself": ("def f(a):\n    return «f(a)»\nf(x)", "limit", "'f'", "recursion"),
    "two that call each other": (
        "def f(a):\n    return g(a)\ndef g(a):\n    return «f(a)»\nf(x)",
        "limit|unknown_name",
        "'f'",
    ),
    "a def given itself": ("def f(g):\n    return «g(g)»\nf(f)", "limit", "'f'"),
    "two to the fortieth calls, nested": (
        "def f0(a):\n    return a\n"
        + "\n".join(f"def f{i}(a):\n    return f{i - 1}(f{i - 1}(a))" for i in range(1, 41))
        + "\nsum(f40(x))",
        "limit",
        "deep",
    ),
    "two to the thirtieth calls, side by side": (
        "def f0(a):\n    return a\n"
        + "\n".join(f"def f{i}(a):\n    return f{i - 1}(a) + f{i - 1}(a)" for i in range(1, 31))
        + "\nsum(f30(x))",
        "limit",
        "10000",
    ),
    "two to the fortieth calls without arguments": (
        "def f0():\n    return 1\n"
        + "\n".join(f"def f{i}():\n    return f{i - 1}() + f{i - 1}()" for i in range(1, 41))
        + "\nsum(x) + f40()",
        "limit",
    ),
    "derivatives of derivatives of sums": (
        "t = p[0]\nu0 = sin(t)\n"
        + "\n".join(f"u{i} = d(u{i - 1} * u{i - 1}, t) + d(u{i - 1} + 1, t)" for i in range(1, 9))
        + "\nu8 + "
        + " + ".join(f"d(u{i % 8}, t)" for i in range(2000)),
        "limit",
    ),
    "four thousand arguments": (
        "z = sum(x" + " + x" * 900 + ")\ndef f(" + ", ".join(f"a{i}" for i in range(4000)) + "):\n"
        "    return «d(sum(x), z)»\nf(" + ", ".join(["z"] * 4000) + ")",
        "independent",
    ),
    "a def without return": ("«def f(a):»\n    b = 3\nsum(x)", "syntax", "def f", "return"),
    "a def with a bare return": ("«def f(a):»\n    return\nsum(x)", "syntax", "def f", "return"),
    "a def with a loose expression": ("def f(a):\n    «sum(a)»\n    return a\nf(x)", "syntax", "return"),
    "default arguments": ("«def f(a=1):»\n    return a\nf(x)", "syntax", "defaults"),
    "star arguments": ("«def f(*a):»\n    return a\nf(x)", "syntax", "stars"),
    "double star arguments": ("«def f(**a):»\n    return a\nf(x)", "syntax", "stars"),
    "positional-only arguments": ("«def f(a, /):»\n    return a\nf(x)", "syntax"),
    "keyword-only arguments": ("«def f(*, a):»\n    return a\nf(a=x)", "syntax"),
    "annotations": ("«def f(a: int) -> int:»\n    return a\nf(x)", "syntax", "annotations"),
    "decorators": ("@vmap\n«def f(a):»\n    return a\nf(x)", "syntax", "decorators"),
    "starred call": ("sum(«*x»)", "syntax"),
    "double starred call": ("«sum(**x)»", "syntax", "**"),
    # -- what lies outside the language
    "__class__": ("«x.__class__»", "syntax", "__class__", ".shape"),
    "bases of a class": ("«().__class__.__bases__»", "syntax", "__bases__"),
    "a method": ("«x.sum»()", "syntax", ".sum"),
    "open": ('«open»("x")', "unknown_name", "'open'"),
    "__import__": ('«__import__»("os")', "unknown_name", "'__import__'"),
    "eval": ('«eval»("1")', "unknown_name", "'eval'"),
    "getattr": ('«getattr»(x, "shape")', "unknown_name", "'getattr'"),
    "print": ("«print»(x)", "unknown_name", "'print'"),
    "np": ("«np.sum»(x)", "syntax", ".sum"),
    "lambda": ("sum((«lambda a: a»)(x))", "syntax", "lambda", "def"),
    "list comprehension": ("sum(«[a for a in x]»)", "syntax", "comprehension", "vmap"),
    "generator": ("sum«(a for a in x)»", "syntax", "comprehension", "vmap"),
    "set comprehension": ("«{a for a in x}»", "syntax", "comprehension"),
    "dict comprehension": ("«{a: a for a in x}»", "syntax", "comprehension"),
    "import": ("«import os»\nsum(x)", "syntax", "import"),
    "import from": ("«from numpy import sum»\nsum(x)", "syntax", "import", "in scope"),
    "while": ("«while True:»\n    a = 1\nsum(x)", "syntax", "while"),
    "for": ("«for a in x:»\n    b = a\nsum(x)", "syntax", "for", "vmap"),
    "if": ("«if x:»\n    b = 1\nsum(x)", "syntax", "if", "where("),
    "conditional": ("sum(«x if x else x»)", "syntax", "if", "where("),
    "f-string": ('«f"{x}"»', "syntax", "f-string"),
    "walrus": ("sum((«a := x»))", "syntax", ":="),
    "global": ("«global x»\nsum(x)", "syntax", "global"),
    "nonlocal": ("def f(a):\n    «nonlocal b»\n    return a\nf(x)", "syntax"),
    "del": ("«del x»\nsum(x)", "syntax", "del"),
    "class": ("«class A:»\n    a = 1\nsum(x)", "syntax", "class"),
    "async def": ("«async def f(a):»\n    return a\nsum(x)", "syntax", "async"),
    "await": ("sum(«await x»)", "syntax", "await"),
    "yield": ("«yield x»", "syntax", "yield"),
    "yield from": ("«yield from x»", "syntax", "yield"),
    "try": ("«try:»\n    a = 1\nexcept:\n    b = 1\nsum(x)", "syntax", "try"),
    "with": ("«with x:»\n    a = 1\nsum(x)", "syntax", "with"),
    "assert": ("«assert x»\nsum(x)", "syntax", "assert"),
    "raise": ("«raise x»", "syntax", "raise"),
    "match": ("«match x:»\n    case 1:\n        a = 1\nsum(x)", "syntax", "match"),
    "pass": ("«pass»\nsum(x)", "syntax", "pass"),
    "dict": ("«{1: 2}»", "syntax", "dict"),
    "set": ("«{1, 2}»", "syntax", "set"),
    "and": ("sum(«x and x»)", "syntax", "logical_and"),
    "not": ("sum(«not x»)", "syntax", "logical_not"),
    "bitwise and": ("sum(«x & x»)", "syntax"),
    "caret": ("sum(«x ^ 2»)", "syntax", "**"),
    "in": ("sum(«x in x»)", "syntax", "=="),
    "is": ("sum(«x is x»)", "syntax", "=="),
    "chained comparison": ("sum(«0 < x < 1»)", "syntax", "two values"),
    "augmented assignment": ("a = x\n«a += 1»\nsum(a)", "syntax", "+=", "new name"),
    "annotated assignment": ("«a: int = 1»\nsum(x)", "syntax", "annotation"),
    "chained assignment": ("«a = b = x»\nsum(a)", "syntax", "one name"),
    "assigned to an entry": ("«x[0]» = 1\nsum(x)", "syntax", "plain names"),
    "assigned to an attribute": ("«x.T» = 1\nsum(x)", "syntax"),
    "starred assignment": ("«*a», b = x\nsum(b)", "syntax"),
    "an expression in the middle": ("«sum(x)»\nsum(x)", "syntax", "last line"),
    "a bare return": ("a = x\n«return»", "syntax", "return"),
    "a return in the middle": ("«return x»\nsum(x)", "syntax", "last line"),
    "no last expression": ("a = sum(x)", "syntax", "a"),
    "nothing": ("", "syntax", "end with the value"),
    "nothing but a comment": ("# sum(x)", "syntax", "end with the value"),
    # -- text that Python cannot read
    "an open bracket": ("a = x\nsum(x", "syntax", "never closed"),
    "an extra bracket": ("sum(x)«)»", "syntax", "unmatched"),
    "an open string": ("sum(x) + «'abc»", "syntax", "string"),
    "two equal signs": ("y2 = «= x»\nsum(x)", "syntax"),
    "after a line separator": ("# a\u2028b\nz = «= x»", "syntax"),
    "after a form feed": ("# a\x0cb\nz = «= x»", "syntax"),
    "an indented line": ("a = x\n  sum(a)", "syntax", "indent"),
    "a stray sign": ("sum(x) «$»", "syntax"),
    "a null byte": ("sum(x)\x00", "syntax", "null"),
    "null bytes only": ("\x00\x00", "syntax", "null"),
    "a lone surrogate": ("sum(x) + a\ud800b", "syntax"),
    "a byte order mark": ("\ufeffsum(x) + zz", "syntax|unknown_name"),
    "an operator of another language": ("sum(x) «&&» x", "syntax"),
}
# Only where the sentence is the point: what it must not say.
SILENT = {
    "operator with .params": ("did you mean 'sum'",),
    "def with one argument twice": ("takes 2 arguments, 2 are given",),
    "zeros of negative length": ("at most 2**31",),
    "a null byte": ("too early",),
    "null bytes only": ("too early",),
    "a bare return": ("assign this to a name",),
    "a return in the middle": ("assign this to a name",),
    "set comprehension": ("setcomp",),
    "dict comprehension": ("dictcomp",),
    "del": ("'delete'",),
    "yield from": ("yieldfrom",),
}
# CPython's own place of a syntax error differs between versions by a token; the line must be right.
LINE_ONLY = {"two equal signs", "a stray sign", "an operator of another language", "an open string"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_faulty_program_is_refused_where_it_is_at_fault(refused: Any, name: str) -> None:
    text, code, *says = PROGRAMS[name]
    plain, expected = marked(text)
    document = refused(code, asked(plain), path="/v1/evaluate", says=tuple(says), silent=SILENT.get(name, ()))
    if expected is None:
        return
    where = document.get("where")
    assert where is not None, document["detail"]
    if name in LINE_ONLY:
        assert where["line"] == expected["line"]
    else:
        assert where == expected


@pytest.mark.parametrize("name", ["two hundred brackets", "two hundred attributes", "two hundred calls"])
def test_too_deep_a_text_is_refused_at_a_place(refused: Any, name: str) -> None:
    text, code, *_ = PROGRAMS[name]
    assert "where" in refused(code, asked(text), path="/v1/evaluate")


LOSSES: dict[str, tuple[Any, ...]] = {
    "a batch": ("«model(x)»", ("(3, 2)", "sum or mean")),
    "an input": ("«x»", ("(3, 2)", "sum or mean")),
    "a named value": ("prediction = model(x)\n«prediction»", ("(3, 2)", "sum or mean")),
    "after other lines": ("a = x\n\nb = a * 2\n  \n«b - a»", ("(3, 2)", "sum or mean")),
    "a tuple": ("«(sum(x), sum(x))»", ("tuple",)),
    "a tree": ("a = sum(x)\n«model.params»", ("tree",), "params"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_no_scalar_is_refused_where_it_stands(refused: Any, name: str) -> None:
    text, says, *wrt = LOSSES[name]
    plain, expected = marked(text)
    body = {"loss": plain, "models": {"model": "net"}, "inputs": {"x": X}, "wrt": wrt or ["x"]}
    document = refused("not_scalar", body, says=says)
    assert document.get("where") == expected


def gradient(**members: Any) -> dict[str, Any]:
    """A good request of the inputs x, with some members replaced."""
    return {"loss": "sum(x**2)", "inputs": {"x": X}, "wrt": ["x"], **members}


def bound(**binding: Any) -> dict[str, Any]:
    """A good request of the model `net`, bound by more than its name."""
    return {**GOOD, "models": {"model": {"name": "net", **binding}}}


LEAVES = {
    "layer_1.weight": [[0.0, 0.0]] * 4,
    "layer_1.bias": [0.0] * 4,
    "layer_2.weight": [[0.0] * 4] * 2,
    "layer_2.bias": [0.0] * 2,
}
INTEGERS = {"dtype": "int32", "shape": [3, 2], "data": [[1, 2], [3, 4], [5, 6]]}
REQUESTS: dict[str, tuple[Any, ...]] = {
    # name: (body, code, what the sentence must hold...)
    # -- members
    "unknown member": (gradient(wtr=["x"]), "invalid_request", "'wtr'", "did you mean 'wrt'"),
    "singular member": (gradient(input={}), "invalid_request", "'input'", "did you mean 'inputs'"),
    "misspelt loss": ({"lsos": "1"}, "invalid_request", "'loss'"),
    "no loss": ({"inputs": {"x": X}}, "invalid_request", "'loss'"),
    "loss of the wrong type": (gradient(loss=3), "invalid_request", "'loss'", "string"),
    "inputs of the wrong type": (gradient(inputs=[1]), "invalid_request", "'inputs'"),
    "models of the wrong type": (gradient(models="net"), "invalid_request", "'models'"),
    "a model of the wrong type": (gradient(models={"model": 3}), "invalid_request", "models.model"),
    "wrt of the wrong type": (gradient(wrt="x"), "invalid_request", "'wrt'", "list"),
    "an entry of wrt of the wrong type": (gradient(wrt=[3]), "invalid_request", "wrt"),
    "outputs of the wrong type": (gradient(outputs="x"), "invalid_request", "'outputs'", "list"),
    "terms of the wrong type": (gradient(terms=3), "invalid_request", "terms"),
    "a weight of the wrong type": (gradient(terms={"x": "heavy"}), "invalid_request", "terms.x"),
    "seed of the wrong type": (gradient(seed="a"), "invalid_request", "'seed'", "integer"),
    "seed with a fraction": (gradient(seed=1.5), "invalid_request", "'seed'", "integer"),
    "unknown nesting": (gradient(nesting="reverse"), "invalid_request", "'nesting'", "forward_over_reverse"),
    "deadline of zero": (gradient(deadline_ms=0), "invalid_request", "'deadline_ms'"),
    "negative deadline": (gradient(deadline_ms=-5), "invalid_request", "'deadline_ms'"),
    "deadline of the wrong type": (gradient(deadline_ms="soon"), "invalid_request", "'deadline_ms'"),
    "unknown member of a binding": (
        bound(mod="train"),
        "invalid_request",
        "models.model.mod",
        "did you mean 'mode'",
    ),
    "binding without a name": (
        gradient(models={"model": {"nam": "net"}}),
        "invalid_request",
        "models.model.name",
    ),
    "unknown mode": (bound(mode="trian"), "invalid_request", "models.model.mode", "'train'"),
    # -- names
    "unknown model": (gradient(models={"model": "nett"}), "unknown_model", "'nett'", "did you mean 'net'"),
    "unknown version": (bound(version="0" * 32), "unknown_version", "'net'", "send params"),
    "unknown handle": (
        gradient(inputs={"x": {"handle": "0" * 32}}),
        "unknown_handle",
        "'00000000000000000000000000000000'",
        "PUT /v1/values",
    ),
    "handle that can be none": (gradient(inputs={"x": {"handle": "x" * 3000}}), "unknown_handle", "'xxxx"),
    "handle of the wrong type": (gradient(inputs={"x": {"handle": 3}}), "wrong_kind", "not a tree"),
    "handle with more beside it": (
        gradient(inputs={"x": {"handle": "0" * 32, "dtype": "float32"}}),
        "invalid_array",
        "x.handle",
    ),
    "unknown handles of parameters": (
        bound(params={"handle": "1" * 32}, state={"layer_1.bias": {"handle": "2" * 32}}),
        "unknown_handle",
        "1" * 32,
        "2" * 32,
    ),
    "one name for an input and a model": (gradient(models={"x": "net"}), "invalid_request", "'x'", "both"),
    "input with a space": (gradient(inputs={"x": X, "a b": 1}), "invalid_request", "'a b'", "name"),
    "input without a name": (gradient(inputs={"x": X, "": 1}), "invalid_request", "name"),
    "input named by a keyword": (
        gradient(inputs={"x": X, "lambda": 1}),
        "invalid_request",
        "'lambda'",
        "name",
    ),
    "input named by a superscript": (
        gradient(loss="sum(x²)", inputs={"x²": X}, wrt=["x²"]),
        "invalid_request",
        "'x²'",
        "name",
    ),
    "model with a dot": (gradient(models={"a.b": "net"}), "invalid_request", "'a.b'", "name"),
    "extra input": (gradient(inputs={"x": X, "extra": 1}), "extra_input", "'extra'", "leave it out"),
    "two extra inputs": (gradient(inputs={"x": X, "one": 1, "two": 2}), "extra_input", "'one'", "'two'"),
    "missing input": (gradient(loss="sum(x - target)"), "unknown_name|missing_input", "'target'"),
    # -- what to differentiate
    "unknown entry of wrt": (gradient(wrt=["z"]), "invalid_request", "'z'", "x"),
    "misspelt entry of wrt": (
        gradient(loss="sum(point)", inputs={"point": X}, wrt=["piont"]),
        "invalid_request",
        "did you mean 'point'",
    ),
    "params without a model": (gradient(wrt=["params"]), "invalid_request", "no model is bound", '"x"'),
    "params by default without a model": (
        {"loss": "sum(x)", "inputs": {"x": X}},
        "invalid_request",
        "no model",
    ),
    "unknown parameter": (
        {**GOOD, "wrt": ["model.params[layer_1.weigth]"]},
        "invalid_request",
        "did you mean 'layer_1.weight'",
    ),
    "parameters of an unbound model": ({**GOOD, "wrt": ["modle.params"]}, "invalid_request", "model.params"),
    "nothing to differentiate": (gradient(wrt=[]), "invalid_request", "/v1/evaluate"),
    "parameters that the loss does not use": (
        gradient(wrt=["params"], models={"model": "net"}),
        "independent",
        "'params'",
    ),
    "whole numbers in wrt": (gradient(inputs={"x": INTEGERS}), "wrong_dtype", "'x'", "int32", "floats"),
    "whole numbers in a tree in wrt": (
        gradient(loss='sum(x["a"])', inputs={"x": {"a": INTEGERS}}),
        "wrong_dtype",
        "x.a",
        "int32",
    ),
    "unknown term": (
        gradient(loss="data = sum(x)\ndata", terms=["dtaa"]),
        "unknown_name",
        "did you mean 'data'",
    ),
    "term that is no scalar": (
        gradient(loss="a = x * 2\nsum(a)", terms=["a"]),
        "not_scalar",
        "'a'",
        "(3, 2)",
    ),
    "unknown output": (
        gradient(loss="data = sum(x)\ndata", outputs=["dtaa"]),
        "unknown_name",
        "did you mean 'data'",
    ),
    # -- parameters
    "missing leaf": (
        bound(params={k: v for k, v in LEAVES.items() if k != "layer_1.bias"}),
        "invalid_params",
        "layer_1.bias",
        "missing",
    ),
    "extra leaf": (bound(params={**LEAVES, "layer_3.bias": [0.0]}), "invalid_params", "layer_3.bias"),
    "misshapen leaf": (
        bound(params={**LEAVES, "layer_1.weight": [[0.0] * 4] * 2}),
        "invalid_params",
        "layer_1.weight",
        "(2, 4)",
        "(4, 2)",
    ),
    "leaf of whole numbers": (
        bound(params={**LEAVES, "layer_2.bias": {"dtype": "int64", "shape": [2], "data": [0, 0]}}),
        "invalid_params",
        "layer_2.bias",
        "int64",
    ),
    "nested leaves": (
        bound(params={"layer_1": {"weight": [[0.0] * 2] * 4}}),
        "invalid_array|invalid_params",
        "layer_1",
    ),
    "params of the wrong type": (bound(params="zeros"), "invalid_request", "models.model.params"),
    "state of a model without": (bound(state={"running_mean": [0.0]}), "invalid_state", "running_mean"),
    # -- arrays
    "ragged lists": (gradient(inputs={"x": [[1, 2], [3]]}), "invalid_array", "'x'", "length"),
    "lists and numbers": (gradient(inputs={"x": [[1], 2]}), "invalid_array", "'x'"),
    "words": (gradient(inputs={"x": ["one"]}), "invalid_array", "'x'", "number"),
    "a word": (gradient(inputs={"x": "one"}), "invalid_array", "'x'", "number"),
    "null": (gradient(inputs={"x": None}), "invalid_array", "'x'"),
    "nulls": (gradient(inputs={"x": [1, None]}), "invalid_array", "'x'", "number"),
    "lists nested two hundred deep": (
        gradient(inputs={"x": json.loads("[" * 200 + "1" + "]" * 200)}),
        "invalid_array",
        "'x'",
    ),
    "a number of four hundred digits": (
        gradient(inputs={"x": [10**400]}),
        "invalid_array|malformed_body",
        "'x'",
    ),
    "unknown dtype": (
        gradient(inputs={"x": {"dtype": "float128", "shape": [1], "data": [1]}}),
        "invalid_array",
        "'x'",
        "float128",
        "float64",
    ),
    "dtype that is no text": (
        gradient(inputs={"x": {"dtype": 5, "shape": [1], "data": [1]}}),
        "invalid_array",
        "'x'",
    ),
    "complex numbers": (
        gradient(inputs={"x": {"dtype": "complex64", "shape": [1], "data": [1]}}),
        "invalid_array",
        "complex64",
    ),
    "unknown member of an array": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [1], "data": [1], "order": "C"}}),
        "invalid_array",
        "'x'",
        "order",
    ),
    "negative shape": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [-1], "data": ""}}),
        "invalid_array",
        "-1",
    ),
    "negative shape of lists": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [-1], "data": [1]}}),
        "invalid_array",
        "-1",
    ),
    "shape of fractions": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [1.5], "data": [1]}}),
        "invalid_array",
        "1.5",
    ),
    "shape beyond all memory": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [2**40, 2**40, 0], "data": ""}}),
        "invalid_array",
        "'x'",
    ),
    "shape beyond all numbers": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [2**70, 0], "data": []}}),
        "invalid_array",
        "'x'",
    ),
    "too few bytes": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [2], "data": "AAAAAA=="}}),
        "invalid_array",
        "'x'",
        "4 bytes",
        "8",
    ),
    "too few entries": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [3], "data": [1, 2]}}),
        "invalid_array",
        "2 entries",
        "3",
    ),
    "bad base64": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [1], "data": "A!A"}}),
        "invalid_array",
        "'x'",
        "base64",
    ),
    "base64 beyond ASCII": (
        gradient(inputs={"x": {"dtype": "float32", "shape": [1], "data": "é"}}),
        "invalid_array",
        "base64",
    ),
    "bytes without a shape": (
        gradient(inputs={"x": {"dtype": "float32", "data": "AAAAAA=="}}),
        "invalid_array",
        "'x'",
        "shape",
    ),
    # -- text beyond text
    "a lone surrogate as wrt": (gradient(wrt=["\ud800"]), "invalid_request|malformed_body"),
    "a lone surrogate as a term": (gradient(terms=["\ud800"]), "unknown_name|invalid_request|malformed_body"),
    "a lone surrogate as an input": (
        gradient(inputs={"x": X, "\ud800": 1}),
        "invalid_request|malformed_body",
    ),
    "a lone surrogate as a model": (gradient(models={"model": "\ud800"}), "unknown_model|malformed_body"),
    "a lone surrogate as a member": (gradient(**{"\ud800": 1}), "invalid_request|malformed_body"),
    "a lone surrogate as a leaf": (bound(params={"\ud800": 1}), "invalid_params|malformed_body"),
    "a lone surrogate as a dtype": (
        gradient(inputs={"x": {"dtype": "\ud800", "shape": [1], "data": [1]}}),
        "invalid_array|malformed_body",
    ),
    "an output of 60 thousand letters": (gradient(outputs=["q" * 60_000]), "unknown_name"),
    "an input of 60 thousand letters": (gradient(inputs={"x": X, "q" * 60_000: 1}), "extra_input"),
    "a model of 60 thousand letters": (gradient(models={"model": "q" * 60_000}), "unknown_model"),
    "five thousand extra inputs": (
        gradient(inputs={"x": X, **{f"q{i}": 1 for i in range(5000)}}),
        "extra_input",
    ),
    "ten thousand extra leaves": (bound(params={f"q{i}": 1 for i in range(10_000)}), "invalid_params"),
    # -- time and train mode
    "a deadline of a microsecond": (gradient(deadline_ms=0.001), "deadline", "0.001"),
    "batched_jacobian through batchnorm in train mode": (
        {
            "loss": "sum(batched_jacobian(model(x), x))",
            "models": {"model": {"name": "normed", "mode": "train"}},
            "inputs": {"x": X},
        },
        "couples_examples",
        "'x'",
        "vmap",
    ),
    "batchnorm in train mode without a batch": (
        {
            "loss": "sum(model(x[0]))",
            "models": {"model": {"name": "normed", "mode": "train"}},
            "inputs": {"x": X},
        },
        "shape_mismatch",
        "batch",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_faulty_request_is_refused_by_the_name_of_its_fault(refused: Any, name: str) -> None:
    body, code, *says = REQUESTS[name]
    refused(code, body, says=tuple(says))


TEXT = json.dumps(GOOD).encode()
PACKED: bytes = msgpack.packb(GOOD)
SHORT = b'{"loss": "sum(x)", "wrt": ["x"], "inputs": {"x": '
BODIES: dict[str, tuple[Any, ...]] = {
    # name: (headers, body, what the sentence must hold...); all are `malformed_body`
    "empty JSON": (JSON, b"", "empty"),
    "blank JSON": (JSON, b" \n ", "empty"),
    "JSON cut in the middle": (JSON, TEXT[: len(TEXT) // 2], "cut short"),
    "JSON without its last bracket": (JSON, TEXT[:-1], "cut short"),
    "JSON cut inside a string": (JSON, TEXT[:20], "cut short"),
    "not JSON": (JSON, b"loss=sum(x)", "line 1, column 1"),
    "single quotes": (JSON, b"{'loss': 1}", "column 2"),
    "a trailing comma": (JSON, b'{"loss": "1",}', "line 1"),
    "two values": (JSON, b"{}{}", "column 3"),
    "a list": (JSON, b"[1]", "object"),
    "a string": (JSON, b'"loss"', "object"),
    "a number": (JSON, b"3", "object"),
    "null": (JSON, b"null", "object"),
    "not UTF-8": (JSON, b'{"loss": "\xff"}', "UTF-8"),
    "null bytes": (JSON, b"\0\0\0\0"),
    "msgpack called JSON": (JSON, PACKED),
    "JSON nested too deeply": (JSON, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "lists nested too deeply": (JSON, SHORT + b"[" * 100_000 + b"]" * 100_000 + b"}}", "nested too deeply"),
    "a number of five thousand digits": (JSON, b'{"seed": ' + b"1" * 5000 + b"}", "digits"),
    "NaN": (JSON, SHORT + b"[NaN]}}", '"NaN"'),
    "Infinity": (JSON, SHORT + b"[Infinity]}}", '"Infinity"'),
    "minus Infinity": (JSON, SHORT + b"-Infinity}}", '"-Infinity"'),
    "empty msgpack": (MSGPACK, b"", "cut short"),
    "msgpack cut short": (MSGPACK, PACKED[:-3], "cut short"),
    "msgpack cut after a byte": (MSGPACK, PACKED[:1], "cut short"),
    "not msgpack": (MSGPACK, b"\xc1", "msgpack"),
    "bytes after msgpack": (MSGPACK, PACKED + b"abc", "3 bytes after"),
    "JSON called msgpack": (MSGPACK, TEXT),
    "a list in msgpack": (MSGPACK, msgpack.packb([1]), "object"),
    "nil in msgpack": (MSGPACK, b"\xc0", "object"),
    "four billion items": (MSGPACK, b"\xdd\xff\xff\xff\xff", "msgpack"),
    "four billion letters": (MSGPACK, b"\xdb\xff\xff\xff\xff", "cut short"),
    "numbers as keys": (MSGPACK, msgpack.packb({1: 2}), "key"),
    "msgpack nested too deeply": (MSGPACK, b"\x91" * 100_000 + b"\xc0", "nested too deeply"),
    "text that is not UTF-8": (MSGPACK, b"\x81\xa4loss\xa2\xff\xff"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body_is_refused_with_where_it_breaks(refused: Any, name: str) -> None:
    headers, body, *says = BODIES[name]
    refused("malformed_body", body, headers=headers, says=tuple(says))


ARRAYS = {
    "bytes that do not match the shape": {"dtype": "float32", "shape": [2], "data": b"\0" * 4},
    "bytes without dtype and shape": b"\0" * 8,
    "an extension": msgpack.ExtType(5, b"a"),
    "a date": msgpack.Timestamp(1),
    "keys that are bytes": {b"dtype": "float32", b"shape": [1], b"data": b"\0" * 4},
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_faulty_array_in_msgpack_is_refused_by_name(refused: Any, name: str) -> None:
    body = msgpack.packb({**GOOD, "inputs": {"x": ARRAYS[name]}})
    refused("invalid_array|malformed_body", body, headers=MSGPACK, says=("x",))


def layers(*given: Any, **more: Any) -> dict[str, Any]:
    return {"architecture": {"layers": list(given), **more}}


MODELS: dict[str, tuple[Any, ...]] = {
    # name of the model: (body, code, what the sentence must hold...)
    "no architecture": ({}, "invalid_request", "'architecture'"),
    "misspelt architecture": ({"architechture": {}}, "invalid_request", "'architecture'"),
    "architecture of the wrong type": ({"architecture": []}, "invalid_request", "'architecture'"),
    "empty architecture": ({"architecture": {}}, "invalid_architecture", "layers"),
    "no layers": (layers(), "invalid_architecture", "at least one layer"),
    "unknown layer": (layers({"dnse": [2, 4]}), "invalid_architecture", "layer_1", "did you mean 'dense'"),
    "unknown activation": (
        layers({"dense": [2, 4], "activation": "tahn"}),
        "invalid_architecture",
        "did you mean 'tanh'",
    ),
    "layers that do not chain": (
        layers({"dense": [2, 4]}, {"dense": [5, 2]}),
        "invalid_architecture",
        "(5,)",
        "(4,)",
    ),
    "negative size": (layers({"dense": [-2, 4]}), "invalid_architecture", "-2"),
    "too many parameters": (layers({"dense": [2**20, 2**20]}), "invalid_architecture", "parameters"),
    "a size that is no number": (
        b'{"architecture": {"layers": [{"dense": [NaN, 4]}]}}',
        "invalid_architecture|malformed_body",
    ),
    "an architecture nested too deeply": (
        b'{"architecture": ' + b'{"a": ' * 900 + b"1" + b"}" * 901,
        "invalid_architecture",
        "deeper",
    ),
    "a lone surrogate": (layers({"\ud800": [2, 4]}), "invalid_architecture|malformed_body"),
    "missing leaves": (
        {**layers({"dense": [2, 4]}), "params": {}},
        "invalid_params",
        "layer_1.weight",
        "layer_1.bias",
    ),
    "a state it does not have": (
        {**layers({"dense": [2, 4]}), "state": {"a": 1}},
        "invalid_state",
        "a is not",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_faulty_model_is_refused_and_not_hosted(refused: Any, http: httpx.Client, name: str) -> None:
    body, code, *says = MODELS[name]
    refused(code, body, path="/v1/models/faulty", method="PUT", says=tuple(says))
    assert http.get("/v1/models/faulty").status_code == 404


@pytest.mark.parametrize(
    "name", ["a%20b", "%C3%A9", "-a", ".a", "a" * 129, "%00", "a%0A", "%FF", "q" * 10_000]
)
def test_a_bad_name_of_a_model_is_refused(refused: Any, name: str) -> None:
    refused(
        "invalid_name", layers({"dense": [2, 4]}), path=f"/v1/models/{name}", method="PUT", says=("letters",)
    )


VALUES: dict[str, tuple[Any, ...]] = {
    # name: (value or body, code, what the sentence must hold...)
    "no value": ({}, "invalid_request", "'value'"),
    "a misspelt member": ({"valeu": 1}, "invalid_request", "'value'"),
    "null": ({"value": None}, "invalid_array", "null"),
    "a word": ({"value": "one"}, "invalid_array", "value"),
    "numbers without a dtype": ({"value": [1.0, 2.0]}, "invalid_array", "dtype"),
    "a leaf without a dtype": ({"value": {"w": [1.0]}}, "invalid_array", "'w'", "dtype"),
    "a tree in a tree": ({"value": {"w": {"v": {"dtype": "int8", "data": 1}}}}, "invalid_array", "w"),
    "an empty tree": ({"value": {}}, "invalid_request", "empty"),
    "an unknown dtype": (
        {"value": {"dtype": "float128", "data": [1]}},
        "invalid_array",
        "float128",
        "float64",
    ),
    "too few entries": ({"value": {"dtype": "int8", "shape": [3], "data": [1]}}, "invalid_array", "entries"),
    "a handle of its own making": ({"value": {"handle": "0" * 32}}, "invalid_array", "handle"),
    "a pin of the wrong type": (
        {"value": {"dtype": "int8", "data": 1}, "pinned": 3},
        "invalid_request",
        "pinned",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_faulty_value_is_refused_and_not_kept(refused: Any, http: httpx.Client, name: str) -> None:
    body, code, *says = VALUES[name]
    before = http.get("/v1/values").json()
    refused(code, body, path="/v1/values", method="PUT", says=tuple(says))
    assert http.get("/v1/values").json() == before


def test_a_value_of_the_wrong_kind_is_refused_by_its_place(refused: Any, http: httpx.Client) -> None:
    def put(value: Any) -> dict[str, str]:
        return {"handle": http.put("/v1/values", json={"value": value}).json()["handle"]}

    array = put({"dtype": "float32", "data": [1.0, 2.0]})
    tree = put({"a": {"dtype": "float32", "data": [1.0]}, "b": {"dtype": "float32", "data": [1.0]}})
    refused("invalid_array", bound(params=array), says=("net.params", "must be a tree"))
    refused("invalid_params", bound(params=tree), says=("do not fit",))
    leaf = bound(params={**LEAVES, "layer_2.bias": tree})
    refused("invalid_array", leaf, says=("net.params.layer_2.bias", "tree of 2 arrays"))
    whole = put({"dtype": "int32", "data": [1, 2]})
    refused("wrong_dtype", gradient(inputs={"x": whole}), says=("'x'", "int32"))
    params = {"params": array}
    refused("invalid_array", params, path="/v1/models/net/params", method="PUT", says=("must be a tree",))
    params = {"params": {"handle": "0" * 32}}
    refused("unknown_handle", params, path="/v1/models/net/params", method="PUT")


def test_parameters_under_a_version_that_is_not_theirs_are_refused(refused: Any) -> None:
    path = f"/v1/models/net/params/{'0' * 32}"
    refused("other_version", {"params": LEAVES}, path=path, method="PUT", says=("0" * 32, "have the version"))
    refused("invalid_params", {"params": {}}, path=path, method="PUT", says=("missing",))
    refused("unknown_version", b"", path=path, method="GET", says=("0" * 32,))


EXCHANGES: dict[str, tuple[Any, ...]] = {
    # name: (method, path, headers, code, what the sentence must hold...)
    "unknown path": ("GET", "/v1/gradeint", {}, "unknown_path", "/v1/gradeint", "/docs"),
    "unknown path that is not UTF-8": ("GET", "/%ff", {}, "unknown_path"),
    "wrong method": ("GET", "/v1/gradient", {}, "method_not_allowed", "GET", "/v1/gradient"),
    "another wrong method": ("POST", "/v1/models/net", {}, "method_not_allowed", "POST"),
    "unknown model": ("GET", "/v1/models/nett", {}, "unknown_model", "'nett'", "did you mean 'net'"),
    "parameters of an unknown model": ("GET", "/v1/models/nett/params", {}, "unknown_model", "'nett'"),
    "deletion of an unknown model": ("DELETE", "/v1/models/nett", {}, "unknown_model", "'nett'"),
    "Content-Type text": (
        "POST",
        "/v1/gradient",
        {"Content-Type": "text/plain"},
        "unknown_media_type",
        "text/plain",
        "application/json",
    ),
    "Content-Type of a form with files": (
        "POST",
        "/v1/gradient",
        {"Content-Type": "multipart/form-data; boundary=x"},
        "unknown_media_type",
        "application/msgpack",
    ),
    "Content-Encoding": (
        "POST",
        "/v1/gradient",
        {**JSON, "Content-Encoding": "gzip"},
        "unknown_media_type",
        "gzip",
    ),
    "Accept text": (
        "POST",
        "/v1/gradient",
        {**JSON, "Accept": "text/html"},
        "not_acceptable",
        "text/html",
        "application/json",
    ),
    "a value of an unknown handle": ("GET", "/v1/values/abc", {}, "unknown_handle", "'abc'"),
    "deletion of an unknown value": ("DELETE", "/v1/values/abc", {}, "unknown_handle", "'abc'"),
    "a tenant of three hundred letters": (
        "POST",
        "/v1/gradient",
        {**JSON, "Nablad-Tenant": "t" * 300},
        "invalid_request",
        "Nablad-Tenant",
        "300",
    ),
    "Accept nothing": ("GET", "/v1/models", {"Accept": "*/*;q=0"}, "not_acceptable", "application/msgpack"),
    "Accept an image": ("GET", "/v1/models/net/params", {"Accept": "image/*"}, "not_acceptable", "image/*"),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_faulty_exchange_is_refused(refused: Any, name: str) -> None:
    method, path, headers, code, *says = EXCHANGES[name]
    refused(
        code, GOOD if method == "POST" else b"", path=path, method=method, headers=headers, says=tuple(says)
    )


def test_a_wrong_method_is_answered_with_the_right_ones(http: httpx.Client) -> None:
    """RFC 9110, 15.5.6: a 405 carries Allow."""
    assert "POST" in http.get("/v1/gradient").headers.get("allow", "")


ANNOUNCED = b"POST /v1/gradient HTTP/1.1\r\nHost: nablad\r\nContent-Type: application/json\r\n"
CUT = {
    "fewer bytes than announced": b'Content-Length: 1000\r\n\r\n{"loss": "sum(',
    "no byte of those announced": b"Content-Length: 1000\r\n\r\n",
    "headers that break off": b"Content-Le",
    "a chunk that breaks off": b'Transfer-Encoding: chunked\r\n\r\n64\r\n{"loss"',
    "chunks that do not end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "a length that is no number": b"Content-Length: many\r\n\r\n{}",
    "no HTTP at all": b"\x16\x03\x01\x00\r\n\r\n",
}


@pytest.mark.parametrize("half_close", [False, True], ids=["closed", "half closed"])
@pytest.mark.parametrize("name", CUT)
def test_a_connection_that_breaks_off_harms_nobody_else(
    url: str, http: httpx.Client, name: str, half_close: bool
) -> None:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(ANNOUNCED + CUT[name])
        if half_close:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert http.post("/v1/gradient", json=GOOD).status_code == 200


def test_a_refusal_keeps_the_connection(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as kept:
        for text in ("sum(", "sum(zz)", "sum(x + zeros(7))", "sum(x[0, 0, 0])"):
            assert kept.post("/v1/evaluate", json=asked(text)).status_code == 422
            assert kept.post("/v1/gradient", json=GOOD).status_code == 200


def test_the_same_refusal_twice_is_the_same(http: httpx.Client) -> None:
    body = asked("a = x\nsum(a + zeros(5))")
    first, second = (http.post("/v1/evaluate", json=body) for _ in range(2))
    assert first.content == second.content


@pytest.fixture(scope="module")
def tight() -> Iterator[httpx.Client]:
    """A server with narrow limits."""
    options = (
        "--max-array-bytes",
        "1000000",
        "--max-body-bytes",
        "100000",
        "--max-models",
        "1",
        "--nodes",
        "50",
    )
    with local_server(*options) as address, httpx.Client(base_url=address, timeout=60) as connected:
        yield connected


def limited(response: httpx.Response, code: str, *says: str) -> None:
    checked(response, 0.0, code, says, ())


def test_a_body_over_the_limit_is_refused(tight: httpx.Client) -> None:
    body = json.dumps(gradient(loss="1 # " + "a" * 100_000))
    limited(tight.post("/v1/gradient", content=body, headers=JSON), "body_too_large", "100000")


def test_a_body_over_the_limit_in_chunks_is_refused(tight: httpx.Client) -> None:
    chunks = (b" " * 1000 for _ in range(200))
    limited(tight.post("/v1/gradient", content=chunks, headers=JSON), "body_too_large", "100000")


def test_a_program_over_the_limit_of_operations_is_refused(tight: httpx.Client) -> None:
    response = tight.post("/v1/evaluate", json={"program": " + ".join(["1"] * 100)})
    limited(response, "limit", "50")


def test_a_model_over_the_limit_is_refused_and_replacing_one_is_not(tight: httpx.Client) -> None:
    body = layers({"dense": [2, 4]})
    assert tight.put("/v1/models/first", json=body).status_code in (200, 201)
    limited(tight.put("/v1/models/second", json=body), "limit", "1 models", "delete one")
    assert tight.put("/v1/models/first", json=body).status_code in (200, 201)


OVER = {
    "at once": "sum(zeros(300000) + x)",
    "inside vmap": "def f(a):\n    return sum((ones(100000) + a)**2)\nsum(vmap(f)(arange(100) * x))",
    "inside vmap, a Jacobian": (
        "def f(a):\n    v = a * ones(300)\n    return sum(jacobian(v**2, v))\nsum(vmap(f)(arange(100) * x))"
    ),
    "inside vmap inside vmap": (
        "def g(a):\n    return sum((ones(10000) + a)**2)\n"
        "def f(a):\n    return sum(vmap(g)(arange(10) * a))\nsum(vmap(f)(arange(10) * x))"
    ),
    "by vmap alone": "def f(a):\n    return ones(100000) * a\nvmap(f)(arange(100) * x)[0]",
}


@pytest.mark.parametrize("name", OVER)
def test_an_array_over_the_limit_is_refused_however_it_is_made(tight: httpx.Client, name: str) -> None:
    """An array inside a vmap exists once an example."""
    response = tight.post("/v1/evaluate", json={"program": OVER[name], "inputs": {"x": 0.5}})
    limited(response, "limit", "B; the limit is")
