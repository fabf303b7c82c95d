"""The worked examples of Lux.jl's manual, "Nested Automatic Differentiation", through a real server.

    python examples/lux_manual.py                  # all five
    python examples/lux_manual.py loss_function1   # one of them

Prints each number of the manual beside what nablad computes in float32 and in float64. The manual's data are
(features, batch); nablad takes rows as samples, so data and their gradients are transposed here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from local_server import local_server

import nablad

DATA = Path(__file__).parent / "lux_manual"


@dataclass(frozen=True)
class Example:
    """One function of the manual as a program. `losses` are the values it is asked for."""

    program: str
    inputs: tuple[str, ...]
    wrt: tuple[str, ...]
    losses: tuple[str, ...] = ("loss",)
    mode: str = "eval"


EXAMPLES = {
    # function loss_function1(model, x, ps, st, y)
    "loss_function1": Example(
        """\
yhat = model(x)
J = jacobian(yhat, x)
loss = sum((yhat - y)**2) + norm(jac_scale * J)**2
loss
""",
        inputs=("x", "y", "jac_scale"),
        wrt=("params", "x", "y"),
        mode="train",
    ),
    # the same with one Jacobian per sample
    "loss_function_batched": Example(
        """\
yhat = model(x)
J = batched_jacobian(yhat, x)
loss = sum((yhat - y)**2) + norm(jac_scale * J)**2
loss
""",
        inputs=("x", "y", "jac_scale"),
        wrt=("params", "x", "y"),
    ),
    # a gradient inside the loss
    "loss_function2": Example(
        """\
dt = grad(sum(model(t)**2), t)
loss = sum((dt - cos(t))**2)
loss
""",
        inputs=("t",),
        wrt=("params", "t"),
    ),
    # the Jacobian with respect to the parameters
    "loss_function3": Example(
        """\
J = jacobian(model(x), model.params)
loss = sum(J**2)
loss
""",
        inputs=("x",),
        wrt=("params", "x"),
    ),
    # Hutchinson's trace estimate, three ways
    "hutchinson_trace": Example(
        """\
y = model(x)
trace_vjp = sum(vjp(y, x, v) * v)
trace_jvp = sum(jvp(y, x, v) * v)
trace_full_jacobian = sum(v * (batched_jacobian(y, x) @ v[:, :, None])[:, :, 0])
loss = trace_vjp
loss
""",
        inputs=("x", "v"),
        wrt=("params", "x"),
        losses=("loss", "trace_vjp", "trace_jvp", "trace_full_jacobian"),
    ),
}


def load(name: str) -> dict[str, Any]:
    """The manual's data for one example."""
    data: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return data


def architecture(data: dict[str, Any]) -> dict[str, Any]:
    """The example's model as nablad's JSON."""
    layers: list[dict[str, Any]] = []
    for kind, *sizes in data["layers"]:
        if kind == "dense":
            layers.append({"dense": sizes[:2], "activation": sizes[2]})
        else:
            layers.append({"batchnorm": sizes[0], "eps": data["constants"]["bn_epsilon"]})
    return {"layers": layers}


def compute(client: nablad.Client, name: str, dtype: str, nesting: str = "auto") -> dict[str, Any]:
    """Every quantity of the example as nablad computes it, named and laid out as in the manual."""
    example, data = EXAMPLES[name], load(name)
    model = f"{name}_{dtype}"
    params = {leaf: np.array(value, dtype) for leaf, value in data["params"].items()}
    client.create_model(model, architecture(data), params=params)
    inputs = {one: np.array(value, dtype).T for one, value in data["inputs"].items()}
    inputs |= {one: value for one, value in data.get("constants", {}).items() if one in example.inputs}
    result = client.gradient(
        example.program,
        inputs=inputs,
        model=model,
        wrt=example.wrt,
        terms=example.losses,
        mode=example.mode,
        nesting=nesting,
    )
    found: dict[str, Any] = dict(result.terms)
    found |= {f"grad.{leaf}": array for leaf, array in result.gradients["params"].items()}
    found |= {f"grad.{one}": result.gradients[one].T for one in example.wrt if one != "params"}
    found |= {f"input.{one}": inputs[one].T for one in data["inputs"]}
    if name == "loss_function1":  # the manual prints its loss in test mode, its gradients in train mode
        tested = client.evaluate(example.program, inputs=inputs, model=model, mode="eval")
        found["loss_testmode"] = float(tested.result)
    return found


def show(client: nablad.Client, name: str) -> None:
    """The manual's printed numbers beside nablad's."""
    data = load(name)
    single, double = (compute(client, name, dtype) for dtype in ("float32", "float64"))
    print(f"\n{name}: {data['formula']}\n\n{EXAMPLES[name].program}")
    print(f"{'':<28}{'manual':>16}{'float32':>16}{'float64':>20}")
    for printed in data["printed"]:
        if printed["kind"] == "residual":  # rounding noise of the manual's own finite differences
            continue
        quantity, index = printed["quantity"], tuple(printed["index"])
        ours = (np.asarray(values[quantity])[index] for values in (single, double))
        label = quantity + (str(list(index)) if index else "")
        print(f"{label:<28}{printed['shown']:>16}{next(ours):>16.8g}{next(ours):>20.14g}")


def main(names: list[str]) -> int:
    """Run the examples named, or all."""
    unknown = set(names) - set(EXAMPLES)
    if unknown:
        print(f"no example {', '.join(sorted(unknown))}; there are {', '.join(EXAMPLES)}", file=sys.stderr)
        return 2
    with local_server() as url, nablad.Client(url) as client:
        for name in names or EXAMPLES:
            show(client, name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
