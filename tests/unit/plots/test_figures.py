"""Figures: labelled with units, safe at the edges, the same from run to run, and without torch."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kawara import plots
from kawara.plots.calibration import wilson_interval
from kawara.plots.curves import PANELS, training_curve
from kawara.plots.style import CLAY, PAPER, SLATE, Language, shortened


def records(num_steps: int) -> list[dict[str, Any]]:
    journal: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        row = {"event": "train", "step": step, "epoch": step / 10, "progress": step / num_steps, "seconds": 3.0 * step}
        journal.append(row | {"loss": 2.0 / step, "accuracy": 1 - 1 / step, "lr": 1e-3, "images_per_second": 900.0, "memory_bytes": 10**8})
        if step % 10 == 0:
            journal.append({"event": "validation", "step": step, "seconds": 3.0 * step, "top1": 0.9, "nll": 0.3})
    return journal


def renders(figure: Figure) -> str:
    """Draw both ways without a warning; return the text of the SVG."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.to_png(figure, dpi=40).startswith(b"\x89PNG")
        svg = plots.to_svg(figure)
    return " ".join(ElementTree.fromstring(svg).itertext())


def labels(axes: Axes) -> tuple[str, str]:
    return axes.get_xlabel(), axes.get_ylabel()


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("num_steps", [0, 1, 9, 10, 200, 3000])
def test_curves_draw_journals_of_any_length(num_steps: int, language: Language) -> None:
    renders(plots.training_curves(records(num_steps), language=language))


def test_curves_name_their_axes_with_units() -> None:
    loss, accuracy, lr = plots.training_curves(records(100)).axes
    assert labels(loss) == ("epochs", "loss (nats per image)")
    assert labels(accuracy) == ("epochs", "images right (%)")
    assert labels(lr) == ("epochs", "learning rate (× 10⁻³)")
    assert labels(plots.training_curves(records(100), x="minutes").axes[0])[0] == "minutes"


def test_curves_put_validation_at_its_epoch_and_in_percent() -> None:
    accuracy = plots.training_curves(records(30)).axes[1]
    line = next(line for line in accuracy.get_lines() if str(line.get_label()).startswith("validation"))
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [1, 2, 3])
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [90, 90, 90])
    assert "best 90.0 %" in str(line.get_label())


def test_curves_take_missing_and_null_values() -> None:
    journal = records(30)
    for record in journal[::3]:
        record.update(loss=None, accuracy=None, lr=None, epoch=None, seconds=None, nll=None, top1=None)
    journal += [{"event": "train", "step": 31}, {"event": "resumed", "step": 31}, {"event": "train", "step": None}]
    for x in ("epoch", "minutes"):
        renders(plots.training_curves(journal, x=x))


def test_a_step_recorded_twice_counts_once() -> None:
    journal = records(20) + [record | {"loss": 7.0} for record in records(20) if record["step"] > 10]
    line = training_curve(journal, "loss").axes[0].get_lines()[0]
    values = np.asarray(line.get_ydata(), float)
    assert len(values) == 20
    assert (values[10:] == 7.0).all()


def test_long_journals_stay_small() -> None:
    assert all(len(plots.to_svg(training_curve(records(20_000), panel))) < 80_000 for panel in PANELS)


@pytest.mark.parametrize("num_classes", [0, 1, 2, 3, 10, 20, 21, 40, 41, 100, 101, 1000])
def test_confusion_of_any_size(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    matrix = rng.integers(0, 5, (num_classes, num_classes))
    matrix[: num_classes // 2, :] *= rng.integers(0, 2)  # classes without images
    renders(plots.confusion(matrix, [f"class {k}" for k in range(num_classes)]))


def test_confusion_writes_counts_and_names() -> None:
    figure = plots.confusion(np.array([[1234, 0], [7, 89]]), ["ants", "bees"])
    text = renders(figure)
    assert all(word in text for word in ("ants", "bees", "1,234", "89", "true class", "predicted class", "(%)"))
    assert sorted(drawn.get_text() for drawn in figure.axes[0].texts) == ["1,234", "7", "89"]


def test_confusion_of_a_thousand_classes_says_how_many_share_a_cell() -> None:
    figure = plots.confusion(np.eye(1000, dtype=int), [str(k) for k in range(1000)])
    assert labels(figure.axes[0]) == ("predicted class (number, 10 to a cell)", "true class (number, 10 to a cell)")
    assert len(plots.to_svg(figure)) < 100_000


def test_names_are_text_not_formulas_and_long_ones_are_cut() -> None:
    names = ["$x^2$", "<script>alert(1)</script>", "a name that is much too long to stand beside a matrix", "瓦屋根"]
    text = renders(plots.confusion(np.eye(4, dtype=int), names))
    assert "$x^2$" in text
    assert "瓦屋根" in text
    assert "…" in text
    assert shortened("瓦" * 40, 1.0).endswith("…")


@pytest.mark.parametrize("num_images", [0, 1, 2, 500])
@pytest.mark.parametrize("language", ["en", "ja"])
def test_reliability_of_any_number_of_images(num_images: int, language: Language) -> None:
    rng = np.random.default_rng(0)
    renders(plots.reliability(rng.random(num_images), rng.random(num_images) < 0.5, language=language))


def test_reliability_counts_every_image_once_with_confidence_1_included() -> None:
    figure = plots.reliability(np.array([0.05, 0.95, 1.0, 1.0]), np.array([False, True, True, False]))
    upper, lower = figure.axes
    assert [text.get_text() for text in lower.texts] == ["1", "3"]
    assert upper.get_ylabel() == "images right (%)"
    assert lower.get_xlabel().endswith("(%)")


def test_wilson_interval_has_its_known_values() -> None:
    low, high = wilson_interval(np.array([0.5, 0.0, 1.0]), np.array([10, 10, 10]))
    np.testing.assert_allclose(low, [0.2366, 0.0, 0.7225], atol=1e-4)
    np.testing.assert_allclose(high, [0.7634, 0.2775, 1.0], atol=1e-4)


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (plots.to_svg(plots.training_curves(records(50))) for _ in range(2))
    assert first == second


def test_meaning_survives_without_colour() -> None:
    """Slate and clay differ in lightness, and both stand out from the paper (contrast 3 for marks, WCAG 1.4.11)."""
    slate, clay, paper = (_luminance(color) for color in (SLATE, CLAY, PAPER))
    assert (clay + 0.05) / (slate + 0.05) > 1.5
    assert (paper + 0.05) / (clay + 0.05) > 3


def test_drawing_leaves_the_settings_of_matplotlib_alone_and_does_not_load_torch() -> None:
    program = (
        "import sys, matplotlib, numpy as np; before = matplotlib.rcParams.copy()\n"
        "from kawara import plots\n"
        "plots.to_svg(plots.confusion(np.eye(3, dtype=int), list('abc')))\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules), {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def _luminance(color: str) -> float:
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
