"""What the client returns: NumPy arrays behind attributes, and a repr worth reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nablad.messages import NonFinite, Timing

Arrays: TypeAlias = "dict[str, NDArray[Any]]"
Gradient: TypeAlias = "NDArray[Any] | dict[str, NDArray[Any]] | dict[str, dict[str, NDArray[Any]]]"


@dataclass(frozen=True)
class Plan:
    """How the server computed the inner derivatives; `print(plan)` explains it."""

    nesting: str
    dtype: str
    derivatives: list[dict[str, Any]]
    cautions: list[dict[str, Any]]
    explanation: str
    examples: dict[str, Any] | None = None
    """Where not all examples were computed at once: their `number`, how many `at_once`, and the `reason`."""
    bucket: dict[str, Any] | None = None
    """Where buckets were asked for: `number` of examples, `size` of theirs or None, and then the `reason`."""

    @classmethod
    def read(cls, answer: dict[str, Any]) -> Plan:
        """The plan in an answer; what a newer server adds is left aside."""
        return cls(**{one.name: answer[one.name] for one in fields(cls) if one.name in answer})

    def __str__(self) -> str:
        return self.explanation


@dataclass(frozen=True)
class GradientResult:
    """The answer of `gradient`.

    `gradients` is keyed as in `wrt`: an array for an input or a parameter leaf, a flat dict of arrays for
    parameters (by model first, where `"params"` covers several). `state` holds the new running state of
    models in train mode.
    """

    value: float
    terms: dict[str, float]
    gradients: dict[str, Gradient]
    outputs: dict[str, Any]
    state: dict[str, Arrays]
    plan: Plan
    timing: Timing
    term_norms: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each term: the norm of its gradient by entry of `wrt`, where `term_gradients` asked for it."""
    term_gradients: dict[str, dict[str, Gradient]] = field(default_factory=dict)
    """Of each term: its gradients, where `term_gradients="full"` asked for them."""
    non_finite: NonFinite | None = None
    """Where NaN or infinity came from, when there is any in value or gradients; `print` it."""

    def __repr__(self) -> str:
        gradients = ", ".join(f"{key}: {_shape(value)}" for key, value in self.gradients.items())
        total = sum(v for k, v in self.timing.model_dump().items() if k.endswith("_ms"))
        notes = _notes(self.plan, self.non_finite)
        return f"<GradientResult value={self.value:.7g} gradients={{{gradients}}} in {total:.1f} ms{notes}>"


@dataclass(frozen=True)
class EvaluateResult:
    """The answer of `evaluate`: `outputs` by name; `result` is the last expression's value."""

    outputs: dict[str, Any]
    plan: Plan
    timing: Timing
    non_finite: NonFinite | None = None
    """Where NaN or infinity came from, when there is any in the outputs."""

    @property
    def result(self) -> Any:
        """The value of the last expression."""
        return self.outputs["result"]

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {_shape(value)}" for name, value in self.outputs.items())
        return f"<EvaluateResult {outputs}{_notes(self.plan, self.non_finite)}>"


@dataclass(frozen=True)
class Checked:
    """One argument's gradient against finite differences in float64."""

    max_abs_difference: float
    max_abs_gradient: float
    relative: float
    compared: int
    method: str


@dataclass(frozen=True)
class CheckResult:
    """The answer of `check`, by entry of `wrt`."""

    value: float
    arguments: dict[str, Checked]
    timing: Timing = field(repr=False)

    @property
    def worst(self) -> float:
        """The largest difference relative to the largest entry of its gradient."""
        return max((checked.relative for checked in self.arguments.values()), default=0.0)


@dataclass(frozen=True)
class Params:
    """Resident parameters of a model, its state, and the version of both."""

    params: Arrays
    state: Arrays
    version: str


def _notes(plan: Plan, non_finite: NonFinite | None) -> str:
    """What nobody should miss who only looks at a result."""
    notes = [f"caution, line {one['line']}: {one['message']}" for one in plan.cautions]
    if non_finite is not None:
        notes.append(f"not finite: {non_finite}")
    return "".join(f"; {note}" for note in notes)


def _shape(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}"
    if isinstance(value, Mapping):
        return f"{len(value)} arrays"
    return repr(value)
