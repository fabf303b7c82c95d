"""When JAX has no forward or no reverse mode for a piece of code.

Code with a rule of its own for reverse mode (`custom_vjp`, an exported artifact, a checkpointed loop) cannot
be pushed forward; a `while` loop cannot be pulled back. JAX says so while it traces, by exceptions that only
their text tells apart.
"""

from __future__ import annotations

from jax.extend.core import ClosedJaxpr

from nablad_service.engine.jaxprs import equations

PUSHED = "custom_lin"
"""What JAX leaves in a computation where it pushed a tangent through a `custom_vjp`: it has no meaning."""


class NoForwardMode(Exception):
    """A derivative asked for forward mode where there is none: trace again with reverse mode alone."""


def no_forward_mode(error: BaseException) -> bool:
    """Whether JAX (or we) refused a jvp."""
    text = str(error)
    return (
        isinstance(error, NoForwardMode)
        or (isinstance(error, TypeError) and "forward-mode autodiff (jvp)" in text)
        # What linearize says of the same.
        or (isinstance(error, NotImplementedError) and f"'{PUSHED}'" in text)
    )


def no_reverse_mode(error: BaseException) -> bool:
    """Whether JAX refused a vjp."""
    return isinstance(error, ValueError) and "Reverse-mode differentiation does not work" in str(error)


def need_no_pushed_rule(closed: ClosedJaxpr) -> None:
    """Raise `NoForwardMode` where a traced computation holds a tangent pushed through a `custom_vjp`."""
    if any(equation.primitive.name == PUSHED for equation in equations(closed)):
        raise NoForwardMode("can't apply forward-mode autodiff (jvp) to a function with a reverse rule")
