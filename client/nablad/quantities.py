"""Numbers with units, as people read them."""

from __future__ import annotations


def scaled(number: float, unit: str) -> str:
    """`49.7 Mflop`, `2 GB`: four digits and a prefix, in steps of a thousand."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.95:
            return f"{number:.4g} {prefix}{unit}"
        number /= 1000
    return f"{number:.4g} P{unit}"
