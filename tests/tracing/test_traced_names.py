"""Which names the text has, and what is assigned at all."""

import cProfile
import sys
from functools import partial, wraps

import numpy as np
import pytest
from numpy_interpreter import checked

import nablad.tracing.operators as nablad
from nablad.tracing import TraceError, trace

INPUTS = {"x": np.ones((4, 2)), "y": np.ones((4, 2))}


def lines(function, inputs=INPUTS):
    text = trace(function, inputs=inputs, models=["model"]).text
    checked(text)
    return text.split("\n")


def test_a_value_used_once_and_not_named_is_inlined_and_one_used_twice_is_assigned():
    def helper(model, x):
        inner = model(x)
        return inner * inner

    assert lines(lambda model, x: np.sum(helper(model, 2 * x))) == ["t1 = model(2 * x)", "sum(t1 * t1)"]


def test_a_rebound_local_names_its_last_value():
    def loss(x):
        h = np.sin(x)
        h = np.cos(h)
        return np.sum(h) + np.sum(h)

    assert lines(loss) == ["h = cos(sin(x))", "sum(h) + sum(h)"]


def test_a_local_that_rebinds_an_input_gets_another_name():
    def loss(x):
        x = x / 2
        return np.sum(x)

    assert lines(loss) == ["x_1 = x / 2", "sum(x_1)"]


def test_a_local_keeps_an_operators_name_unless_the_program_calls_that_operator():
    def loss(x):
        mean = np.mean(x)
        var = np.sum((x - mean) ** 2)
        return var  # noqa: RET504 # a named loss

    assert lines(loss) == ["mean_1 = mean(x)", "var = sum((x - mean_1)**2)", "var"]


def test_numbered_names_avoid_the_functions_own():
    def loss(x):
        t1 = np.sin(x)
        return np.sum((lambda a: a * a)(np.cos(t1)))

    assert lines(loss) == ["t1 = sin(x)", "t2 = cos(t1)", "sum(t2 * t2)"]


def test_two_locals_of_one_value_share_the_first_name():
    def loss(x):
        u = v = np.sin(x)
        return np.sum(u * v)

    assert lines(loss) == ["u = sin(x)", "sum(u * u)"]


def test_underscores_are_not_names():
    def loss(x):
        A = x.T @ x
        _, logdet = np.linalg.slogdet(A)
        return logdet

    assert lines(loss) == ["A = x.T @ x", "t1, logdet = slogdet(A)", "logdet"]


def test_equal_values_are_two_variables():
    def loss(model, x):
        a = 2 * x
        b = 2 * x
        return np.sum(nablad.grad(np.sum(model(a) * model(b)), a))

    assert lines(loss) == ["a = 2 * x", "b = 2 * x", "sum(grad(sum(model(a) * model(b)), a))"]


def test_model_params_are_never_assigned():
    def loss(model, x):
        p = model.params
        w = p["w"]
        return np.sum(nablad.grad(model(x).sum(), w)) + np.sum(w * w)

    assert lines(loss) == [
        'sum(grad(sum(model(x)), model.params["w"])) + sum(model.params["w"] * model.params["w"])'
    ]


def test_an_input_that_hides_a_called_operator_is_refused():
    with pytest.raises(TraceError, match=r"'sum' is the name of an input .* another name"):
        lines(lambda sum: np.sum(sum), {"sum": np.ones(2)})  # noqa: A006


def test_an_input_named_pi_leaves_the_number():
    assert lines(lambda pi: np.pi * pi, {"pi": 3.0}) == ["3.141592653589793 * pi"]


def test_parameters_with_defaults_need_no_input_and_keyword_only_ones_work():
    def loss(x, scale=3.0, *, y):
        return np.sum(scale * x * y)

    assert lines(loss) == ["sum(3.0 * x * y)"]


def test_locals_are_found_behind_wrappers():
    def base(k, x):
        z = k * x
        return np.sum(z)

    @wraps(base)
    def wrapper(*arguments, **keywords):
        return base(*arguments, **keywords)

    class Loss:
        def __call__(self, x):
            z = 2 * x
            return np.sum(z)

        def method(self, x):
            z = 2 * x
            return np.sum(z)

    expected = ["z = 2 * x", "sum(z)"]
    assert lines(partial(base, 2)) == expected
    assert lines(Loss()) == expected
    assert lines(Loss().method) == expected
    assert lines(partial(wrapper, 2)) == expected


def test_the_profile_function_is_put_back():
    def previous(*_):
        return None

    def loss(x):
        z = np.sin(x)
        raise ValueError(z)

    sys.setprofile(previous)
    try:
        with pytest.raises(ValueError, match="traced value"):
            lines(loss)
        assert sys.getprofile() is previous
    finally:
        sys.setprofile(None)


def test_names_are_found_under_cprofile():
    def loss(x):
        z = np.sin(x)
        return np.sum(z)

    with cProfile.Profile() as profile:
        found = lines(loss)
        len(found)
    assert found == ["z = sin(x)", "sum(z)"]
    assert profile.getstats()
