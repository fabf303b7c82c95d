"""Answers as the client returns them, from their decoded structures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nablad.arrays import decode_tree
from nablad.messages import NonFinite, Timing
from nablad.results import Checked, CheckResult, EvaluateResult, GradientResult, Params, Plan


def read_params(answer: dict[str, Any]) -> Params:
    """The answer of `GET /v1/models/{name}/params`."""
    return Params(
        decode_tree(answer["params"], "params"), decode_tree(answer["state"], "state"), answer["version"]
    )


def _non_finite(answer: dict[str, Any]) -> NonFinite | None:
    return NonFinite.model_validate(answer["non_finite"]) if "non_finite" in answer else None


def read_gradient(answer: dict[str, Any]) -> GradientResult:
    """The answer of `POST /v1/gradient`."""
    return GradientResult(
        value=_number(answer["value"]),
        terms={name: _number(value) for name, value in answer["terms"].items()},
        gradients=decode_tree(answer["gradients"], "gradients"),
        outputs=decode_tree(answer["outputs"], "outputs"),
        state=decode_tree(answer["state"], "state"),
        plan=Plan.read(answer["plan"]),
        timing=Timing.model_validate(answer["timing"]),
        term_norms={
            term: {key: _number(norm) for key, norm in norms.items()}
            for term, norms in answer.get("term_norms", {}).items()
        },
        term_gradients=decode_tree(answer.get("term_gradients", {}), "term_gradients"),
        non_finite=_non_finite(answer),
    )


def read_evaluate(answer: dict[str, Any]) -> EvaluateResult:
    """The answer of `POST /v1/evaluate`, and of the shortcuts."""
    return EvaluateResult(
        outputs=decode_tree(answer["outputs"], "outputs"),
        plan=Plan.read(answer["plan"]),
        timing=Timing.model_validate(answer["timing"]),
        non_finite=_non_finite(answer),
    )


def read_check(answer: dict[str, Any]) -> CheckResult:
    """The answer of `POST /v1/check`."""
    return CheckResult(
        value=_number(answer["value"]),
        arguments={key: _checked(one) for key, one in answer["arguments"].items()},
        timing=Timing.model_validate(answer["timing"]),
    )


def _checked(one: Mapping[str, Any]) -> Checked:
    return Checked(
        max_abs_difference=_number(one["max_abs_difference"]),
        max_abs_gradient=_number(one["max_abs_gradient"]),
        relative=_number(one["relative"]),
        compared=int(one["compared"]),
        method=str(one["method"]),
    )


def _number(value: Any) -> float:
    return float(decode_tree(value, "value")[()])
