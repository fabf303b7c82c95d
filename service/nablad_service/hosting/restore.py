"""From what a folder of the repository holds to the model that it was, every doubt told."""

from __future__ import annotations

import logging

from nablad.problems import Refusal
from nablad_models import Model, build, check_state, load_exported
from nablad_service.hosting.config import Damaged, ModelConfig
from nablad_service.hosting.hosted import Arrays, HostedModel, drawn, first_state, own_arrays
from nablad_service.hosting.repository import Stored

log = logging.getLogger("nablad")


def restored(name: str, stored: Stored, python: Model | None, max_artifact_bytes: int) -> HostedModel:
    """The hosted model in a folder; `python` is the operator's model of that name, where there is one.

    Raises:
        Damaged: where the parts do not fit one another, or the bytes are not those that were kept.
    """
    config = stored.config
    try:
        model = _model(name, config, stored.artifact, python, max_artifact_bytes)
    except Refusal as refusal:
        raise Damaged(f"{config.artifact or 'its architecture'}: {refusal.detail}") from None
    try:
        params, state = _tensors(stored, model)
    except Refusal as refusal:
        raise Damaged(f"{config.params or 'its parameters'}: {refusal.detail}") from None
    hosted = HostedModel.of(name, config.source, model, params, state)
    if config.version is not None and config.version != hosted.version:
        what = " and ".join(file for file in (config.params, config.state) if file) or "what was drawn"
        found = f"the bytes of {what} have the version {hosted.version}"
        raise Damaged(f"{found}, not {config.version}, which was kept; restore them from a copy")
    return hosted


def _model(
    name: str, config: ModelConfig, artifact: bytes | None, python: Model | None, max_artifact_bytes: int
) -> Model:
    if config.architecture is not None:
        return build(config.architecture)
    if artifact is not None:
        return load_exported(artifact, max_bytes=max_artifact_bytes)
    if python is None:
        raise Damaged("it keeps parameters of a Python model, and no file of --models has one of that name")
    if python.digest != config.digest:
        # The digest covers the whole file that the model is written in, and an edit beside the model changes
        # it too: a reason to tell, not to withhold parameters that fit.
        log.warning("'%s': its Python code has changed since its parameters were kept", name)
    return python


def _tensors(stored: Stored, model: Model) -> tuple[Arrays, Arrays]:
    config = stored.config
    if stored.params is None:
        params, state = drawn(model, config.seed, config.dtype), None
    else:
        own, state = own_arrays(model, stored.params, None)
        assert own is not None
        params = own
    if stored.state is not None:
        # Not held to floats, as what callers send is: the first state of a model may hold counters.
        check_state(model, stored.state)
        state = {name: stored.state[name] for name in model.state_shapes}
    return params, state if state is not None else first_state(model, config.dtype)
