"""The numbers of the handbook are computed, in both languages: what a page says is what the code does."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kawara.analysis.cost import count_parameters, vit_macs
from kawara.layers.attention import SelfAttention
from kawara.layers.convolution import SpatialAttention, SqueezeExcitation, convolution, squeezed_channels
from kawara.models import MODELS

DOCS = Path(__file__).resolve().parents[2] / "docs"
LAYERS = DOCS.parent / "src" / "kawara" / "layers"
PAGES = [DOCS / "handbook" / "attention.md", DOCS / "ja" / "handbook" / "attention.md"]
SIDE, WIDTH, HEADS = 14, 192, 3

chapter = pytest.mark.parametrize("text", [page.read_text(encoding="utf-8") for page in PAGES], ids=["en", "ja"])


def cost(layer: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    """Parameters, and multiply-accumulates as the counter of torch sees them."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(inputs)
    return count_parameters(layer), counter.get_total_flops() // 2


@chapter
def test_the_table_of_costs(text: str) -> None:
    maps, tokens = torch.randn(1, WIDTH, SIDE, SIDE), torch.randn(1, SIDE * SIDE, WIDTH)
    attention = SelfAttention(WIDTH, HEADS)
    attention.fused = False
    costs = [
        cost(SqueezeExcitation(WIDTH, squeezed_channels(WIDTH, 16)), maps),
        cost(SpatialAttention(7), maps),
        cost(attention, tokens),
    ]
    hidden, places = squeezed_channels(WIDTH, 16), SIDE * SIDE
    assert costs == [
        (2 * WIDTH * hidden + hidden + WIDTH, 2 * WIDTH * hidden),
        (2 * 7**2 + 1, 2 * 7**2 * places),
        (4 * WIDTH**2 + 4 * WIDTH, 4 * places * WIDTH**2 + 2 * places**2 * WIDTH),
    ]
    assert " | ".join(f"{parameters:,}; {macs:,}" for parameters, macs in costs) in text
    for number in (*cost(convolution(WIDTH, WIDTH, 3), maps), maps.numel()):
        assert f"{number:,}" in text


@chapter
def test_where_the_products_overtake(text: str) -> None:
    for name, width in (("Ti", 192), ("S", 384), ("B", 768)):
        side = 16 * math.ceil(math.sqrt(6 * width))
        assert f"| {width} ({name}) | {6 * width:,} | {side:,} px |" in text
    for side in (14, 28, 56):
        tokens = side * side
        linear, products = (f"{macs / 1e6:,.1f} M" for macs in (4 * tokens * WIDTH**2, 2 * tokens**2 * WIDTH))
        assert f"| {side} × {side} | {tokens:,} | {linear} | {products} |" in text
    tiny = MODELS["vit_tiny_16"].config
    shares = [2 * 12 * tokens**2 * WIDTH for tokens in (197,)]
    outside = 196 * 3 * 16**2 * WIDTH + WIDTH * tiny.num_classes
    assert round(100 * shares[0] / (vit_macs(tiny) - outside)) == 15
    assert re.search(r"15 ?%", text)


@torch.no_grad()
def test_what_each_kind_cannot_do() -> None:
    torch.manual_seed(0)
    maps, order = torch.randn(1, 8, 5, 5, dtype=torch.float64), torch.randperm(25)
    shuffled = maps.flatten(2)[:, :, order].unflatten(2, (5, 5))
    squeeze, spatial, attention = SqueezeExcitation(8, 4).double(), SpatialAttention(3).double(), SelfAttention(8, 2).double()
    gates = squeeze.gates(maps.mean(dim=(2, 3)))
    torch.testing.assert_close(squeeze.gates(shuffled.mean(dim=(2, 3))), gates)  # z forgets the places
    torch.testing.assert_close(spatial.gates(maps[:, torch.randperm(8)]), spatial.gates(maps))  # mean and maximum forget the channels
    assert not torch.allclose(spatial.gates(shuffled).flatten(), spatial.gates(maps).flatten()[order])
    tokens = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(attention(tokens[:, order]), attention(tokens)[:, order])  # it knows no neighbours
    assert count_parameters(SelfAttention(8, 4)) == count_parameters(attention)  # heads cost none


@chapter
def test_the_snippet_prints_what_is_shown(text: str) -> None:
    match = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert match
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.random.fork_rng():
        exec(match[1], {})
    shown, said = ([float(number) for number in re.findall(r"\d+\.?\d*", each)] for each in (match[2], printed.getvalue()))
    assert said == pytest.approx(shown, rel=0.02, abs=0.01)


@chapter
def test_quoted_lines_stand_in_the_code(text: str) -> None:
    code = "".join((LAYERS / name).read_text(encoding="utf-8") for name in ("attention.py", "convolution.py"))
    quoted = re.findall(r"^(?:return|scores) .*$", text, re.MULTILINE)
    assert len(quoted) == 4
    for line in quoted:
        assert line in code


def test_both_languages_show_the_same_formulas_and_pictures() -> None:
    english, japanese = (page.read_text(encoding="utf-8") for page in PAGES)
    pictures = re.findall(r"images/(attention-\w+)-en\.png", english)
    assert len(pictures) == 4
    assert pictures == re.findall(r"images/(attention-\w+)-ja\.png", japanese)
