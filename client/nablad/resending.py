"""All that goes to and fro for one call, without the I/O: values put first, or put again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from nablad.content import handle_of
from nablad.errors import NotFound, Unavailable
from nablad.handles import Deduplication, Handle, Sources
from nablad.problems import Problem
from nablad.transports.incoming import Answer

if TYPE_CHECKING:
    from nablad.calls import Call

T = TypeVar("T")


def exchange(
    call: Call[T],
    put: Callable[[Any, bool | None], Call[Handle]],
    sources: Sources,
    dedupe: Deduplication | None,
) -> Generator[Call[Any], Answer, T]:
    """Yields what to send, is sent the answers, returns the result.

    Values that the server lacks are put before the call, or, when it turns out to have lost them, put again
    and the call repeated, once. Arrays that were to be sent but once, and have no room there, go along with
    the call.

    Raises:
        ServiceError: where the server refuses. `unknown_handle` where it lost a value whose data are gone
            from this client too.
    """

    def without(*handles: str) -> Generator[Call[Any], Answer, T]:
        assert dedupe is not None
        assert call.again is not None
        for handle in handles:
            dedupe.refused(handle)
        return exchange(call.again(), put, sources, dedupe)

    for handle in call.missing:
        if not (yield from _fits(put(call.values[handle], None), True)):
            return (yield from without(handle))
        if dedupe is not None:
            dedupe.arrived(handle)
    answer = yield call
    lost = _lost(answer)
    if lost and call.method == "DELETE":
        return call.read(answer)  # what is gone already is gone
    if not lost or call.path.startswith("/v1/values"):
        return call.finish(answer)
    for handle in lost:
        if not (yield from _fits(put(*_data_of(call, handle, sources)), handle in call.values)):
            return (yield from without(handle))
    answer = yield call
    # There may be room for each of its arrays, and not for all of them.
    lost = [handle for handle in _lost(answer) if handle in call.values]
    return (yield from without(*lost)) if lost else call.finish(answer)


def _fits(put: Call[Handle], dispensable: bool) -> Generator[Call[Any], Answer, bool]:
    """Whether a value could be put; one that is not `dispensable` must be."""
    try:
        put.finish((yield put))
    except Unavailable as error:
        if error.code != "resident_limit" or not dispensable:
            raise
        return False
    return True


def _data_of(call: Call[Any], handle: str, sources: Sources) -> tuple[Any, bool | None]:
    if handle in call.values:
        return call.values[handle], None
    found = sources.find(handle)
    if found is None:
        raise _gone(handle, "it is gone from this client too, which holds only weakly what it puts")
    if handle_of(found[0]) != handle:
        raise _gone(handle, "it has changed since it was put")
    return found


def _lost(answer: Answer) -> list[str]:
    """The handles that the server does not know, where that is what is wrong."""
    if answer.status != 404:
        return []
    try:
        problem = Problem.model_validate_json(bytes(answer.body))
    except ValidationError:
        return []
    handles = (problem.model_extra or {}).get("handles", []) if problem.code == "unknown_handle" else []
    return [handle for handle in handles if isinstance(handle, str)]


def _gone(handle: str, why: str) -> NotFound:
    detail = (
        f"the server has no value under the handle '{handle}' any more, and its data cannot be sent again: "
        f"{why}; put them again and use the new handle"
    )
    return NotFound(detail, code="unknown_handle", status=404, extra={"handles": [handle]})
