"""Numbers with units, as people read them."""

from __future__ import annotations


def scaled(number: float, unit: str) -> str:
    """`49.7 Mflop`: four digits and a prefix."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:6.4g} {prefix}{unit}"
        number /= 1000
    return f"{number:6.4g} P{unit}"
