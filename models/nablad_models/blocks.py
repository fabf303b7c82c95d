"""Layers made of layers: a sum with what went in, and branches side by side."""

from __future__ import annotations

from jax import Array

from nablad_models.joins import JOINS, joined_shape
from nablad_models.layer import Call, Layer
from nablad_models.leaves import Leaves
from nablad_models.reading import Unreadable
from nablad_models.shapes import DoesNotFit, Shape, all_fit, show
from nablad_models.step import DoesNotChain, Step, joined, run


def chain(layers: Layer) -> Layer:
    """Layers one after another as one, so that they have a name together: a branch, a trunk."""
    return layers


def residual(body: Layer, *, shortcut: Layer | None) -> Layer:
    """`body(x) + shortcut(x)`, the shortcut x itself when there is none.

    Leaves are those of the body, and those of the shortcut below `shortcut`.
    """
    beside = Step("shortcut", "shortcut", shortcut) if shortcut else None

    def gives(shape: Shape) -> Shape:
        through, around = body.gives(shape), shortcut.gives(shape) if shortcut else shape
        if not all_fit(through, around):
            raise DoesNotFit(f"adds {show(through)} from its layers to {show(around)} from its shortcut")
        return tuple(
            there if there is not None else here for there, here in zip(through, around, strict=True)
        )

    def forward(params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        y, new_state = body.forward(params, state, x, call)
        if beside:
            x, new = run(beside, params, state, x, call.into(beside.name))
            new_state = {**new_state, **new}
        return y + x, new_state

    sides = [beside] if beside else []
    return Layer(
        gives=gives,
        forward=forward,
        takes=body.takes,
        parameters={**body.parameters, **joined(sides, "parameters")},
        state={**body.state, **joined(sides, "state")},
        keeps_shape=body.keeps_shape,
    )


def parallel(branches: list[Layer], *, join: str, axis: int) -> Layer:
    """Branches that all see x, their answers joined; `axis` is an axis of one answer.

    Leaves are below `branch_1`, `branch_2`, ...
    """
    steps = [Step(f"branch_{place}", f"branch {place}", each) for place, each in enumerate(branches, start=1)]
    if not steps:
        raise Unreadable("expected at least one branch")

    def gives(shape: Shape) -> Shape:
        return joined_shape([_through(step, shape) for step in steps], join, axis)

    def forward(params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        answers = [run(step, params, state, x, call.into(step.name)) for step in steps]
        new_state = {name: leaf for _, new in answers for name, leaf in new.items()}
        return JOINS[join]([y for y, _ in answers], call.batch_axes + axis), new_state

    return Layer(
        gives=gives,
        forward=forward,
        takes=next((branch.takes for branch in branches if branch.takes is not None), None),
        parameters=joined(steps, "parameters"),
        state=joined(steps, "state"),
    )


def _through(branch: Step, shape: Shape) -> Shape:
    try:
        return branch.layer.gives(shape)
    except DoesNotChain as problem:
        raise DoesNotChain(f"in {branch.name}, {problem}") from problem
