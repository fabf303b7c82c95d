"""`POST /v1/models/{name}/jvp` and its kin: ready-made programs, for callers without a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nablad.messages import Binding, EvaluateRequest, ShortcutRequest
from nablad.problems import Refusal


@dataclass(frozen=True)
class Shortcut:
    """One operator on one model: its program, the members it needs beside `x`, and what it answers."""

    program: Callable[[ShortcutRequest], str]
    needs: tuple[str, ...]
    doc: str
    outputs: tuple[str, ...] = ("result",)


def _jacobian(request: ShortcutRequest) -> str:
    if request.batched:
        return "batched_jacobian(model(x), x)"
    return f"jacobian(model(x), {_variable(request)})"


def _hutchinson(request: ShortcutRequest) -> str:
    probes = "v" if request.v is not None else f"rademacher(x, {request.probes}, seed=0)"
    return f"estimate, standard_error = hutchinson(model(x), x, {probes})\n(estimate, standard_error)"


def _variable(request: ShortcutRequest) -> str:
    return "model.params" if request.wrt == "params" else "x"


SHORTCUTS: Mapping[str, Shortcut] = {
    "apply": Shortcut(lambda request: "model(x)", (), "The model's output."),
    "jacobian": Shortcut(_jacobian, (), "The Jacobian of the output, or one an example with `batched`."),
    "jvp": Shortcut(lambda request: f"jvp(model(x), {_variable(request)}, v)", ("v",), "J v."),
    "vjp": Shortcut(lambda request: f"vjp(model(x), {_variable(request)}, u)", ("u",), "u' J."),
    "hvp": Shortcut(
        lambda request: f"hvp(sum(model(x)), {_variable(request)}, v)",
        ("v",),
        "H v, of the sum of the output.",
    ),
    "hutchinson": Shortcut(
        _hutchinson,
        (),
        "The trace of the Jacobian by probes `v`, or by as many as `probes` says, with its standard error.",
        ("estimate", "standard_error"),
    ),
}


def evaluation(name: str, operator: str, request: ShortcutRequest) -> EvaluateRequest:
    """The evaluate request that a shortcut stands for.

    Raises:
        Refusal: `invalid_request` where the operator lacks a vector, or gets one that it has no use for.
    """
    shortcut = SHORTCUTS[operator]
    given = {
        vector: getattr(request, vector) for vector in ("u", "v") if getattr(request, vector) is not None
    }
    takes = {*shortcut.needs, *(("v",) if operator == "hutchinson" else ())}
    for vector in ("u", "v"):
        if vector in shortcut.needs and vector not in given:
            raise Refusal("invalid_request", f"{operator} needs the vector '{vector}'")
        if vector in given and vector not in takes:
            raise Refusal("invalid_request", f"{operator} takes no vector '{vector}'")
    if request.batched and (operator != "jacobian" or request.wrt != "x"):
        raise Refusal("invalid_request", "batched belongs to jacobian with respect to x")
    if request.wrt == "params" and operator in ("apply", "hutchinson"):
        raise Refusal("invalid_request", f"{operator} is not taken with respect to parameters")
    binding = Binding(
        name=name, mode=request.mode, params=request.params, state=request.state, version=request.version
    )
    return EvaluateRequest(
        program=shortcut.program(request),
        models={"model": binding},
        inputs={"x": request.x, **given},
        outputs=list(shortcut.outputs),
        nesting=request.nesting,
        seed=request.seed,
        deadline_ms=request.deadline_ms,
    )
