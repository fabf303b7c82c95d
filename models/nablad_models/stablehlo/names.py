"""Names of parameters, inputs and answers, from the trees of arguments that `jax.export` keeps.

`f(params, x)` has a tree of parameters and an input without a name. Keyword arguments have theirs, in JAX's
order, sorted. A dict of one array in place of an input names it and keeps the order: `f(params, {"x": x},
{"t": t})`, which is what `export_model` writes.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.tree_util import PyTreeDef, tree_leaves_with_path

from nablad_models.named_leaves import by_name, dotted, unique

RESERVED = ("params", "mode")
"""What a call in the loss language takes beside inputs."""


@dataclass(frozen=True)
class Names:
    """Where each name stands among the flat operands and answers."""

    parameters: Mapping[str, int]
    inputs: Mapping[str, int]
    answers: Mapping[str, int]
    """One answer without a name has the empty text for one."""


def names_in(in_tree: PyTreeDef, out_tree: PyTreeDef) -> Names:
    """The names in the trees of arguments and of answers.

    Raises `ValueError` where they are not those of `f(params, *inputs)`.
    """
    args, kwargs = jax.tree.unflatten(in_tree, range(in_tree.num_leaves))
    if not args or not isinstance(args[0], Mapping):
        raise ValueError("the exported function's first argument must be a dict of parameters ({} for none)")
    answers = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
    if not isinstance(answers, int) and not (isinstance(answers, Mapping) and answers):
        raise ValueError("the exported function must give one array or a dict of arrays")
    return Names(by_name(args[0]), _inputs(args[1:], kwargs), by_name(answers))


def check_input_name(name: str) -> None:
    """Raise `ValueError` for a name that a program could not write, as in `model(x=points)`."""
    if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
        raise ValueError(
            f"'{name}' cannot be the name of an input: a program could not write model({name}=...)"
        )


def _inputs(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, int]:
    named = [(dotted(path[1:]), at) for path, at in tree_leaves_with_path(list(args))]
    named += by_name(dict(kwargs)).items()
    if not named:
        raise ValueError("the exported function takes no inputs beside the parameters")
    alone = len(named) == 1
    found = unique(
        (name or ("x" if alone else f"input_{at + 1}"), leaf) for at, (name, leaf) in enumerate(named)
    )
    for name in found:
        check_input_name(name)
    return found
