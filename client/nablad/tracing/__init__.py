"""Python loss functions as text of the loss language."""

from nablad.tracing.errors import TraceError
from nablad.tracing.program import Traced, trace

__all__ = ["TraceError", "Traced", "trace"]
