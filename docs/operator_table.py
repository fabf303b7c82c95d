"""The operator table as Markdown, from the rows that the server uses.

python docs/operator_table.py        # rewrite it in README.md
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from nablad_service.routes.operators import operator_table

README = Path(__file__).parent.parent / "README.md"
MARKS = re.compile(r"(<!-- operators -->\n).*?(<!-- /operators -->)", re.DOTALL)


def markdown() -> str:
    """One table a family: the call, and what it is."""
    lines = []
    for family, rows in itertools.groupby(operator_table(), key=lambda operator: operator.family):
        lines += ["", f"| {family} | |", "| --- | --- |"]
        for operator in rows:
            also = f" (also `{'`, `'.join(operator.aliases)}`)" if operator.aliases else ""
            doc = operator.doc.replace("|", "\\|")
            lines.append(f"| `{operator.signature}` | {doc}{also} |")
    return "\n".join([*lines, ""]) + "\n"


def rewritten(text: str) -> str:
    """`text` with the table between its marks made anew."""
    return MARKS.sub(lambda found: found[1] + markdown() + found[2], text)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
