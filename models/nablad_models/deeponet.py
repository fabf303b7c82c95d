"""DeepONets: networks that map a function, known at its sensors, and a point to a value."""

from __future__ import annotations

from typing import Any

from nablad_models.mlps import Architecture, mlp
from nablad_models.reading import Unreadable


def deeponet(
    branch: list[int],
    trunk: list[int],
    *,
    outputs: int | None = None,
    activation: Any = "tanh",
    init: str = "uniform",
) -> Architecture:
    """The unstacked DeepONet: `branch(sensors) . trunk(y) + bias`, one number.

    Lu et al., "Learning nonlinear operators via DeepONet" (2021): the activation follows every layer of the
    trunk and all but the last of the branch. With `outputs` the answer is a vector, and both last sizes are
    shared out evenly among its entries.
    """
    if branch[-1] != trunk[-1]:
        raise Unreadable(
            f"branch and trunk end in the same size, but branch {branch} gives ({branch[-1]},) and "
            f"trunk {trunk} gives ({trunk[-1]},)"
        )
    if outputs and branch[-1] % outputs:
        raise Unreadable(f"outputs {outputs} must divide the last size of branch and trunk, {branch[-1]}")
    answer = [outputs] if outputs else []
    split: list[Architecture] = [{"reshape": [outputs, branch[-1] // outputs]}] if outputs else []
    branch_layers, trunk_layers = (
        mlp(sizes, activation=activation, init=init)["layers"] for sizes in (branch, trunk)
    )
    trunk_layers[-1]["activation"] = activation
    return {
        "inputs": {"sensors": branch[:1], "y": trunk[:1]},
        "layers": [
            {"chain": [*branch_layers, *split], "from": "sensors", "name": "branch"},
            {"chain": [*trunk_layers, *split], "from": "y", "name": "trunk"},
            {"join": "dot", "from": ["branch", "trunk"]},
            {"shift": answer, "name": "bias"},
        ],
    }
