"""What can be read: the contrast of the page's colours, texts that fit, charts of odd data."""

import re

import numpy as np
import pytest

from ds_moe_mtl.analysis.page.charts import Line, curves, intervals, shares
from ds_moe_mtl.analysis.page.course import half_life, smoothed
from ds_moe_mtl.analysis.page.heat import LEVELS
from ds_moe_mtl.analysis.page.render import style_sheet
from ds_moe_mtl.analysis.page.scores import Estimate
from ds_moe_mtl.analysis.page.svg import SLOTS, axis, fitted
from tests.support.pages import Parsed

TEXT, GRAPHICS = 4.5, 3.0  # WCAG 2.1, level AA: 1.4.3 and 1.4.11


def colours(mode):
    """Return the page's colours by name as [red, green, blue] in 0..1; mode 0 light, 1 dark."""
    pairs = re.findall(r"--(\w+):light-dark\(#(\w+),#(\w+)\)", style_sheet())
    found = {}
    for name, *values in pairs:
        digits = values[mode]
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        found[name] = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return found


def contrast(one, other):
    """Return the contrast ratio of two colours, as WCAG 2.1 defines it."""
    lights = []
    for colour in (one, other):
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_contrast_is_that_of_the_standards_own_example():
    assert contrast(np.zeros(3), np.ones(3)) == pytest.approx(21)
    assert contrast(np.full(3, 0x77 / 255), np.ones(3)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_texts_and_lines_stand_out_from_what_is_behind_them(mode):
    found = colours(mode)
    for text in ("ink", "muted", "link", "good", "bad"):
        for behind in ("paper", "soft"):
            assert contrast(found[text], found[behind]) >= TEXT, (text, behind)
    for slot in range(SLOTS):
        assert contrast(found[f"s{slot}"], found["paper"]) >= GRAPHICS, slot
    for whole in ("full", "below"):
        for step in range(LEVELS + 1):
            share = (100 * step // LEVELS) / 100
            behind = share * found[whole] + (1 - share) * found["paper"]
            assert contrast(found["ink"], behind) >= TEXT, (whole, step)


def test_a_long_text_keeps_its_beginning_and_its_end_and_fits():
    assert fitted("short", 100) == "short"
    cut = fitted("a_very_long_name_of_a_task_that_ends_in_17", 150)
    assert len(cut) < 22 and cut.startswith("a_very") and cut.endswith("17") and "…" in cut
    assert len(fitted("漢" * 40, 150)) < 14


def test_axes_of_one_value_and_charts_of_one_step_are_finite():
    for values in ([0.0], [5.0, 5.0], [-1e-9], [1e6]):
        found = axis(values, 10, 90)
        assert found.low < found.high and 10 <= found.at(values[0]) <= 90
    one = np.array([3]), np.array([0.5])
    charts = [
        curves("one", [Line("run", 0, *one, one[1])]),
        shares("one", one[0], np.array([[0.25, 0.75]])),
        intervals("one", [("task", [(0, "run", Estimate(50.0))])], zero=True),
    ]
    for chart in charts:
        assert "nan" not in chart and "inf" not in chart
    assert "circle" in charts[0] and "<path" not in charts[0]  # a point, as there is no line


def test_charts_escape_what_they_name():
    name = '"><script>alert(1)</script>'
    chart = intervals(name, [(name, [(0, name, Estimate(1.0, 0.0, 2.0))])], zero=False)
    page = Parsed(str(chart))
    assert not page.of("script") and page.of("svg")[0]["aria-label"] == name


def test_the_smooth_line_is_a_mean_that_begins_with_the_first_value():
    values = np.array([4.0, 0.0, 0.0])
    np.testing.assert_allclose(smoothed(values, 1.0), [4, 4 / 3, 4 / 7])
    np.testing.assert_allclose(smoothed(np.full(50, 2.5), half_life(50)), 2.5)
