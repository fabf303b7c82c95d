"""Bodies: frames, msgpack and JSON, by `Content-Type` and `Accept`. Both ends read and write with these.

All formats carry one structure; `docs/wire.md` shows it byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast

import msgpack

from nablad.arrays import Encoding
from nablad.frame import Buffer, FrameWriter, unpack_frame
from nablad.halves import FLOATS, Floats
from nablad.problems import Refusal

FRAME = "application/vnd.nablad.frame"
JSON = "application/json"
MSGPACK = "application/msgpack"
PROBLEM = "application/problem+json"

SPOKEN = {
    FRAME: FRAME,
    JSON: JSON,
    MSGPACK: MSGPACK,
    "application/x-msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
}

Format: TypeAlias = Literal["frame", "msgpack", "json"]
MEDIA: Mapping[str, str] = {"frame": FRAME, "msgpack": MSGPACK, "json": JSON}
"""The media type of each format by the word that callers use."""


@lru_cache(maxsize=64)
def media_type(header: str | None) -> str:
    """The format of a body from its `Content-Type`; JSON where none is given.

    Raises:
        Refusal: `unknown_media_type`.
    """
    if not header:
        return JSON
    bare = header.split(";")[0].strip().lower()
    if bare in SPOKEN:
        return SPOKEN[bare]
    # curl -d without -H sends this; the body is nearly always JSON.
    if bare == "application/x-www-form-urlencoded":
        return JSON
    raise Refusal("unknown_media_type", f"bodies are {JSON}, {MSGPACK} or {FRAME}, not '{bare}'")


@lru_cache(maxsize=256)
def answer_type(accept: str | None, default: str) -> tuple[str, Encoding, Floats | None]:
    """Format, array encoding and floats of the answer from `Accept`.

    `application/json; arrays=base64` asks for `{dtype, shape, data}` instead of nested lists. Without a
    preference the answer has the format of the request, `default`. `; floats=bfloat16` asks for arrays of
    floats in two bytes an entry.

    Raises:
        Refusal: `not_acceptable`.
    """
    if not accept:
        return default, *_encoding(default, {})
    offers = []
    for position, item in enumerate(accept.split(",")):
        bare, *pairs = [part.strip() for part in item.split(";")]
        settings = {
            name: value.strip('"') for name, equals, value in (p.partition("=") for p in pairs) if equals
        }
        offers.append((-_quality(settings.get("q", "1")), position, bare.lower(), settings))
    for quality, _, bare, settings in sorted(offers, key=lambda offer: offer[:2]):
        if quality == 0:
            continue
        if bare in ("*/*", "application/*"):
            return default, *_encoding(default, settings)
        if bare in SPOKEN:
            return SPOKEN[bare], *_encoding(SPOKEN[bare], settings)
    raise Refusal("not_acceptable", f"answers are {JSON}, {MSGPACK} or {FRAME}; Accept asks for '{accept}'")


def _quality(text: str) -> float:
    try:
        return max(0.0, min(1.0, float(text)))
    except ValueError:
        return 0.0


def _encoding(media: str, settings: dict[str, str]) -> tuple[Encoding, Floats | None]:
    floats = settings.get("floats")
    if floats is not None and floats not in FLOATS:
        raise Refusal("not_acceptable", f"floats are sent as {' or '.join(FLOATS)}, not as '{floats}'")
    if media == JSON:
        return "base64" if settings.get("arrays") == "base64" else "lists", cast("Floats | None", floats)
    return "attached" if media == FRAME else "bytes", cast("Floats | None", floats)


def encode_body(value: Any, media: str) -> list[Buffer]:
    """A structure whose arrays are encoded already, as the pieces of a body, in order."""
    if media == JSON:
        return [_json(value)]
    writer = _writer(media)
    writer.pack(value)
    return writer.pieces()


def encode_with_last(
    sections: Mapping[str, Any], name: str, last: Callable[[], Any], media: str
) -> list[Buffer]:
    """Like `encode_body` with one more member at the end, computed when everything before it is packed."""
    if media == JSON:
        before = memoryview(_json(sections))[:-1]
        comma = b"," if sections else b""
        return [before, comma + _json(name) + b":" + _json(last()) + b"}"]
    writer = _writer(media)
    writer.begin_map(len(sections) + 1)
    for key, section in sections.items():
        writer.pack(key)
        writer.pack(section)
    writer.pack(name)
    writer.pack(last())
    return writer.pieces()


class _MsgpackWriter:
    """Packs a structure into one piece, which is not copied once more."""

    def __init__(self) -> None:
        packer = msgpack.Packer(autoreset=False)
        self.pack = packer.pack
        self.begin_map = packer.pack_map_header
        self._packed = packer.getbuffer

    def pieces(self) -> list[Buffer]:
        return [self._packed()]


def _writer(media: str) -> FrameWriter | _MsgpackWriter:
    return FrameWriter() if media == FRAME else _MsgpackWriter()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def body_size(pieces: Sequence[Buffer]) -> int:
    """How many bytes a body has, as `Content-Length` announces it."""
    return sum(map(len, pieces))


def decode_body(body: Buffer, media: str) -> dict[str, Any]:
    """The structure in a body; its arrays are still in their travelling form, views of a frame.

    Raises:
        Refusal: `malformed_body` with where it breaks off.
    """
    try:
        if media == FRAME:
            value = unpack_frame(body, _unpack)
        else:
            value = _unpack(body) if media == MSGPACK else _parse(bytes(body))
    except RecursionError:
        raise Refusal("malformed_body", "the body is nested too deeply") from None
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        raise Refusal("malformed_body", f"the body must be an object, not {kind}")
    return value


def _parse(body: bytes) -> Any:
    if not body.strip():
        raise Refusal("malformed_body", "the body is empty; it must be a JSON object")
    try:
        return json.loads(body, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Refusal("malformed_body", f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        said = error.msg.removesuffix(" at")
        detail = f"the body is not valid JSON: {said} at line {error.lineno}, column {error.colno}"
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
            detail += "; it seems cut short"
        raise Refusal("malformed_body", detail) from None
    except ValueError as error:  # numbers of more digits than Python converts
        raise Refusal("malformed_body", f"the body is not valid JSON: {str(error).split(';')[0]}") from None


def _no_constant(word: str) -> Any:
    raise Refusal("malformed_body", f'JSON has no {word}; write "{word}", as a string, in arrays')


def _unpack(body: Buffer, **hooks: Any) -> Any:
    try:
        return msgpack.unpackb(body, strict_map_key=True, **hooks)
    except msgpack.ExtraData as error:
        detail = f"the body holds {len(error.extra)} bytes after its msgpack value"
        raise Refusal("malformed_body", detail) from None
    except msgpack.StackError:
        raise Refusal("malformed_body", "the body is nested too deeply") from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        # A header may announce more items than there are bytes left: msgpack calls that exceeding its limits.
        cut = "incomplete" in reason.lower() or "exceeds max_" in reason or not len(body)
        hint = "; it seems cut short" if cut else ""
        raise Refusal("malformed_body", f"the body is not valid msgpack: {reason}{hint}") from None
