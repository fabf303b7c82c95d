"""Functions mapped over examples."""

import numpy as np
import pytest
from numpy_interpreter import checked, run

import nablad.tracing.operators as nablad
from nablad.tracing import TraceError, trace

INPUTS = {"x": np.arange(8.0).reshape(4, 2), "y": np.arange(4.0) + 1}


def lines(function, inputs=INPUTS):
    text = trace(function, inputs=inputs, models=["model"]).text
    checked(text)
    return text.split("\n")


def test_a_tuple_result_is_unpacked_and_axes_are_printed():
    def loss(x, y):
        def both(a, b):
            return a * b, a + b

        p, q = nablad.vmap(both, in_axes=(0, None))(x, y)
        return np.sum(p) + np.sum(q)

    assert lines(loss) == [
        "def both(a, b):",
        "    return (a * b, a + b)",
        "p, q = vmap(both, in_axes=(0, None))(x, y)",
        "sum(p) + sum(q)",
    ]


def test_the_function_is_traced_once():
    calls = []

    def each(a):
        calls.append(a)
        return np.sin(a)

    lines(lambda x: np.sum(nablad.vmap(each)(x)))
    assert len(calls) == 1


def test_values_around_the_function_are_assigned_before_the_def():
    def loss(x, y):
        def outer(a):
            k = np.sin(a)

            def inner(b):
                return b * (k + c.sum())

            return nablad.vmap(inner)(a)

        c = (lambda v: v)(np.cos(y))
        z = np.exp(y)
        helper = [z * 2]
        return np.sum(nablad.vmap(outer)(x) * nablad.vmap(lambda s: s * helper[0].sum())(y)[:, None])

    assert lines(loss) == [
        "c = cos(y)",
        "z = exp(y)",
        "t1 = z * 2",
        "def outer(a):",
        "    k = sin(a)",
        "    def inner(b):",
        "        return b * (k + sum(c))",
        "    return vmap(inner)(a)",
        "def f(s):",
        "    return s * sum(t1)",
        "sum(vmap(outer)(x) * vmap(f)(y)[:, None])",
    ]


def test_arguments_and_locals_shadow_only_what_the_body_does_not_read():
    def loss(x, y):
        u = np.sin(y)
        outer_x = [x]

        def each(x, y, u_in):
            u = x.sum() * y  # noqa: F841 # a local named like an outer value
            return outer_x[0].sum() * x.sum() + u_in

        return np.sum(nablad.vmap(each)(x, y, u))

    assert lines(loss) == [
        "u = sin(y)",
        "def each(x_1, y, u_in):",
        "    u = sum(x_1) * y",
        "    return sum(x) * sum(x_1) + u_in",
        "sum(vmap(each)(x, y, u))",
    ]


def test_an_argument_is_renamed_where_it_would_hide_an_operator():
    assert lines(lambda y: nablad.vmap(lambda sin: np.sin(sin))(y)) == [
        "def f(sin_1):",
        "    return sin(sin_1)",
        "vmap(f)(y)",
    ]


def test_the_same_def_is_printed_once():
    def loss(x, y):
        twice = nablad.vmap(lambda a: a * 2)
        return np.sum(twice(x)) + np.sum(twice(y))

    assert lines(loss) == ["def f(a):", "    return a * 2", "sum(vmap(f)(x)) + sum(vmap(f)(y))"]


def test_different_defs_of_one_name_are_told_apart():
    def loss(y):
        first, second = (nablad.vmap(lambda a, k=k: a * k) for k in (2, 3))
        return first(y) + second(y)

    assert lines(loss) == [
        *("def f(a):", "    return a * 2"),
        *("def f_1(a):", "    return a * 3"),
        "vmap(f)(y) + vmap(f_1)(y)",
    ]


def square(a):
    return a * a


def test_a_value_keeps_its_name_before_a_def_does():
    def loss(y):
        square = nablad.vmap(globals()["square"])(y)
        return np.sum(square)

    assert lines(loss) == [
        *("def square_1(a):", "    return a * a"),
        *("square = vmap(square_1)(y)", "sum(square)"),
    ]


def test_a_def_that_nothing_needs_is_left_out():
    def loss(x, y):
        [nablad.vmap(lambda a: a * 2)(x)]
        return np.sum(y)

    assert lines(loss) == ["sum(y)"]


def test_shapes_inside_are_those_of_one_example():
    def loss(x):
        def each(point):
            a, b = point
            return a * b + len(point)

        return nablad.vmap(each)(x)

    assert lines(loss) == [
        "def each(point):",
        "    a = point[0]",
        "    b = point[1]",
        "    return a * b + 2",
        "vmap(each)(x)",
    ]


def test_outer_values_constants_and_numbers_may_be_returned():
    def loss(y):
        z = np.sin(y)
        a, b, c = nablad.vmap(lambda a: (z, 1.5, np.array([1.0, 2.0])))(y)
        return np.sum(a) + np.sum(b) + np.sum(c)

    assert lines(loss)[:3] == ["z = sin(y)", "def f(a):", "    return (z, 1.5, constant_1)"]


def test_nested_maps_with_axes_mean_what_they_do_in_numpy():
    def loss(x, y):
        def inner(a, b):
            return a * b - a

        def outer(row, b):
            return nablad.vmap(inner, in_axes=(0, None))(row, b)

        return nablad.vmap(outer)(x, y) + nablad.vmap(nablad.vmap(inner), in_axes=(0, None))(x, x[0])

    text = "\n".join(lines(loss))
    x, y = INPUTS["x"], INPUTS["y"]
    expected = x * y[:, None] - x + (x * x[0] - x)
    np.testing.assert_array_equal(run(text, **INPUTS), expected)


def test_numpy_functions_and_operators_can_be_mapped():
    assert lines(lambda y: nablad.vmap(np.sin)(y))[1:] == ["    return sin(x)", "vmap(sin_1)(y)"]
    assert lines(lambda y: nablad.vmap(nablad.sigmoid)(y)) == [
        *("def sigmoid_1(x):", "    return sigmoid(x)"),
        "vmap(sigmoid_1)(y)",
    ]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda y: nablad.vmap(3)(y), "vmap takes a function"),
        (lambda y: nablad.vmap(np.sin, in_axes="ab")(y), "in_axes='ab'"),
        (lambda y: nablad.vmap(np.sin, in_axes=None)(y), "maps no argument"),
        (lambda y: nablad.vmap(lambda a: a, in_axes=(0, 0))(y), "2 entries for 1 arguments"),
        (lambda y: nablad.vmap(lambda a, b: a)(y), r"'f' is given 1 arguments|missing a required argument"),
        (lambda y: nablad.vmap(lambda a: None)(y), "must return one value"),
        (lambda y: nablad.vmap(lambda a: {"a": a})(y), "must return one value"),
        (lambda y: nablad.vmap(lambda a: ())(y), "returns nothing"),
        (lambda y: nablad.vmap(lambda a: a, in_axes=2)(y), r"axis 2 of an argument of shape \(4,\)"),
        (lambda y: nablad.vmap(lambda a: a)(), "at least one argument"),
    ],
)
def test_a_map_that_cannot_be_written_is_refused(function, message):
    with pytest.raises(TraceError, match=message):
        lines(function)


def test_a_value_that_leaks_out_is_refused():
    def loss(y):
        leaked = []
        nablad.vmap(lambda a: leaked.append(2 * a) or a)(y)
        return np.sum(leaked[0])

    with pytest.raises(TraceError, match="inside the vmapped function 'f' is used outside"):
        lines(loss)
