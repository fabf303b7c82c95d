"""What calls about training return: numbers behind attributes, and a repr worth reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nablad.arrays import decode_tree
from nablad.messages import NonFinite, Timing
from nablad.results import Arrays, Gradient


@dataclass(frozen=True)
class SessionGradientResult:
    """The answer of a session's `gradient`; its gradients stay on the server, where the next step uses them.

    What is trained goes by the names that `frozen` takes: `"model.params"`, or an input's.
    """

    sequence: int
    value: float
    terms: dict[str, float]
    norms: dict[str, float]
    """Norm of this call's gradient by what is trained."""
    accumulated: int
    """Gradients since the last step, this one counted."""
    timing: Timing
    term_norms: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each term: the norm of its gradient by what is trained, where `term_gradients` asked for it."""
    outputs: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, Gradient] = field(default_factory=dict)
    """By what is trained, where `gradients=True` asked for them."""
    stepped: StepResult | None = None
    """Of the step, where `step=True` asked for one."""
    non_finite: NonFinite | None = None
    """Where NaN or infinity came from, when there is any in value or gradients; `print` it."""

    def __repr__(self) -> str:
        said = [f"value={self.value:.7g}", *(f"{name}={value:.4g}" for name, value in self.terms.items())]
        said += [f"|{name}|={norm:.4g}" for name, norm in self.norms.items()]
        then = f"step {self.stepped.step}" if self.stepped else f"{self.accumulated} accumulated"
        note = "" if self.non_finite is None else f"; not finite: {self.non_finite}"
        return f"<SessionGradientResult {self.sequence}: {' '.join(said)}, {then}{note}>"


@dataclass(frozen=True)
class StepResult:
    """The answer of a session's `step`."""

    sequence: int
    step: int
    """Steps done, this one counted."""
    learning_rate: float | None
    gradient_norm: float
    """Of the mean of the gradients, before clipping."""
    update_norm: float

    def __repr__(self) -> str:
        rate = "" if self.learning_rate is None else f" learning rate {self.learning_rate:.4g},"
        norms = f"gradient norm {self.gradient_norm:.4g}, update norm {self.update_norm:.4g}"
        return f"<StepResult step {self.step}:{rate} {norms}>"


@dataclass(frozen=True)
class TrainedParams:
    """What is trained, as it is now: `client.apply("net", x, params=session.params().params)`."""

    step: int
    params: dict[str, Any]
    """Arrays by leaf; where several models are trained, by model first, as `params=` takes them."""
    state: dict[str, Any]
    """Likewise."""
    trained: Arrays
    """Inputs that are trained, by name."""

    def __repr__(self) -> str:
        count = sum(array.size for array in [*_leaves(self.params), *self.trained.values()])
        also = f" and {', '.join(self.trained)}" if self.trained else ""
        return (
            f"<TrainedParams step {self.step}: {count} numbers in {len(_leaves(self.params))} arrays{also}>"
        )


def read_session_gradient(answer: dict[str, Any]) -> SessionGradientResult:
    """The answer of `POST /v1/sessions/{name}/gradient`."""
    stepped, wrong = answer.get("stepped"), answer.get("non_finite")
    return SessionGradientResult(
        sequence=int(answer["sequence"]),
        value=float(answer["value"]),
        terms=_numbers(answer["terms"]),
        norms=_numbers(answer["norms"]),
        accumulated=int(answer["accumulated"]),
        timing=Timing.model_validate(answer["timing"]),
        stepped=read_step({**stepped, "sequence": answer["sequence"]}) if stepped else None,
        term_norms={term: _numbers(norms) for term, norms in answer.get("term_norms", {}).items()},
        outputs=decode_tree(answer.get("outputs", {}), "outputs"),
        gradients=decode_tree(answer.get("gradients", {}), "gradients"),
        non_finite=NonFinite.model_validate(wrong) if wrong else None,
    )


def read_step(answer: dict[str, Any]) -> StepResult:
    """The answer of `POST /v1/sessions/{name}/step`."""
    rate = answer["learning_rate"]
    return StepResult(
        sequence=int(answer["sequence"]),
        step=int(answer["step"]),
        learning_rate=None if rate is None else float(rate),
        gradient_norm=float(answer["gradient_norm"]),
        update_norm=float(answer["update_norm"]),
    )


def read_trained(answer: dict[str, Any]) -> TrainedParams:
    """The answer of `GET .../params`, of a session or a run."""
    params, state = (decode_tree(answer[part], part) for part in ("params", "state"))
    if len(params) == 1:
        (params,), (state,) = params.values(), state.values() or ({},)
    return TrainedParams(int(answer["step"]), params, state, decode_tree(answer["trained"], "trained"))


def read_gradients(answer: dict[str, Any]) -> dict[str, Gradient]:
    """The answer of `GET /v1/sessions/{name}/gradients`."""
    found: dict[str, Gradient] = decode_tree(answer["gradients"], "gradients")
    return found


def _numbers(given: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name; JSON has words for those that are not finite."""
    return {name: float(value) for name, value in given.items()}


def _leaves(tree: Mapping[str, Any]) -> list[Any]:
    return [leaf for one in tree.values() for leaf in (_leaves(one) if isinstance(one, Mapping) else [one])]
