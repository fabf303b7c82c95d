"""Terms one by one: values, weights as data, norms and whole gradients, through the service."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nablad

PROGRAM = """
u = model(x)
fit = mean((u - y)**2)
penalty = mean((norm(grad(sum(u), x), axis=1) - 1)**2)
size = norm(model.params)**2
fit + penalty + size
"""
TERMS = ["fit", "penalty", "size"]
RNG = np.random.default_rng(0)
INPUTS = {"x": RNG.standard_normal((6, 2)), "y": RNG.standard_normal((6, 1))}


@pytest.fixture(scope="module", autouse=True)
def hosted(client: nablad.Client) -> None:
    client.create_model("terms", {"layers": [{"dense": [2, 5], "activation": "tanh"}, {"dense": [5, 1]}]})


def ask(client: nablad.Client, program: str = PROGRAM, **asked: Any) -> nablad.GradientResult:
    given: dict[str, Any] = {"inputs": INPUTS, "model": "terms", "wrt": ["params", "x"], **asked}
    return client.gradient(program, **given)


def flat(gradient: Any) -> Any:
    if isinstance(gradient, dict):
        return np.concatenate([leaf.reshape(-1) for leaf in gradient.values()])
    return gradient.reshape(-1)


def test_each_term_has_the_gradient_that_it_has_as_a_loss(any_client: nablad.Client) -> None:
    together = ask(any_client, terms=TERMS, term_gradients="full")
    for term in TERMS:
        wrt = ["params"] if term == "size" else ["params", "x"]
        alone = ask(any_client, PROGRAM.replace("fit + penalty + size", term), wrt=wrt)
        for key in wrt:
            found, expected = flat(together.term_gradients[term][key]), flat(alone.gradients[key])
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
            norm = together.term_norms[term][key]
            assert norm == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert together.term_norms["size"]["x"] == 0


def test_the_gradient_of_the_loss_is_the_sum_of_those_of_its_terms(client: nablad.Client) -> None:
    found = ask(client, terms=TERMS, term_gradients="full")
    for key in ("params", "x"):
        total = sum(flat(found.term_gradients[term][key]) for term in TERMS)
        np.testing.assert_allclose(flat(found.gradients[key]), total, rtol=1e-12, atol=1e-14)


def test_norms_alone_leave_the_arrays_at_home(client: nablad.Client) -> None:
    found = ask(client, terms=TERMS, term_gradients="norms")
    assert set(found.term_norms) == set(TERMS)
    assert found.term_gradients == {}
    assert ask(client, terms=TERMS).term_norms == {}


def test_a_new_weight_compiles_nothing(client: nablad.Client) -> None:
    weights = {"fit": 1.0, "penalty": 0.5, "size": 0.0}
    first = ask(client, terms=weights, term_gradients="norms")
    second = ask(client, terms={**weights, "penalty": 2.0}, term_gradients="norms")
    assert not second.timing.compiled
    assert second.value - first.value == pytest.approx(1.5 * first.terms["penalty"])
    assert second.term_norms == first.term_norms


def test_gradients_of_no_terms_are_refused(client: nablad.Client) -> None:
    with pytest.raises(nablad.RequestError, match="needs terms"):
        ask(client, term_gradients="norms")
    with pytest.raises(nablad.RequestError, match="term_gradients"):
        ask(client, terms=TERMS, term_gradients="some")
