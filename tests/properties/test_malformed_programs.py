"""Whatever becomes of a good text, it still has a meaning or is refused, and the refusal points into it."""

from __future__ import annotations

import re
from typing import Any

from ask import ENGINE, MODELS
from asked import BOUND, data, examples, parameters
from drawing import INPUTS, programs
from hypothesis import given, note
from hypothesis import strategies as st
from mutations import malformed

from nablad.errors import ProgramError
from nablad.messages import GradientRequest
from nablad.problems import CODES, Refusal
from nablad_service.requests.validation import gradient_query

WRITTEN = (
    """yhat = field(x)
J = jacobian(yhat, x)
data = sum((yhat - y)**2)
smooth = norm(0.01 * J)**2
data + smooth""",
    """def residual(t, x):
    u = net(stack([t, x]))[0]
    return d(u, t) + u * d(u, x) - c * d(u, x, x)

pde = mean(vmap(residual)(x[:, 0], x[:, 1])**2)
pde + 20 * mean((net(x, mode="eval")[:, 0] - t)**2)""",
    """def step(i, carry):
    z, l = carry
    f = field(z)
    return (z + 0.1 * f, l - divergence(f, z))
z1, change = fori(3, step, (w, 0.0))
sum(z1**2) - change""",
    """p = field.params - c * grad(mean(field(x)**2), field.params)
mean((field(x, params=p) - y)**2)""",
    """def body(k, e):
    return (k + e, k * e)
last, every = scan(body, 0.0, t)
dot(every, s) + hessian(last, t)[0, 1]""",
    """probes = rademacher(x, 4, seed=1)
v, error = hutchinson(field(x), x, probes)
mean(v) + sum(field.params["layer_1.bias"])""",
    """logdet = slogdet(A @ A.T + eye(2))[1]
where(c > 0, logdet, -logdet) + einsum("ij,j->", x, w)""",
)
# Refusals of a text as a whole have no place in it.
OF_THE_WHOLE = re.compile(
    r"the program must end with|the loss does not depend on|the program is nested too deeply|null bytes"
)


def refusal_of(text: str) -> Refusal | None:
    """None where the text has a meaning."""
    parameters()
    inputs: dict[str, Any] = {
        name: array for name, array in data(0).items() if re.search(rf"\b{name}\b", text)
    }
    wrt = list(inputs) or ["params"]
    try:
        request = GradientRequest(loss=text, inputs=inputs, models=BOUND, wrt=wrt)
        ENGINE.trace(gradient_query(request, MODELS.get))
    except Refusal as refusal:
        return refusal
    return None


def check(text: str, refusal: Refusal) -> None:
    assert refusal.code in CODES
    assert refusal.code != "internal"
    assert refusal.detail
    assert "\n" not in refusal.detail
    where = refusal.where
    if where is None:
        of_text = CODES[refusal.code].exception is ProgramError
        assert not of_text or OF_THE_WHOLE.search(refusal.detail), refusal
        return
    rows = re.split("\r\n|\r|\n", text)
    assert 1 <= where.line <= len(rows), refusal
    row = rows[where.line - 1]
    assert 1 <= where.column <= where.end_column <= len(row) + 1 or where.column == len(row) + 1, refusal
    piece = row[where.column - 1 : where.end_column - 1]
    assert where.text == piece or (where.text.endswith("...") and piece.startswith(where.text[:-3])), refusal


@examples(150)
@given(malformed(st.sampled_from(WRITTEN) | programs(depth=3).map(lambda program: program.text)))
def test_a_mutated_program_is_understood_or_refused_at_its_place(text: str) -> None:
    note(text)
    refusal = refusal_of(text)
    if refusal is not None:
        note(str(refusal))
        check(text, refusal)


def test_all_written_programs_are_good() -> None:
    assert [refusal_of(text) for text in WRITTEN] == [None] * len(WRITTEN)
    assert set(INPUTS) >= {"x", "y", "t", "s", "w", "A", "c"}
