"""The picture of a plan: well-formed, complete, and inside its frame."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from nablad.plans import Candidate, DerivativeReport, PlanReport

SVG = "{http://www.w3.org/2000/svg}"


def derivative(
    *candidates: Candidate, text: str = "laplacian(u, x)", reason: str = "why"
) -> DerivativeReport:
    chosen = next(one.strategy for one in candidates if one.chosen)
    return DerivativeReport(2, 6, text, "laplacian", "x", 2, chosen, reason, candidates)


def report(*derivatives: DerivativeReport, measured: bool, milliseconds: float | None = None) -> PlanReport:
    caution = {"line": 3, "column": 1, "text": "norm(x)", "message": "where this is zero: " + "advice " * 40}
    return PlanReport(2e6, 4096, milliseconds, derivatives, (caution,), measured)


TIMED = report(
    derivative(
        Candidate("forward", True, 2e6, 4096, 0.5),
        Candidate("reverse", False, 4e6, 8192, 1.0),
        Candidate("scan", False, 8e6, 1024, None, "not timed: it counts more operations"),
        Candidate("folx", False, None, None, None, "cannot be traced: x < 3 & y"),
        reason="fastest when timed",
    ),
    measured=True,
    milliseconds=0.5,
)
COUNTED = report(
    derivative(Candidate("forward", True, 1e6, 4096, None), Candidate("reverse", False, 4e6, 8192, None)),
    derivative(
        Candidate("forward", True, 1e6, 4096, None), text='grad(where(x < "&", x, ' + "sin(x) + " * 50
    ),
    measured=False,
)
NOTHING = report(measured=False)


def read(plan: PlanReport) -> ElementTree.Element:
    return ElementTree.fromstring(plan.svg())


def words(plan: PlanReport) -> list[str]:
    return ["".join(one.itertext()) for one in read(plan).iter(f"{SVG}text")]


def bars(plan: PlanReport) -> list[float]:
    kinds = ("bar", "best")
    return [float(one.attrib["width"]) for one in read(plan).iter(f"{SVG}rect") if one.get("class") in kinds]


def test_every_candidate_is_there_with_its_figures_or_the_reason_for_having_none() -> None:
    found = words(TIMED)
    for word in ("line 2", "laplacian(u, x)", "forward", "reverse", "scan", "folx", "4 Mflop", "8.192 kB"):
        assert word in found
    for word in ("0.50 ms", "1.00 ms", "fastest when timed", "not timed: it counts more operations"):
        assert word in found
    assert "cannot be traced: x < 3 & y" in found
    assert sum("caution" in word for word in found) == 1


def test_bars_are_as_long_as_what_was_measured_else_counted() -> None:
    chosen, other = bars(TIMED)
    assert other == 2 * chosen
    assert [round(one / bars(COUNTED)[0]) for one in bars(COUNTED)] == [1, 4, 1]


@pytest.mark.parametrize("plan", [TIMED, COUNTED, NOTHING], ids=["timed", "counted", "nothing"])
def test_all_marks_are_inside_the_frame(plan: PlanReport) -> None:
    root = read(plan)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    lines = [(float(one.attrib["x"]), float(one.attrib["y"])) for one in root.iter(f"{SVG}text")]
    assert all(0 < x < width and 0 < y < height for x, y in lines)
    assert len(lines) == len(set(lines))
    for one in root.iter(f"{SVG}rect"):
        assert float(one.get("x", 0)) + float(one.attrib["width"]) <= width


def test_it_has_colours_for_both_kinds_of_page_and_asks_nobody_for_anything() -> None:
    svg = TIMED.svg()
    assert "prefers-color-scheme:dark" in svg
    assert svg.count("http") == 1  # the namespace
    assert TIMED._repr_svg_() == svg
