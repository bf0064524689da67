"""`kawara check` and the gate before training, on files with every fault there is; real photos where they are at hand."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kawara import verbs
from kawara.cli import main
from kawara.errors import DataError
from kawara.training.progress import Reporter

NUM_GOOD = 12


def scene(seed: int, height: int = 72, width: int = 96) -> Image.Image:
    """A picture of smooth random blobs that no other seed gives."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def odd_files() -> dict[str, tuple[str, bytes]]:
    """File name -> (kind of finding, content)."""
    picture = scene(1000)
    exif = Image.Exif()
    exif[0x112] = 6
    alpha = scene(1001)
    alpha.putalpha(Image.new("L", alpha.size, 120))
    wide = Image.fromarray(np.asarray(scene(1002).convert("L")).astype(np.uint16) * 257)
    jpeg = encoded(scene(1003), "JPEG")
    bomb = encoded(Image.new("1", (14_000, 14_000)), "PNG")
    return {
        "empty.jpg": ("empty", b""),
        "cut.jpg": ("truncated", jpeg[: len(jpeg) * 6 // 10]),
        "cut.png": ("truncated", encoded(picture, "PNG")[:-400]),
        "page.jpg": ("not-an-image", b"<!DOCTYPE html><html><body>404</body></html>"),
        "zeros.jpg": ("not-an-image", bytes(500)),
        "pointer.png": ("not-an-image", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
        "phone.heic": ("unsupported", b"\0\0\0\x18ftypheic" + bytes(40)),
        "bomb.png": ("too-large", bomb),
        "noise.gif": ("not-an-image", bytes(range(1, 200))),
        "notes.txt": ("other-file", b"bring milk"),
        "turned.jpg": ("rotated", encoded(scene(1004), "JPEG", exif=exif)),
        "print.jpg": ("cmyk", encoded(scene(1005).convert("CMYK"), "JPEG")),
        "deep.png": ("more-than-8-bits", encoded(wide, "PNG")),
        "palette.png": ("palette", encoded(scene(1006).quantize(32), "PNG")),
        "glass.png": ("transparent", encoded(alpha, "PNG")),
        "old.jpg": ("grey", encoded(scene(1007).convert("L"), "JPEG")),
        "film.gif": ("animated", encoded(scene(1008), "GIF", save_all=True, append_images=[scene(1009)])),
        "pages.tiff": ("several-pages", encoded(scene(1010), "TIFF", save_all=True, append_images=[scene(1011)])),
        "actually_png.jpg": ("wrong-suffix", encoded(scene(1012), "PNG")),
        "dot.png": ("tiny", encoded(scene(1013, 4, 5), "PNG")),
        "black.png": ("blank", encoded(Image.new("RGB", (64, 64)), "PNG")),
        "猫 の写真.png": ("not-ascii", encoded(scene(1014), "PNG")),
        ".DS_Store": ("hidden", b"\0\0\0\1Bud1"),
        "LOUD.png": ("paths-collide", encoded(scene(1015), "PNG")),
        "loud.png": ("paths-collide", encoded(scene(1016), "PNG")),
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A data set with parts in which everything is wrong that can be."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    for position, (split, count) in enumerate((("train", NUM_GOOD), ("val", 6), ("test", 6))):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for row in range(count):
                scene(100 * position + row + 50 * (label == "dog")).save(folder / f"{row:02}.png")
    for name, (_, content) in odd_files().items():
        (root / "train" / "cat" / name).write_bytes(content)
    (root / "train" / "cat" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "train" / "dog" / "loop.jpg").symlink_to(root / "train" / "dog" / "loop.jpg")
    (root / "train" / "dog" / "deeper").mkdir()
    scene(2000).save(root / "train" / "dog" / "deeper" / "a.png")
    scene(2001).save(root / "outside.png")
    scene(2002).save(root / "train" / "loose.png")
    (root / "train" / "bird").mkdir()
    for seed in range(3):
        folder = root / "train" / "Dog "
        folder.mkdir(exist_ok=True)
        scene(2010 + seed).save(folder / f"{seed}.png")
    (root / "test" / "cat" / "copy.png").write_bytes((root / "train" / "cat" / "00.png").read_bytes())
    (root / "train" / "dog" / "label.png").write_bytes((root / "train" / "cat" / "01.png").read_bytes())
    scene(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((60, 45)).save(root / "val" / "cat" / "near.jpg", quality=50)
    (root / "test" / "dog" / "cut.jpg").write_bytes(odd_files()["cut.jpg"][1][:-10])
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KAWARA_CACHE", str(tmp_path / "cache"))


def paths_of(found: verbs.Check) -> dict[str, set[str]]:
    return {finding.kind: {item.path for item in finding.items} for finding in found.gate.findings if finding.items}


def test_every_fault_is_listed_by_path_and_for_the_right_reason(hostile):
    found = verbs.check(hostile)
    paths = paths_of(found)
    for name, (kind, _) in odd_files().items():
        if name != "LOUD.png":  # one of the two is named, beside the other
            assert f"train/cat/{name}" in paths[kind], (name, kind)
    assert paths["broken-link"] == {"train/cat/gone.jpg", "train/dog/loop.jpg"}
    assert paths["misplaced"] == {"outside.png", "train/loose.png"}
    assert paths["nested"] == {"train/dog/deeper"}
    assert paths["class-empty"] == {"train/bird"}
    assert paths["class-small"] == {"Dog "}
    assert paths["class-names-collide"] == {"dog"}
    assert paths["class-only-in-train"] == {"Dog "}
    assert paths["truncated"] == {"train/cat/cut.jpg", "train/cat/cut.png", "test/dog/cut.jpg"}
    assert len(paths) >= 25


def test_nothing_else_is_said_of_the_good_files(hostile):
    found = verbs.check(hostile)
    good = {f"{split}/{label}/{row:02}.png" for split in ("train", "val", "test") for label in ("cat", "dog") for row in range(6)}
    assert not good & set().union(*paths_of(found).values())


def test_copies_are_found_across_parts_and_classes(hostile):
    found = verbs.check(hostile)
    copies = {finding.kind: [{member.path for member in each.members} for each in finding.copies] for finding in found.gate.findings}
    assert copies["same-two-splits"] == [{"train/cat/00.png", "test/cat/copy.png"}]
    assert copies["same-two-classes"] == [{"train/cat/01.png", "train/dog/label.png"}]
    assert copies["near-two-splits"] == [{"train/cat/02.png", "val/cat/near.jpg"}]
    (near,) = next(finding.copies for finding in found.gate.findings if finding.kind == "near-two-splits")
    assert near.is_mirrored


def test_every_file_is_used_or_quarantined(hostile):
    gate = verbs.check(hostile).gate
    visible = [path for path in hostile.rglob("*") if not path.name.startswith(".") and (path.is_symlink() or not path.is_dir())]
    assert gate.num_files == len(visible)
    assert gate.num_images + len(gate.quarantined) == gate.num_files
    assert {file.path for file in gate.quarantined} <= {path.relative_to(hostile).as_posix() for path in visible}


def test_the_denominator_of_the_accuracy_is_the_files_less_those_quarantined(hostile, tmp_path):
    request = verbs.TrainRequest(
        data=str(hostile), out=str(tmp_path / "run"), model="vit_nano_8", length="2 steps", image_size=32, device="cpu"
    )
    said = io.StringIO()
    with Reporter(console=console_to(said)) as reporter:
        result = verbs.run_training(request, reporter)
    with (tmp_path / "run" / "quarantine.csv").open(encoding="utf-8") as file:
        quarantined = list(csv.DictReader(file))
    in_test = [row for row in quarantined if row["split"] == "test"]
    assert in_test == [{"path": "test/dog/cut.jpg", "kind": "truncated", "reason": in_test[0]["reason"], "class": "dog", "split": "test"}]
    files_in_test = sum(1 for path in (hostile / "test").rglob("*") if path.is_file())
    assert result.split == "test"
    assert result.metrics["num_images"] == files_in_test - len(in_test) == 13
    assert result.skipped == len(quarantined)
    found = json.loads((tmp_path / "run" / "check.json").read_text(encoding="utf-8"))
    assert (found["num_files"], found["num_quarantined"]) == (result.num_files, result.skipped)
    assert found["num_images"] == sum(count for count in split_sizes(result).values())
    assert "warning: Same file in two parts of the data: 1" in said.getvalue()
    assert f"{len(quarantined)} are quarantined" in said.getvalue()


def split_sizes(result: verbs.TrainResult) -> dict[str, int]:
    from kawara import load

    return load(result.model_path).card.data["splits"]


def console_to(stream: io.StringIO):
    from rich.console import Console

    return Console(file=stream, highlight=False, soft_wrap=True)


def test_strict_stops(hostile, tmp_path, capsys):
    assert main(["check", str(hostile)]) == 0
    assert main(["check", str(hostile), "--strict"]) == 2
    assert main(["train", str(hostile), "--strict", "--out", str(tmp_path / "run"), "--steps", "1"]) == 2
    assert "--strict allows none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError), Reporter(quiet=True) as reporter:
        verbs.run_training(verbs.TrainRequest(data=str(hostile), out=str(tmp_path / "run"), check="strict"), reporter)


def test_a_clean_data_set_passes_strictly_and_in_silence(tmp_path, capsys):
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for seed in range(20):
            scene(seed + 100 * (label == "b")).save(tmp_path / "data" / label / f"{seed}.jpg")
    assert main(["check", str(tmp_path / "data"), "--strict", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"error": 0, "warning": 0, "note": 0}
    assert found["near_search"] == "done"


def test_the_second_check_decodes_nothing(hostile, monkeypatch):
    first = verbs.check(hostile)
    monkeypatch.setattr("kawara.data.cache.decode", None)
    assert verbs.check(hostile).gate == first.gate


def test_the_page_has_pictures_and_no_markup_of_the_files(hostile, tmp_path, capsys):
    hostile_name = '<img src=x onerror=alert(1)>"&.png'
    data = tmp_path / "data"
    shutil.copytree(hostile, data, symlinks=True)
    (data / "train" / "cat" / hostile_name).write_bytes(encoded(scene(3000).quantize(16), "PNG") + b"<script>alert(2)</script>")
    assert main(["check", str(data), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "alert(2)" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:image/|#)', page)
    assert "ほぼ同じ画像が複数の分割にある" in page
    assert page.count("data:image/") > 15
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["check.json", "quarantine.csv", "report.html"]


def test_without_out_nothing_is_written(hostile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(hostile.rglob("*"))
    assert main(["check", str(hostile)]) == 0
    assert sorted(hostile.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_what_training_refuses_is_said_and_not_raised(tmp_path):
    for folder in ("train/a", "train/b", "val/a", "val/c"):
        (tmp_path / folder).mkdir(parents=True)
        for seed in range(6):
            scene(hash(folder) % 1000 + seed).save(tmp_path / folder / f"{seed}.png")
    (tmp_path / "train" / "d").mkdir()
    (tmp_path / "train" / "d" / "x.jpg").write_bytes(b"")
    found = verbs.check(tmp_path)
    kinds = {finding.kind: [item.path for item in finding.items] for finding in found.gate.findings}
    assert kinds["class-unusable"] == ["d"]
    assert kinds["class-not-in-train"] == ["c"]
    assert kinds["class-only-in-train"] == ["b"]


def test_names_that_are_no_text_can_be_printed(tmp_path):
    for label in (b"a", b"\x8b\x9d\x1b[31m"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"data", label))
        for seed in range(6):
            with open(os.path.join(os.fsencode(tmp_path), b"data", label, b"\x94L%d.png" % seed), "wb") as file:
                file.write(encoded(scene(seed + 10 * len(label)), "PNG"))
    found = verbs.check(tmp_path / "data", out=tmp_path / "page")
    assert found.gate.num_images == 12
    assert "\\x1b" in found.class_names[0]


def test_a_model_finds_labels_that_were_exchanged(tmp_path):
    for label, offset in (("day", 170), ("night", 20)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for seed in range(30):
            pixels = np.asarray(scene(seed + 500 * (label == "day"), 32, 32)).astype(np.int16) // 4 + offset
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "data" / label / f"{seed}.png")
    (tmp_path / "data" / "day" / "3.png").rename(tmp_path / "data" / "night" / "moved.png")
    request = verbs.TrainRequest(data=str(tmp_path / "data"), out=str(tmp_path / "run"), model="vit_nano_8", length="3 steps", device="cpu")
    with Reporter(quiet=True) as reporter:
        trained = verbs.run_training(request, reporter)
    found = verbs.check(tmp_path / "data", model=trained.model_path)
    (suspects,) = [finding for finding in found.gate.findings if finding.kind == "label-suspect"]
    assert suspects.items[0].path == "night/moved.png"
    assert suspects.items[0].detail.startswith("night; looks like day")


def test_real_odd_files_among_real_photos(shared, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(shared / "data" / "hymenoptera" / split, tmp_path / "data" / split)
    for file in (shared / "data" / "odd").iterdir():
        shutil.copy(file, tmp_path / "data" / "train" / "ants" / f"odd-{file.name}")
    found = verbs.check(tmp_path / "data")
    paths = {kind: {path.rpartition("odd-")[2] for path in files if "odd-" in path} for kind, files in paths_of(found).items()}
    assert paths["empty"] == {"empty.jpg"}
    assert paths["truncated"] == {"truncated_60pct.jpg"}
    assert paths["not-an-image"] == {"broken.png"}
    assert paths["cmyk"] == {"cmyk_reencoded.jpg"}
    assert paths["wrong-suffix"] == {"png_named_as.jpg"}
    assert paths["animated"] == {"chi.gif", "dispose_bgnd.gif", "apng_mode_16bit.png"}
    assert paths["several-pages"] == {"multipage.tiff", "frozenpond.mpo"}
    assert paths["more-than-8-bits"] == {"16bit.cropped.tif", "apng_mode_16bit.png", "hopper_16bit.pgm"}
    rotated = {"hopper_orientation_3.jpg", "hopper_orientation_6.jpg", "hopper_orientation_5.webp", "exif_imagemagick_orientation.png"}
    assert rotated <= paths["rotated"]
    assert found.gate.num_files == 318 + 29
    assert found.gate.num_images == 318 + 29 - 3


def test_a_model_finds_crops_between_parts(shared, tmp_path):
    """What a hash cannot: photos that were cut from others."""
    photos = sorted((shared / "data" / "hymenoptera" / "val" / "bees").glob("*.jpg"))[:40]
    for number, photo in enumerate(photos):
        folder = tmp_path / "data" / ("train" if number < 30 else "val") / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / f"{number}.jpg")
    wanted = set()
    for number in range(6):
        with Image.open(photos[number]) as image:
            width, height = image.size
            name = "a" if number % 2 else "b"
            image.convert("RGB").crop((0, 0, int(0.92 * width), int(0.92 * height))).save(
                tmp_path / "data" / "val" / name / f"crop{number}.png"
            )
            wanted.add((f"train/{name}/{number}.jpg", f"val/{name}/crop{number}.png"))
    found = verbs.check(tmp_path / "data", model=shared / "weights" / "deit_tiny_patch16_224_in1k.safetensors")
    named = {
        tuple(sorted(member.path for member in copies.members))
        for finding in found.gate.findings
        if finding.kind in ("alike-two-splits", "near-two-splits")
        for copies in finding.copies
    }
    assert named <= wanted
    assert len(named) >= 4
