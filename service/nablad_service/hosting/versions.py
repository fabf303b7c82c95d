"""Parameters of a model beside its current ones, by version, in memory as long as there is room."""

from __future__ import annotations

from nablad.problems import Refusal
from nablad_service.hosting.hosted import HostedModel
from nablad_service.hosting.shelf import Shelf

SHOWN = 20
"""Versions that a refusal lists."""


class Versions:
    """Hosted models with other parameters than the current ones.

    What callers put under its version stays while there is room. What was replaced stays only until the next
    replacement: long enough for calls that name it still, and a loop that replaces parameters at every step
    does not fill the shelf.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._replaced: dict[str, str] = {}
        """By model, the version that nobody has put here."""

    def get(self, current: HostedModel, version: str) -> HostedModel:
        """The model with its parameters of that version.

        Raises:
            Refusal: `unknown_version`, with the current one and the others that there are.
        """
        key = _key(current, version)
        found = self._shelf.take([key]).get(key)
        if isinstance(found, HostedModel):
            return found
        others = [key[2] for key, _ in self._shelf.all(lambda key: key[:2] == ("params", current.name))]
        detail = (
            f"the resident parameters of '{current.name}' have version {current.version}, not {version}; "
            f"read them anew, send params, or PUT /v1/models/{current.name}/params/{version}"
        )
        known = {"version": current.version, "versions": [current.version, *others[: SHOWN - 1]]}
        raise Refusal("unknown_version", detail, extra=known)

    def put(self, hosted: HostedModel) -> None:
        """Keep these parameters too.

        Raises:
            Refusal: `resident_limit` where there is no room.
        """
        self._shelf.put(_key(hosted, hosted.version), hosted, hosted.nbytes)
        if self._replaced.get(hosted.name) == hosted.version:
            del self._replaced[hosted.name]

    def replaced(self, hosted: HostedModel, current: str) -> None:
        """Keep parameters that were the current ones, if there is room, until others are replaced."""
        before = self._replaced.pop(hosted.name, None)
        if before is not None:
            self._shelf.remove(_key(hosted, before))
        if hosted.version == current or self._shelf.look(_key(hosted, hosted.version)) is not None:
            return
        if hosted.nbytes <= self._shelf.statistics().free_bytes:
            self._shelf.put(_key(hosted, hosted.version), hosted, hosted.nbytes)
            self._replaced[hosted.name] = hosted.version

    def forget(self, name: str) -> None:
        """Let go of all versions of a model."""
        self._replaced.pop(name, None)
        self._shelf.remove_all(lambda key: key[:2] == ("params", name))


def _key(hosted: HostedModel, version: str) -> tuple[str, str, str, str]:
    # The digest, since the model itself may be replaced while its parameters are on their way.
    return ("params", hosted.name, version, hosted.model.digest)
