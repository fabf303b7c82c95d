"""From what was sent or kept to a model: layers in JSON, or serialised StableHLO."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nablad.problems import Refusal
from nablad_models import Model, build, load_exported
from nablad_service.hosting.config import ModelConfig


@dataclass(frozen=True)
class Source:
    """A model that can be hosted anew at any time, from what a configuration and an artifact say."""

    model: Model
    config: ModelConfig
    artifact: bytes | None = None


def source_of(
    architecture: Mapping[str, Any] | None, stablehlo: bytes | str | None, seed: int, max_bytes: int
) -> Source:
    """What `PUT /v1/models/{name}` asks to host: layers, or an artifact in bytes or base64.

    Raises:
        Refusal: where there is none of the two or both, or where it is not valid.
    """
    if (architecture is None) == (stablehlo is None):
        both = "the request has both 'architecture' and 'stablehlo'; send one"
        none = "the request lacks its member 'architecture' (or 'stablehlo')"
        raise Refusal("invalid_request", both if stablehlo is not None else none)
    if architecture is not None:
        model = build(architecture)
        normal = model.source["architecture"]
        return Source(model, ModelConfig(source="layers", architecture=normal, seed=seed))
    assert stablehlo is not None
    data = _decoded(stablehlo, max_bytes)
    exported = load_exported(data, max_bytes=max_bytes)
    file = f"artifact-{hashlib.sha256(data).hexdigest()[:32]}.stablehlo"
    return Source(exported, ModelConfig(source="stablehlo", artifact=file, seed=seed), data)


def _decoded(stablehlo: bytes | str, max_bytes: int) -> bytes:
    # Four letters of base64 hold three bytes; checked before anything is made of them.
    size = len(stablehlo) if isinstance(stablehlo, bytes) else len(stablehlo) // 4 * 3
    if size > max_bytes + 2:
        raise Refusal("limit", f"the artifact has {size} bytes, at most {max_bytes} are hosted")
    if isinstance(stablehlo, bytes):
        return stablehlo
    try:
        return base64.b64decode(stablehlo, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal("invalid_request", "'stablehlo' is not valid base64") from None
