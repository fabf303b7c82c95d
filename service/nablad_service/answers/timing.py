"""Where the time of a call went, as it is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timing:
    """`nablad.messages.Timing`, made without checks: in every answer those take longer than its packing."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    compile_ms: float = 0.0
    device_ms: float = 0.0
    encode_ms: float = 0.0
    compiled: bool = False
    together: int = 1

    def header(self) -> str:
        """W3C Server-Timing: milliseconds by phase."""
        return (
            f"decode;dur={self.decode_ms:.3f}, queue;dur={self.queue_ms:.3f}, "
            f"compile;dur={self.compile_ms:.3f}, device;dur={self.device_ms:.3f}, "
            f"encode;dur={self.encode_ms:.3f}"
        )
