"""Values by content: arrays and trees that callers have put, each under its handle, for one tenant."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from numpy.typing import NDArray

from nablad.arrays import Received, Undeclared
from nablad.content import handle_of
from nablad.messages import ParameterInfo, ValueInfo
from nablad.problems import Refusal
from nablad_service.hosting.shelf import Kept, Shelf
from nablad_service.resident import Resident, residents

Value: TypeAlias = "Resident | Mapping[str, Resident]"
SHOWN = 3
"""Handles that a sentence names; the document lists all."""


class Values:
    """What tenants have put on the shelf. The value of another tenant is as unknown as any other."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def put(self, tenant: str, value: Received | Mapping[str, Received], pinned: bool | None) -> ValueInfo:
        """Keep a value under the digest of its content; `pinned` None leaves a pin as it is.

        Raises:
            Refusal: `invalid_array` for numbers without a dtype, `resident_limit` where there is no room.
        """
        own = _with_dtypes(value)
        handle = handle_of(own)
        kept = self._shelf.look(_key(tenant, handle))
        # An array that is there already is not copied once more.
        content = kept.content if kept is not None else _resident(own)
        return _info(handle, self._shelf.put(_key(tenant, handle), content, _bytes(content), pinned=pinned))

    def take(self, tenant: str, handles: Collection[str]) -> dict[str, Value]:
        """The values of these handles.

        Raises:
            Refusal: `unknown_handle`, with all that are missing under `handles`.
        """
        found = self._shelf.take([_key(tenant, handle) for handle in handles])
        missing = [handle for handle in handles if _key(tenant, handle) not in found]
        if missing:
            raise _unknown(missing)
        return {handle: found[_key(tenant, handle)] for handle in handles}

    def info(self, tenant: str, handle: str) -> ValueInfo:
        """What is known of a value; asking does not count as use."""
        return _known(handle, self._shelf.look(_key(tenant, handle)))

    def all(self, tenant: str) -> list[ValueInfo]:
        """All values of a tenant, most recently used first."""
        return [
            _info(key[2], kept) for key, kept in self._shelf.all(lambda key: key[:2] == _key(tenant, "")[:2])
        ]

    def pin(self, tenant: str, handle: str, pinned: bool) -> ValueInfo:
        """Let a value stay whatever comes, or let it go with the others again."""
        return _known(handle, self._shelf.pin(_key(tenant, handle), pinned))

    def delete(self, tenant: str, handle: str) -> None:
        """Let go of a value, pinned or not."""
        if not self._shelf.remove(_key(tenant, handle)):
            raise _unknown([handle])


def _key(tenant: str, handle: str) -> tuple[str, str, str]:
    return ("value", tenant, handle)


def _with_dtypes(value: Received | Mapping[str, Received]) -> NDArray[Any] | dict[str, NDArray[Any]]:
    if isinstance(value, Mapping):
        return {name: _with_dtype(leaf, f" '{name}'") for name, leaf in value.items()}
    return _with_dtype(value, "")


def _with_dtype(leaf: Received, name: str) -> NDArray[Any]:
    if isinstance(leaf, Undeclared):
        detail = f"the array{name} has no dtype; what is kept needs one: send {{dtype, shape, data}}"
        raise Refusal("invalid_array", detail)
    return leaf


def _resident(value: NDArray[Any] | dict[str, NDArray[Any]]) -> Value:
    return residents(value) if isinstance(value, dict) else Resident(value)


def _bytes(value: Value) -> int:
    leaves = value.values() if isinstance(value, Mapping) else [value]
    return sum(leaf.nbytes for leaf in leaves)


def _known(handle: str, kept: Kept | None) -> ValueInfo:
    if kept is None:
        raise _unknown([handle])
    return _info(handle, kept)


def _info(handle: str, kept: Kept) -> ValueInfo:
    value: Value = kept.content
    return ValueInfo(
        handle=handle,
        bytes=kept.bytes,
        pinned=kept.pinned,
        last_used=datetime.fromtimestamp(kept.last_used, UTC),
        array=None if isinstance(value, Mapping) else _array(value),
        tree={name: _array(leaf) for name, leaf in value.items()} if isinstance(value, Mapping) else None,
    )


def _array(leaf: Resident) -> ParameterInfo:
    return ParameterInfo(shape=list(leaf.shape), dtype=leaf.dtype.name)


def _unknown(missing: list[str]) -> Refusal:
    names = ", ".join(f"'{handle[:40]}'" for handle in missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    which = f"there is no value under the handle {names}{more}"
    detail = f"{which}: never put, deleted, or gone to make room; PUT /v1/values and ask again"
    return Refusal("unknown_handle", detail, extra={"handles": missing})
