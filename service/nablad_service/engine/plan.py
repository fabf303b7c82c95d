"""A plan: what will run for a signature, and why. It knows names, shapes and dtypes, never a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nablad_service.engine.cautions import of_slopes
from nablad_service.engine.evaluation import Evaluation
from nablad_service.language import graph
from nablad_service.language.places import place
from nablad_service.query import Signature


@dataclass(frozen=True)
class PlannedDerivative:
    """One derivative of the program and the strategy chosen for it."""

    node: int
    """Its node in the program."""
    operator: str
    wrt: str
    line: int
    column: int
    text: str
    order: int
    """Derivatives inside one another up to here, this one included."""
    variable_size: int
    value_size: int
    strategy: str
    alternatives: tuple[str, ...]
    leader: int
    """The derivative whose strategy it follows: itself, or the first of those that it is computed with."""
    reason: str


@dataclass(frozen=True)
class Caution:
    """Something that has a meaning and still looks like a mistake."""

    line: int
    column: int
    text: str
    message: str


@dataclass(frozen=True)
class PlannedExamples:
    """The examples of a program that are not computed all at once."""

    number: int
    at_once: int
    reason: str


@dataclass(frozen=True)
class PlannedBucket:
    """A program that was asked for in buckets of examples."""

    number: int
    size: int | None
    """Of the bucket whose program computes them; None where they are computed by a program of their own."""
    reason: str = ""
    """Why they are."""


@dataclass(frozen=True)
class Plan:
    """The strategies chosen for a signature: the key of the compiled program, and its explanation."""

    signature: Signature
    derivatives: tuple[PlannedDerivative, ...]
    cautions: tuple[Caution, ...]
    examples: PlannedExamples | None = None
    """None where all go at once."""
    bucket: PlannedBucket | None = None
    """None where the caller declares none."""

    def alternatives(self) -> dict[int, tuple[str, ...]]:
        """Other strategies by derivative, where the planner is free to choose."""
        signature = self.signature
        pinned = {operator for operator, _ in signature.strategies}
        free = signature.nesting == "auto"
        return {
            one.node: one.alternatives
            for one in self.derivatives
            if free and one.operator not in pinned and one.leader == one.node
        }

    def explain(self) -> str:
        """One line a derivative: where, what, how and why."""
        lines = [
            f"line {one.line}: {one.text}  [{one.strategy}] {one.reason}" for one in self.derivatives
        ] or ["no inner derivatives"]
        lines += [f"caution, line {one.line}: {one.text}  {one.message}" for one in self.cautions]
        if self.examples is not None:
            few = f"{self.examples.at_once} of {self.examples.number} examples at a time"
            lines.append(f"{few}  [chunks] {self.examples.reason}")
        if self.bucket is not None:
            size, reason = self.bucket.size, self.bucket.reason
            lines.append(
                f"{self.bucket.number} examples  [bucket of {size}]" if size else f"no bucket: {reason}"
            )
        if self.signature.kind == "gradient":
            variables = ", ".join(variable.key for variable in self.signature.wrt)
            lines.append(f"outer gradient with respect to {variables}  [reverse] the loss is a scalar")
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """The plan as it travels in an answer."""
        return {
            "nesting": self.signature.nesting,
            "dtype": self.signature.dtype,
            "derivatives": [
                {
                    "operator": one.operator,
                    "wrt": one.wrt,
                    "line": one.line,
                    "column": one.column,
                    "text": one.text,
                    "order": one.order,
                    "strategy": one.strategy,
                    "alternatives": list(one.alternatives),
                    "reason": one.reason,
                }
                for one in self.derivatives
            ],
            "cautions": [
                {"line": one.line, "column": one.column, "text": one.text, "message": one.message}
                for one in self.cautions
            ],
            "examples": asdict(self.examples) if self.examples else None,
            "bucket": asdict(self.bucket) if self.bucket else None,
            "explanation": self.explain(),
        }


def plan_of(evaluation: Evaluation, signature: Signature) -> Plan:
    """The plan that a traced evaluation followed."""
    program = evaluation.meaning.program
    planned = []
    # What a tower stands for is not computed by itself; a member of a group is, whatever else rests on it.
    within = {inner for learned in evaluation.learned.values() for inner in learned.inner}
    within -= {member for group in evaluation.grouped.values() for member in group}
    for index, learned in sorted(evaluation.learned.items()):
        if index in within:
            continue
        node = program.nodes[index]
        assert isinstance(node, graph.Derivative)
        assert node.span is not None
        where = place(program.text, node.span)
        planned.append(
            PlannedDerivative(
                node=index,
                operator=node.operator,
                wrt=node.wrt_name,
                line=where.line,
                column=where.column,
                text=where.text,
                order=program.orders[index],
                variable_size=learned.shapes.x_size,
                value_size=learned.shapes.y_size,
                strategy=learned.choice.strategy,
                alternatives=learned.choice.others,
                leader=learned.leader,
                reason=learned.choice.reason,
            )
        )
    cautions = []
    found = {**of_slopes(program, _variables(program, signature)), **evaluation.cautions}
    for index, message in sorted(found.items()):
        span = program.nodes[index].span
        assert span is not None
        where = place(program.text, span)
        cautions.append(Caution(where.line, where.column, where.text, message))
    return Plan(signature, tuple(planned), tuple(cautions))


def _variables(program: graph.Program, signature: Signature) -> set[int]:
    """The nodes that the outer gradient is taken in; none where only values are asked for."""
    found = set()
    for variable in signature.wrt:
        if variable.kind == "input":
            found.add(program.inputs[str(variable.name)])
        else:
            models = [variable.name] if variable.name else list(program.parameters)
            found |= {program.parameters[str(model)] for model in models}
    return found
