"""Parameters under the names that PyTorch gives them.

A `state_dict` of the same layers has the same arrays in the same layouts; the names differ, by rules:

- A layer with a `"name"` takes the arrays below that name, as in `fc1.weight`; a layer with one array may
  also have the name of that array itself.
- The layers without a name take those below numbers, in the order of the numbers. `nn.Sequential` numbers
  activations too, so the numbers may have gaps: only layers with arrays are counted. Where the arrays are
  below the model's own names (`layer_2.weight`), these are used.
- A name that all have in front is left out: `net.0.weight`, `module.0.weight`, `branch.linears.0.weight`.
- The layers of a block are below the block, each by the same rules; a shortcut is below `shortcut`. A block
  without a name whose layers all have names is no module of its own: the names count beside it.
- `weight` of a batch norm is `scale`, its running statistics are state, `num_batches_tracked` is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nablad.problems import Refusal
from nablad_models.layered import Layered
from nablad_models.model import Model, check_params, check_state

SPELLINGS = {"batchnorm": {"scale": "weight"}}
"""Leaves that PyTorch calls otherwise, by the kind of layer."""

LEFT_OUT = {"batchnorm": ("num_batches_tracked",)}
"""Arrays of PyTorch's that no layer has."""

Tree = dict[str, Any]
"""Names by their parts: `{"fc1": {"weight": {"": "fc1.weight"}}}`, every whole name under the empty part."""


@dataclass(frozen=True)
class _Module:
    """A layer with arrays, as a module of PyTorch's."""

    name: str | None
    place: str
    """`layer_3`, `branch_1`, `shortcut`: its own name beside its neighbours'."""
    path: str
    """The model's own name of it."""
    kind: str
    leaves: tuple[str, ...]
    """What the model calls its arrays, where it is not a block."""
    inside: tuple[_Module, ...] = ()
    """The layers of a block."""


def from_torch(model: Model, state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and state of `model` from the `state_dict` of the same layers in PyTorch.

    Pure, and exact: arrays are the ones given, under other names. The rules are at the top of this file.

    Raises `Refusal("invalid_params")` that lists what is missing, left over or misshapen, or
    `Refusal("invalid_state")` for misshapen state.
    """
    renamed, wrong = _renamed(model, state_dict)
    if wrong:
        raise Refusal("invalid_params", f"the PyTorch names do not fit the model: {'; '.join(wrong)}.")
    params = {name: state_dict[renamed[name]] for name in model.parameter_shapes}
    state = {name: state_dict[renamed[name]] for name in model.state_shapes}
    check_params(model, params)
    check_state(model, state)
    return params, state


def is_torch(model: Model, names: Collection[str]) -> bool:
    """Whether these are the names of a PyTorch `state_dict` and not, or not quite, the model's own.

    True where `from_torch` finds a place for every name, and where no name is one of the model's, so that its
    refusal is the helpful one.
    """
    if not isinstance(model, Layered) or not names or set(names) == set(model.parameter_shapes):
        return False
    if not set(names) & {*model.parameter_shapes, *model.state_shapes}:
        return True
    return not _renamed(model, names)[1]


def _renamed(model: Model, names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """By the model's names, PyTorch's; and what is wrong."""
    if not isinstance(model, Layered):
        raise Refusal("invalid_params", "PyTorch's names are known for layers in JSON only.")
    own = _tree([*model.parameter_shapes, *model.state_shapes])
    renaming = _Renaming({}, [])
    renaming.read(_modules(model.architecture["layers"], "", own), _tree(names), "")
    return renaming.found, renaming.wrong


def _modules(entries: Sequence[Mapping[str, Any]], above: str, own: Tree) -> list[_Module]:
    """The layers with arrays, as modules in order; `own` are the model's names below `above`."""
    modules: list[_Module] = []
    for number, entry in enumerate(entries, start=1):
        place = f"layer_{number}"
        if place not in own:
            continue
        path, name, below = f"{above}{place}", entry.get("name"), own[place]
        inside = _inside(entry, f"{path}.", below)
        if inside and name is None and all(module.name for module in inside):
            modules += inside
            continue
        kind = next((kind for kind in SPELLINGS if kind in entry), "")
        leaves = () if inside else tuple(each.removeprefix(f"{path}.") for each in _names(below))
        modules.append(_Module(name, place, path, kind, leaves, tuple(inside)))
    return modules


def _inside(entry: Mapping[str, Any], above: str, own: Tree) -> list[_Module]:
    """The layers inside a block, branches and shortcuts being blocks again; none for a plain layer."""
    if "parallel" in entry:
        places = [f"branch_{number}" for number in range(1, len(entry["parallel"]) + 1)]
        return [
            _Module(
                None, place, f"{above}{place}", "", (), tuple(_modules(each, f"{above}{place}.", own[place]))
            )
            for place, each in zip(places, entry["parallel"], strict=True)
            if place in own
        ]
    inside = _modules(entry.get("chain") or entry.get("residual") or [], above, own)
    beside = _modules(entry.get("shortcut") or [], f"{above}shortcut.", own.get("shortcut", {}))
    if beside and not all(module.name for module in beside):
        beside = [_Module("shortcut", "shortcut", f"{above}shortcut", "", (), tuple(beside))]
    return inside + beside


@dataclass(frozen=True)
class _Renaming:
    """What has been found so far, the model's names to PyTorch's, and what is wrong."""

    found: dict[str, str]
    wrong: list[str]

    def read(self, modules: Sequence[_Module], given: Tree, above: str) -> None:
        """Find the arrays of all modules among the names `given` below `above`."""
        given, above = _without_shared(modules, given, above)
        # The longest first: the arrays of fc.0 are not those of fc.
        for module in sorted((each for each in modules if each.name), key=lambda each: -len(str(each.name))):
            self.fill(module, _taken(given, str(module.name)), f"{above}{module.name}")
        unnamed = [module for module in modules if not module.name]
        parts = [module.place for module in unnamed]
        if not any(part in given for part in parts):
            parts = sorted((part for part in given if part.isdecimal() and any(_names(given[part]))), key=int)
        if len(parts) != len(unnamed):
            takes = ", ".join(module.path for module in unnamed) or "no layer"
            found = ", ".join(f"{above}{part}" for part in parts) or "none"
            self.wrong.append(
                f"{takes} would take numbered modules in order, but those with arrays are {found}"
            )
            return
        for part, module in zip(parts, unnamed, strict=True):
            self.fill(module, given.pop(part, {}), f"{above}{part}")
        self.wrong.extend(f"no layer takes {name}" for name in _names(given))

    def fill(self, module: _Module, given: Tree, above: str) -> None:
        """Find the arrays of one module."""
        if module.inside:
            self.read(module.inside, given, f"{above}.")
            return
        for leaf in module.leaves:
            spelled = SPELLINGS.get(module.kind, {}).get(leaf, leaf)
            # The array itself has the layer's name.
            if "" in given and len(module.leaves) == 1:
                self.found[f"{module.path}.{leaf}"] = given.pop("")
            elif (array := _array(given, spelled)) is not None:
                self.found[f"{module.path}.{leaf}"] = array
            else:
                self.wrong.append(f"{module.path}.{leaf} would be {above}.{spelled}, which is missing")
        for name in LEFT_OUT.get(module.kind, ()):
            given.pop(name, None)
        self.wrong.extend(f"{module.path} has no place for {name}" for name in _names(given))


def _without_shared(modules: Sequence[_Module], given: Tree, above: str) -> tuple[Tree, str]:
    """The names without what all of them have in front, unless it is a number or a layer's name."""
    own = {module.name.split(".")[0] if module.name else module.place for module in modules}
    while len(given) == 1:
        ((part, below),) = given.items()
        if part in own or not part or part.isdecimal() or "" in below:
            break
        given, above = below, f"{above}{part}."
    return given, above


def _tree(names: Iterable[str]) -> Tree:
    tree: Tree = {}
    for name in names:
        below = tree
        for part in name.split("."):
            below = below.setdefault(part or " ", {})
        below[""] = name
    return tree


def _taken(tree: Tree, name: str) -> Tree:
    """What is at and below `name`, taken out of the tree."""
    *parts, last = name.split(".")
    for part in parts:
        tree = tree.get(part, {})
    taken: Tree = tree.pop(last, {})
    return taken


def _array(tree: Tree, name: str) -> str | None:
    """The whole name of the array at `name`, taken out of the tree."""
    for part in name.split("."):
        tree = tree.get(part, {})
    return tree.pop("", None)


def _names(tree: Tree) -> Iterator[str]:
    """The whole names in a tree, in order."""
    waiting = [tree]
    while waiting:
        each = waiting.pop()
        if "" in each:
            yield each[""]
        waiting += [below for part, below in reversed(each.items()) if part]
