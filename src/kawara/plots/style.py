"""The look of every figure: palette, type, sizes, and how a figure becomes SVG or PNG.

Two hues carry meaning everywhere: slate for what is right or expected, clay for what is wrong or worth a look. They differ in
lightness as well as in hue, so that they stay apart for every kind of colour vision and on a grey printer.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Language = Literal["en", "ja"]

INK = "#1f2a33"
MUTED = "#5b6975"
LINE = "#dde3e8"
WASH = "#f3f5f7"
PAPER = "#ffffff"
SLATE = "#34597a"
SLATE_PALE = "#9db6ca"
CLAY = "#c4572c"
CLAY_PALE = "#eab79f"

FONT_PT = 10.0
SMALL_PT = 8.5
POINTS_PER_INCH = 72

_JAPANESE_FONTS = ("Hiragino Sans", "Yu Gothic", "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "Meiryo", "MS Gothic")
_FONTS_OF_THE_READER = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Hiragino Sans', 'Noto Sans CJK JP', 'Noto Sans JP', "
    "'Yu Gothic', Meiryo, sans-serif"
)

_RC: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT_PT,
    "axes.titlesize": FONT_PT + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": FONT_PT - 1,
    "ytick.labelsize": FONT_PT - 1,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.color": INK,
    "font.size": FONT_PT,
    "legend.frameon": False,
    "legend.fontsize": FONT_PT - 1,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: drawn with the reader's own fonts, Japanese ones included
    "svg.hashsalt": "kawara",  # the same figure gives the same bytes
}


@functools.cache
def font_families() -> tuple[str, ...]:
    """Return the fonts to draw and measure with: DejaVu Sans, which comes with matplotlib, and a Japanese one if there is any.

    DejaVu Sans is wide: where its text fits, that of the reader's own font fits too.
    """
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *[name for name in _JAPANESE_FONTS if name in installed][:1])


def has_japanese_font() -> bool:
    """Say whether Japanese can be drawn into a PNG here; an SVG is drawn by its reader."""
    return len(font_families()) > 1


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of the house while the context lasts."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    settings: Any = _RC | {"font.family": list(font_families())}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A machine without Japanese fonts measures those glyphs wrongly; the SVG still shows them with the reader's fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure that renders without a display."""
    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left_in: float, bottom_in: float, width_in: float, height_in: float) -> Axes:
    """Add axes at a place given in inches from the lower left corner.

    Places in inches, not found by measuring text: the measure would change with the fonts of the machine.
    """
    width, height = figure.get_size_inches()
    return figure.add_axes((left_in / width, bottom_in / height, width_in / width, height_in / height))


def text_width_in(text: str, size_pt: float = FONT_PT) -> float:
    """Return about how wide a line of text is, in inches: 0.6 em a letter, 1 em an East Asian wide one."""
    return sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.6 for letter in text) * size_pt / POINTS_PER_INCH


def shortened(text: str, width_in: float, size_pt: float = FONT_PT) -> str:
    """Return `text`, cut with an ellipsis to fit into `width_in`. `$` is escaped: names are no formulas."""
    if text_width_in(text, size_pt) > width_in:
        while text and text_width_in(text + "…", size_pt) > width_in:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text.replace("$", r"\$")


def nothing_to_draw(axes: Axes, message: str) -> None:
    """Say in an empty panel why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def to_svg(figure: Figure, *, image_dpi: int = POINTS_PER_INCH) -> str:
    """Return the figure as one SVG element, text as text in the fonts of whoever reads it; photos have `image_dpi` pixels an inch."""
    buffer = io.StringIO()
    with house_style():
        figure.savefig(buffer, format="svg", dpi=image_dpi, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("</style>", f"text{{font-family: {_FONTS_OF_THE_READER} !important}}</style>", 1)
    return re.sub(r"<[^>]*>", lambda tag: _slimmed(tag[0]), svg)


def to_png(figure: Figure, *, dpi: int = 144) -> bytes:
    """Return the figure as PNG."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _slimmed(tag: str) -> str:
    """Return a tag without the names of our fonts, with two decimals: a hundredth of a point is finer than any screen."""
    return re.sub(r"(\.\d{2})\d+", r"\1", re.sub(r"font-family: '[^;\"]*; ?", "", tag))
