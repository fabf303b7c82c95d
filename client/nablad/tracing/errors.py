"""What the tracer raises."""

from collections.abc import Iterable
from difflib import get_close_matches


class TraceError(TypeError):
    """The Python function cannot be written in the loss language; the message says what to write instead."""


class UnknownAttributeError(TraceError, AttributeError):
    """A traced value was asked for an attribute it lacks; also an AttributeError, so that hasattr works."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `known` as a phrase for a message: the names closest to `word`, or all where none is close."""
    by_last_word = {name.rpartition(".")[2]: name for name in sorted(known)}
    close = get_close_matches(word, by_last_word, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(by_last_word[name] for name in close)}"
    return f"known: {', '.join(by_last_word.values()) or 'none'}"
