"""The functions of the loss language that NumPy has no name for, or not quite this one."""

from typing import Any

from nablad.tracing.expressions import call
from nablad.tracing.graph import Part
from nablad.tracing.numpy_table import NABLAD
from nablad.tracing.operands import operand, option
from nablad.tracing.recorder import current
from nablad.tracing.symbols import Symbol, apply_row, record


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), elementwise."""
    return _apply("sigmoid", x)


def relu(x: Any) -> Any:
    """max(x, 0), elementwise; its second derivative is zero."""
    return _apply("relu", x)


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), elementwise, without overflow."""
    return _apply("softplus", x)


def gelu(x: Any) -> Any:
    """The Gaussian error linear unit, elementwise."""
    return _apply("gelu", x)


def silu(x: Any) -> Any:
    """x sigmoid(x), elementwise; also called swish."""
    return _apply("silu", x)


def erf(x: Any) -> Any:
    """The error function, elementwise."""
    return _apply("erf", x)


def softmax(x: Any, axis: int | tuple[int, ...] = -1) -> Any:
    """exp(x) / sum(exp(x)) along `axis`."""
    return _apply("softmax", x, axis=axis)


def log_softmax(x: Any, axis: int | tuple[int, ...] = -1) -> Any:
    """log(softmax(x)) along `axis`, without underflow."""
    return _apply("log_softmax", x, axis=axis)


def logsumexp(x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) along `axis`, without overflow."""
    return _apply("logsumexp", x, axis=axis, keepdims=keepdims)


def norm(x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, eps: float = 0) -> Any:
    """sqrt(sum(x**2) + eps**2), also of a whole parameter tree; with `eps` differentiable at zero."""
    return _apply("norm", x, axis=axis, keepdims=keepdims, eps=eps)


def stop_gradient(y: Any) -> Any:
    """`y`, whose derivatives are zero."""
    return _apply("stop_gradient", y)


def ravel(tree: Any) -> Any:
    """The leaves of a parameter tree one after the other, in the model's order, as one vector."""
    return _apply("ravel", tree)


def unravel_like(vector: Any, tree: Any) -> Any:
    """The parameter tree shaped like `tree` whose `ravel` is `vector`."""
    return _apply("unravel_like", vector, tree)


def rademacher(like: Any, n: Any = None, seed: Any = None) -> Symbol:
    """`n` probes of random signs, each shaped like `like`, from `seed`: the same every time."""
    return _random("rademacher", like, n, seed)


def normal(like: Any, n: Any = None, seed: Any = None) -> Symbol:
    """`n` probes of standard normal numbers, each shaped like `like`, from `seed`."""
    return _random("normal", like, n, seed)


def uniform(like: Any, n: Any = None, seed: Any = None) -> Symbol:
    """`n` probes of uniform numbers in [0, 1), each shaped like `like`, from `seed`."""
    return _random("uniform", like, n, seed)


def sphere(like: Any, n: Any = None, seed: Any = None) -> Symbol:
    """`n` probes of random direction and equal length, each shaped like `like`, from `seed`."""
    return _random("sphere", like, n, seed)


def orthogonal(like: Any, n: Any = None, seed: Any = None) -> Symbol:
    """`n` probes orthogonal to one another, each shaped like `like`, from `seed`."""
    return _random("orthogonal", like, n, seed)


def _apply(name: str, *arguments: Any, **keywords: Any) -> Any:
    current(f"nablad.{name}")
    return apply_row(f"nablad.{name}", NABLAD[name], *arguments, **keywords)


def _random(name: str, like: Any, n: Any, seed: Any) -> Symbol:
    current(f"nablad.{name}")
    # A tuple is a shape here, where elsewhere it would be an array.
    arguments: list[Part] = [option(like)]
    keywords: dict[str, Part] = {}
    if n is not None:
        arguments.append(operand(n))
    if seed is not None:
        if n is not None:
            arguments.append(operand(seed))
        else:
            keywords["seed"] = operand(seed)
    return record(call(name, arguments, keywords))
