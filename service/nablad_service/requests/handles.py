"""Handles in a request, and the resident values that take their place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from nablad.arrays import is_array_form
from nablad.content import handle_in
from nablad.messages import Binding, Question
from nablad.problems import Refusal
from nablad_service.hosting.values import Value

QuestionT = TypeVar("QuestionT", bound=Question)
Take = Callable[[Collection[str]], Mapping[str, Value]]


def with_values(request: QuestionT, take: Take) -> QuestionT:
    """The request with a resident value in place of each handle; the request itself where it has none.

    Raises:
        Refusal: `unknown_handle` with all that are missing, `invalid_array` where a tree stands for an array
            or the other way round.
    """
    given = [*request.inputs.values(), *_trees(request)]
    handles = list(dict.fromkeys(handle for value in given for handle in _handles(value)))
    if not handles:
        return request
    values = take(handles)
    inputs = {name: _input(name, value, values) for name, value in request.inputs.items()}
    models = {name: _binding(bound, values) for name, bound in request.models.items()}
    return request.model_copy(update={"inputs": inputs, "models": models})


def tree_of(tree: Mapping[str, Any] | None, what: str, take: Take) -> dict[str, Any] | None:
    """A tree of a request that has no program, with a resident value in place of each handle.

    Raises:
        Refusal: as `with_values` does.
    """
    if tree is None:
        return None
    handles = list(dict.fromkeys(_handles(tree)))
    return _tree(tree, what, take(handles)) if handles else dict(tree)


def _tree(tree: Mapping[str, Any], what: str, values: Mapping[str, Value]) -> dict[str, Any]:
    """A tree whose leaves, or which itself, may be handles."""
    handle = handle_in(tree)
    if handle is not None:
        value = values[handle]
        if not isinstance(value, Mapping):
            raise Refusal("invalid_array", f"{what} must be a tree; the handle '{handle}' holds one array")
        return dict(value)
    return {name: _leaf(f"{what}.{name}", leaf, values) for name, leaf in tree.items()}


def _trees(request: Question) -> Iterator[Mapping[str, Any]]:
    for bound in request.models.values():
        if isinstance(bound, Binding):
            yield from (tree for tree in (bound.params, bound.state) if tree is not None)


def _handles(value: Any) -> Iterator[str]:
    handle = handle_in(value)
    if handle is not None:
        yield handle
    elif isinstance(value, Mapping) and not is_array_form(value):
        yield from (handle for leaf in value.values() if (handle := handle_in(leaf)) is not None)


def _input(name: str, value: Any, values: Mapping[str, Value]) -> Any:
    handle = handle_in(value)
    if handle is not None:
        return values[handle]
    if is_array_form(value):
        return value
    return _tree(value, name, values)


def _leaf(name: str, value: Any, values: Mapping[str, Value]) -> Any:
    handle = handle_in(value)
    if handle is None:
        return value
    found = values[handle]
    if isinstance(found, Mapping):
        detail = f"'{name}' must be an array; the handle '{handle}' holds a tree of {len(found)} arrays"
        raise Refusal("invalid_array", detail)
    return found


def _binding(bound: Binding | str, values: Mapping[str, Value]) -> Binding | str:
    if isinstance(bound, str):
        return bound
    trees = {
        part: _tree(tree, f"{bound.name}.{part}", values)
        for part, tree in (("params", bound.params), ("state", bound.state))
        if tree is not None
    }
    return bound.model_copy(update=trees)
