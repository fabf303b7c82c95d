"""The models that are hosted: in memory, and in the repository where there is one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError

from nablad.arrays import Received
from nablad.messages import FailedModel, ModelInfo
from nablad.problems import Refusal
from nablad_service.hosting.config import Damaged, ModelConfig
from nablad_service.hosting.hosted import HostedModel, drawn, first_state, own_arrays
from nablad_service.hosting.names import check_folder_name, check_name
from nablad_service.hosting.python_models import PythonModels
from nablad_service.hosting.repository import Repository
from nablad_service.hosting.restore import restored
from nablad_service.hosting.shelf import Shelf
from nablad_service.hosting.sources import source_of
from nablad_service.hosting.versions import Versions
from nablad_service.language.places import nearest

log = logging.getLogger("nablad")


@dataclass(frozen=True)
class Unloaded:
    """A model that is in the repository and, at somebody's wish, not in memory."""

    card: ModelInfo


class ModelStore:
    """Hosted models by name; safe to use from several threads.

    Readers take no lock: an entry is a value that is replaced as a whole. Writers take turns, and change the
    repository before the memory, so that nobody is told of parameters that a crash could take back.
    """

    def __init__(
        self,
        max_models: int,
        *,
        repository: Repository | None = None,
        python: PythonModels | None = None,
        max_artifact_bytes: int = 64 * 1024 * 1024,
        versions: Versions | None = None,
    ) -> None:
        self._versions = versions or Versions(Shelf(0))
        self._entries: dict[str, HostedModel | Unloaded | FailedModel] = {}
        self._configs: dict[str, ModelConfig] = {}
        self._writing = threading.Lock()
        self._max_models = max_models
        self._repository = repository
        self._python = python or PythonModels()
        # Failures without an entry: files, and models whose name another one has.
        self._beside: list[FailedModel] = []
        self._max_artifact_bytes = max_artifact_bytes
        self._begin()

    # -- reading

    def get(self, name: str, version: str | None = None) -> HostedModel:
        """The model called `name`, with its current parameters or resident ones of another `version`.

        Raises:
            Refusal: `unknown_model`, with the nearest name, `not_loaded`, with the reason, or
                `unknown_version`, with the versions that there are.
        """
        entry = self._entries.get(name)
        if isinstance(entry, HostedModel):
            if version is None or version == entry.version:
                return entry
            return self._versions.get(entry, version)
        if isinstance(entry, Unloaded):
            detail = f"'{name}' is unloaded; POST /v1/models/{name}/load brings it back"
            raise Refusal("not_loaded", detail)
        if isinstance(entry, FailedModel):
            raise Refusal("not_loaded", f"'{name}' could not be loaded: {entry.reason}")
        raise self._unknown(name)

    def card(self, name: str) -> ModelInfo:
        """The description of a model, loaded or unloaded.

        Raises:
            Refusal: as `get` does, but for unloaded ones.
        """
        entry = self._entries.get(name)
        return entry.card if isinstance(entry, Unloaded) else self.get(name).info()

    def cards(self) -> list[ModelInfo]:
        """The descriptions of all models that could be loaded, by name."""
        return [
            entry.card if isinstance(entry, Unloaded) else entry.info()
            for _, entry in sorted(self._entries.copy().items())
            if not isinstance(entry, FailedModel)
        ]

    def failed(self) -> list[FailedModel]:
        """What could not be loaded, with the reasons: models by name, then what has none of its own."""
        entries = sorted(self._entries.copy().items())
        return [entry for _, entry in entries if isinstance(entry, FailedModel)] + self._beside

    # -- writing

    def put(
        self,
        name: str,
        architecture: Mapping[str, Any] | None,
        params: Mapping[str, Received] | None,
        state: Mapping[str, Received] | None,
        seed: int,
        stablehlo: bytes | str | None = None,
    ) -> HostedModel:
        """Host an architecture or an artifact, in place of a model of the same name.

        Raises:
            Refusal: for a bad name, architecture, artifact, parameters or state, too many models, a name of
                the operator's, or a repository that cannot be written.
        """
        check_name(name)
        self._check_not_python(name, "replaced")
        # Before the lock: an artifact takes seconds.
        source = source_of(architecture, stablehlo, seed, self._max_artifact_bytes)
        own, own_state = own_arrays(source.model, params, state)
        hosted = HostedModel.of(
            name,
            source.config.source,
            source.model,
            own if own is not None else drawn(source.model, seed),
            own_state if own_state is not None else first_state(source.model),
        )
        with self._writing:
            if name not in self._entries and len(self._entries) >= self._max_models:
                raise Refusal("limit", f"{self._max_models} models are hosted already; delete one first")
            self._keep(hosted, source.config, source.artifact)
            self._versions.forget(name)
        return hosted

    def set_params(
        self, name: str, params: Mapping[str, Received], state: Mapping[str, Received] | None
    ) -> HostedModel:
        """Replace the resident parameters, and the state where one is given."""
        with self._writing:
            hosted = self._changeable(name)
            own, own_state = own_arrays(hosted.model, params, state)
            assert own is not None
            replaced = hosted
            hosted = hosted.with_params(own, own_state if own_state is not None else hosted.state)
            config = self._configs.get(name)
            if hosted.source == "python":
                config = ModelConfig(source="python", digest=hosted.model.digest)
            assert config is not None
            self._keep(hosted, config, None)
            self._versions.replaced(replaced, hosted.version)
        return hosted

    def put_params(
        self,
        name: str,
        version: str,
        params: Mapping[str, Received],
        state: Mapping[str, Received] | None,
    ) -> HostedModel:
        """Let parameters of that version be resident beside the current ones, which stay the current ones.

        Raises:
            Refusal: `other_version`, with both, where that is not their digest; `resident_limit` where there
                is no room.
        """
        hosted = self.get(name)
        own, own_state = own_arrays(hosted.model, params, state)
        assert own is not None
        other = hosted.with_params(own, own_state if own_state is not None else hosted.state)
        if other.version != version:
            detail = f"these parameters of '{name}' have the version {other.version}, not {version}"
            detail += (
                "" if state is not None else "; a version covers the state, here that of the current one"
            )
            raise Refusal("other_version", detail, extra={"version": other.version, "asked": version})
        if other.version != hosted.version:
            self._versions.put(other)
        return other

    def delete(self, name: str) -> None:
        """Stop hosting `name`, and remove it from the repository."""
        with self._writing:
            if name not in self._entries:
                raise self._unknown(name)
            self._check_not_python(name, "deleted")
            if self._repository is not None:
                with _storing(name):
                    self._repository.remove(name)
            del self._entries[name]
            self._configs.pop(name, None)
            self._versions.forget(name)

    def unload(self, name: str) -> ModelInfo:
        """Let go of the model's memory; the repository keeps it."""
        with self._writing:
            self._with_repository("unload")
            card = self.card(name).model_copy(update={"loaded": False})
            self._entries[name] = Unloaded(card)
            self._versions.forget(name)
        return card

    def load(self, name: str) -> ModelInfo:
        """Read a model from the repository, whether it is in memory or not.

        Raises:
            Refusal: `not_loaded` where its folder is damaged; one that is in memory stays.
        """
        with self._writing:
            repository = self._with_repository("load")
            # Not a question to the file system about this very name: it may be a path, or not mind case.
            if name not in self._entries and name not in repository.names():
                raise self._unknown(name)
            try:
                if name in self._python.models and not repository.has(name):
                    hosted = self._fresh(name)
                else:
                    hosted = self._read(repository, name)
            except Damaged as damage:
                if not isinstance(self._entries.get(name), HostedModel):
                    self._fails(name, str(repository.folder / name), str(damage))
                raise Refusal("not_loaded", f"'{name}' could not be loaded: {damage}") from None
            self._entries[name] = hosted
        return hosted.info()

    # -- the repository

    def _begin(self) -> None:
        """Load everything: first the repository, whose data nobody else has, then the operator's models."""
        for name in self._repository.names() if self._repository is not None else ():
            assert self._repository is not None
            try:
                self._entries[name] = self._read(self._repository, name)
            except Damaged as damage:
                self._fails(name, str(self._repository.folder / name), str(damage))
        for name, place in self._python.places.items():
            if name not in self._entries:
                self._begin_python(name, place)
            elif (config := self._configs.get(name)) is not None and config.source != "python":
                reason = f"the repository holds another model called '{name}'; rename one, or delete that one"
                self._beside.append(FailedModel(name=name, place=place, reason=reason))
                log.error("%s: %s", place, reason)
        for failure in self._python.failed:
            if failure.name is None or failure.name in self._entries:
                self._beside.append(failure)
            else:
                self._entries[failure.name] = failure

    def _begin_python(self, name: str, place: str) -> None:
        try:
            self._entries[name] = self._fresh(name)
        except Refusal as refusal:
            self._fails(name, place, refusal.detail)
        except Exception as error:  # the operator's code runs here
            log.debug("%s", place, exc_info=error)
            self._fails(name, place, f"'{name}' cannot be hosted: {type(error).__name__}: {error}")

    def _fresh(self, name: str) -> HostedModel:
        """A model of the operator's with its first parameters."""
        model = self._python.models[name]
        hosted = HostedModel.of(name, "python", model, drawn(model, 0), first_state(model))
        hosted.info()  # what its card needs may fail too
        return hosted

    def _read(self, repository: Repository, name: str) -> HostedModel:
        stored = repository.read(name, max_artifact_bytes=self._max_artifact_bytes)
        hosted = restored(name, stored, self._python.models.get(name), self._max_artifact_bytes)
        repository.collect(name, stored.config)
        self._configs[name] = stored.config
        return hosted

    def _fails(self, name: str, place: str, reason: str) -> None:
        self._entries[name] = FailedModel(name=name, place=place, reason=reason)
        log.error("%s: %s", place, reason)

    def _keep(self, hosted: HostedModel, config: ModelConfig, artifact: bytes | None) -> None:
        """Make this the hosted model of its name, after the repository has it."""
        config = config.model_copy(update={"version": hosted.version})
        if self._repository is not None:
            if hosted.name not in self._configs:
                check_folder_name(hosted.name, self._entries)
            with _storing(hosted.name):
                config = self._repository.write(hosted.name, config, hosted.params, hosted.state, artifact)
        self._entries[hosted.name] = hosted
        self._configs[hosted.name] = config

    # -- refusals

    def _changeable(self, name: str) -> HostedModel:
        """The model whose parameters are to be replaced: new ones may be what a failed Python model needs."""
        if isinstance(self._entries.get(name), FailedModel) and name in self._python.models:
            return self._fresh(name)
        return self.get(name)

    def _with_repository(self, verb: str) -> Repository:
        if self._repository is None:
            detail = f"models of this server are in memory only, there is nothing to {verb} them"
            raise Refusal("invalid_request", f"{detail}; start it with --repository DIR")
        return self._repository

    def _check_not_python(self, name: str, verb: str) -> None:
        config = self._configs.get(name)
        if name in self._python.models and (config is None or config.source == "python"):
            place = self._python.places[name]
            detail = f"'{name}' comes from {place} and cannot be {verb} over HTTP; its parameters can be"
            raise Refusal("python_model", f"{detail}: PUT /v1/models/{name}/params")

    def _unknown(self, name: str) -> Refusal:
        names = sorted(self._entries.copy())
        known = f"hosted are {', '.join(names[:20])}" if names else "none is hosted; PUT one first"
        return Refusal("unknown_model", f"no model is called '{name}'{nearest(name, names) or f'; {known}'}")


@contextmanager
def _storing(name: str) -> Iterator[None]:
    """Failures of the disk as a refusal; what was there before is there still."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        log.error("the repository cannot keep '%s': %s", name, error)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        detail = f"the repository cannot keep '{name}': {reason}; what was hosted before still is"
        raise Refusal("storage", detail) from None
