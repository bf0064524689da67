"""The page of a run: one file, two languages, nothing from outside, nobody's names taken for markup."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kawara.report.page import image_source
from kawara.report.run_page import RunSummary, Sample, run_page, write_run_page

EVIL = "<script>alert('瓦')</script>\"&amp;"
VOID = {"meta", "input", "img", "br", "hr", "link"}


class Reader(HTMLParser):
    """Collect tags, attributes and text, and check that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def summary(
    num_classes: int = 10, num_images: int = 180, *, image_px: int = 8, names: tuple[str, ...] | None = None, **changes: Any
) -> RunSummary:
    rng = np.random.default_rng(0)
    names = names or tuple(f"class {k}" for k in range(num_classes))
    labels = rng.integers(0, num_classes, num_images)
    predicted = np.where(rng.random(num_images) < 0.9, labels, rng.integers(0, num_classes, num_images))
    matrix = np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
    right = predicted == labels
    images = rng.integers(0, 256, (36, image_px, image_px, 3), dtype=np.uint8)
    samples = [
        Sample(image, f"photos/{k}.jpg", names[k % num_classes], names[(k + 1) % num_classes], 0.8) for k, image in enumerate(images)
    ]
    top1 = float(right.mean()) if num_images else None
    made = RunSummary(
        title="photos",
        data_description="photos, 1,797 images",
        split_sizes={"train": 1437, "val": 180, "test": 180},
        skipped=[("photos/broken.jpg", "truncated")],
        class_names=names,
        model_name="vit_pico_conv_2",
        num_parameters=412_362,
        macs=18_300_000,
        image_size=(8, 8),
        recipe="small",
        reason="images of 8 px are used at 8 px",
        config_yaml="seed: 0\n",
        environment={"python": "3.11", "packages": {"torch": "2.13", "simplejpeg": None}},
        records=[{"event": "train", "step": 1, "epoch": 0.1, "seconds": 1.0, "loss": 2.3, "accuracy": 0.1, "lr": 1e-3}],
        evaluated_split="test",
        metrics={
            "num_images": num_images,
            "top1": top1,
            "top1_ci95": [0.8, 0.95],
            "top5": 0.99,
            "top5_ci95": [0.98, 1.0],
            "nll": 0.3,
            "ece": 0.02,
        },
        confusion=matrix,
        per_class=[
            {"class": name, "num_images": int(row.sum()), "recall": None, "precision": 0.5, "mostly_confused_with": None}
            for name, row in zip(names, matrix)
        ],
        confidence=rng.random(num_images),
        right=right,
        mistakes=samples[:12],
        doubtful=samples[12:24],
        correct=samples[24:],
        seconds=74.0,
        images_per_second=10_000.0,
        peak_memory_bytes=5e8,
        model_path="runs/photos-1/model.safetensors",
        commands=["kawara models"],
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def page() -> str:
    return run_page(summary())


def test_nothing_comes_from_outside(page: str) -> None:
    assert not re.search(r"https?:|url\(|@import", re.sub(r"data:image/[^\"]*", "", page))
    for tag, attributes in read(page).tags:
        assert tag not in {"link", "iframe", "object", "embed"}
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_names_from_the_user_are_text() -> None:
    evil = summary(
        2,
        names=(EVIL, "bees"),
        title=EVIL,
        data_description=EVIL,
        skipped=[(EVIL, EVIL)],
        model_name=EVIL,
        recipe=EVIL,
        reason=EVIL,
        config_yaml=EVIL,
        environment={EVIL: EVIL, "packages": {EVIL: EVIL}},
        evaluated_split=EVIL,
        split_sizes={EVIL: 3},
        model_path=f"runs/{EVIL}/model.safetensors",
        commands=[EVIL],
    )
    page = run_page(evil)
    assert page.count("<script>") == 1  # ours
    assert "<script>alert" not in page
    assert EVIL in "".join(read(page).text)


def test_both_languages_say_the_same_thing(page: str) -> None:
    reader = read(page)
    text = "".join(reader.text)
    top1 = float(summary().metrics["top1"])
    assert f"{100 * top1:.1f}\N{NO-BREAK SPACE}% of 180 test images right" in text
    assert f"テスト画像180枚のうち{100 * top1:.1f}%が正解" in text
    spans = [attributes.get("lang") for tag, attributes in reader.tags if tag in {"span", "img"}]
    assert spans.count("en") == spans.count("ja") > 60


def test_language_switch_needs_no_script(page: str) -> None:
    reader = read(page)
    radios = [attributes["id"] for tag, attributes in reader.tags if tag == "input" and attributes.get("type") == "radio"]
    assert radios == ["language-en", "language-ja"]
    assert [attributes["for"] for tag, attributes in reader.tags if tag == "label"] == radios


def test_identifiers_are_unique_and_images_have_words(page: str) -> None:
    reader = read(page)
    identifiers = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img")


def test_chance_and_commonest_class_are_told() -> None:
    matrix = np.array([[90, 0], [5, 5]])
    text = "".join(read(run_page(summary(2, 100, confusion=matrix))).text)
    assert "guessing: 50.0" in text
    assert "always the commonest class: 90.0" in text


def test_caution_where_the_measured_images_chose_the_weights(page: str) -> None:
    assert "bright side" not in page
    cautious = run_page(summary(selected_on_evaluated_split=True))
    assert "bright side" in cautious
    assert "楽観的" in cautious


@pytest.mark.parametrize(("num_classes", "num_images"), [(1, 5), (2, 1), (2, 0), (5, 40), (21, 400), (1000, 3000)])
def test_any_number_of_classes_and_images(num_classes: int, num_images: int) -> None:
    page = run_page(summary(num_classes, num_images))
    read(page)
    assert len(page) < 2_000_000


def test_what_is_not_known_is_left_out() -> None:
    page = run_page(
        summary(
            macs=None,
            seconds=None,
            images_per_second=None,
            peak_memory_bytes=None,
            records=[],
            metrics={"num_images": 180, "top1": 0.9, "top1_ci95": None, "nll": None},
            mistakes=[],
            doubtful=[],
            correct=[],
            skipped=[],
            commands=[],
            environment={},
            reason="",
        )
    )
    assert "None" not in "".join(read(page).text)
    assert "Images to look at" not in page


def test_large_photos_and_long_lists_stay_under_two_megabytes(tmp_path: Path) -> None:
    skipped = [(f"photos/{k}.jpg", "truncated") for k in range(100_000)]
    path = tmp_path / "report.html"
    write_run_page(path, summary(image_px=400, skipped=skipped))
    assert path.stat().st_size < 2_000_000
    assert "100,000 files were left out" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_small_images_keep_their_pixels() -> None:
    image = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8, 1)
    shown = image_source(image)
    assert shown["is_small"]
    content = base64.b64decode(shown["source"].removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), image[:, :, 0])


def test_the_same_run_gives_the_same_page(page: str) -> None:
    assert run_page(summary()) == page
