"""`kawara inspect` on tiny models: with a class token, mean-pooled, a CNN, one beside another; with labels and without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kawara import models
from kawara.cli import main
from kawara.data.preprocessing import Preprocessing
from kawara.models.resnet import ResNetConfig
from kawara.models.vit import ViTConfig
from kawara.weights import ModelCard, save_model

SIDE = 24
CLASSES = ("red", "green", "blue")
VIT = {"image_size": (SIDE, SIDE), "num_classes": 3, "patch_size": 6, "width": 16, "depth": 4, "heads": 2, "mlp_hidden": 32}
CONFIGS = {
    "class": ViTConfig(**VIT, class_token=True, pool="class"),  # type: ignore[arg-type]
    "mean": ViTConfig(**VIT, class_token=False, pool="mean"),  # type: ignore[arg-type]
}


def write_model(path: Path, name: str, config: object, class_names: tuple[str, ...] = CLASSES) -> str:
    torch.manual_seed(0)
    model = models.build(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)  # a head of zeros answers nothing
    save_model(path, model.state_dict(), ModelCard(name, config, class_names, Preprocessing((SIDE, SIDE), crop_fraction=1.0)))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    draw = np.random.default_rng(0)
    for number in range(9):
        pixels = draw.integers(0, 255, (30, 34, 3)).astype(np.uint8)
        for target in (folder / "flat", folder / "data" / CLASSES[number % 3]):
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target / f"{number}.png")
    for name, config in CONFIGS.items():
        write_model(folder / f"{name}.safetensors", f"vit_{name}", config)
    cnn = ResNetConfig(
        image_size=(SIDE, SIDE), num_classes=3, block="basic", expansion=1, stem="conv3", stem_width=8, depths=(2, 2), widths=(8, 16)
    )
    write_model(folder / "cnn.safetensors", "small_cnn", cnn)
    return folder


def inspected(capsys, *arguments: str) -> dict:
    assert main(["inspect", *arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def check_folder(folder: Path, answer: dict) -> str:
    """Check what every inspection leaves behind; return the page."""
    assert {path.name for path in folder.iterdir()} == {"report.html", "inspection.json", "figures", "numbers"}
    assert json.loads((folder / "inspection.json").read_text(encoding="utf-8")).keys() == answer.keys()
    assert {path.stem for path in (folder / "figures").iterdir()} == set(answer["figures"])
    assert {path.stem for path in (folder / "numbers").glob("*.json")} == set(answer["figures"])
    for path in (folder / "numbers").glob("*.json"):
        for value in json.loads(path.read_text(encoding="utf-8")).values():
            if isinstance(value, dict) and "array_in" in value:
                assert (folder / "numbers" / value["array_in"]).exists()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|url\((?!#)|https?://(?!www\.w3\.org/)|@import", page)
    return page


def outcomes(answer: dict) -> dict[str, str]:
    return {verdict["key"]: verdict["outcome"] for verdict in answer["verdicts"]}


def test_a_vit_with_a_class_token_on_files(place, tmp_path, capsys):
    out = tmp_path / "out"
    answer = inspected(capsys, f"{place}/class.safetensors", f"{place}/flat", "--out", str(out), "--photos", "4", "--language", "ja")
    page = check_folder(out, answer)
    assert (answer["num_images"], answer["num_photos"], answer["part"], answer["other"]) == (9, 4, None, None)
    assert 0 <= answer["attention_deviation"] < 1e-4
    assert {"attention-1", "attention-patch-1", "explanation-1", "attention-distance", "positions", "cka-1", "skip-ratios"} <= set(
        answer["figures"]
    )
    assert not any(name.startswith("robustness") for name in answer["figures"])
    found = outcomes(answer)
    assert found["local_heads_below"] in ("supported", "contradicted")
    assert found["halves_differ"] == found["place_is_kept"] == found["survives_lost_tiles"] == "open"
    assert found["skip_carries_class_token_early"] != "open"
    assert re.search(r'id="language-ja" checked', page)
    assert not re.search(r'id="language-en" checked', page)
    for words in (
        "Attention maps, verified",
        "検証済みのアテンションマップ",
        "Local or global?",
        "局所的か、大域的か",
        f"{answer['attention_deviation']:.1e}",
    ):
        assert words in page
    assert "no explanation of it" in page
    numbers = json.loads((out / "numbers" / "attention-distance.json").read_text(encoding="utf-8"))
    assert np.array(numbers["distance_px"]).shape == (4, 2)
    assert numbers["num_images"] == 9
    smallest = min(numbers["distance_px"][0])
    value = next(verdict["value"] for verdict in answer["verdicts"] if verdict["key"] == "local_heads_below")
    assert value == pytest.approx(smallest / numbers["uniform_distance_px"])


def test_a_mean_pooled_vit_beside_a_cnn_on_labelled_data(place, tmp_path, capsys):
    out = tmp_path / "out"
    models_and_data = (f"{place}/mean.safetensors", f"{place}/data", "--with", f"{place}/cnn.safetensors")
    answer = inspected(capsys, *models_and_data, "--out", str(out), "--photos", "2", "--blocks", "1,4", "--heads", "2")
    page = check_folder(out, answer)
    assert (answer["model"], answer["other"], answer["part"]) == ("vit_mean", "small_cnn", "all")
    assert {"cka-1", "cka-2", "cka-3", "robustness-drop-both", "robustness-shuffle", "receptive-field-2", "filters-2"} <= set(
        answer["figures"]
    )
    numbers = json.loads((out / "numbers" / "attention-1.json").read_text(encoding="utf-8"))
    assert (numbers["query"], numbers["blocks"], numbers["heads"]) == ("mean", [1, 4], [2])
    assert "the mean of all patches" in json.dumps(page)
    explained = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "numbers").glob("explanation-*.json")]
    assert {each["model"] for each in explained} == {"vit_mean", "small_cnn"}
    assert all("rollout" not in each["scores"] for each in explained if each["model"] == "small_cnn")
    curve = json.loads((out / "numbers" / "robustness-drop-1.json").read_text(encoding="utf-8"))["curves"]["drop_random"]
    assert curve["strengths"][0] == 0
    found = outcomes(answer)
    assert "top_unlike_other" in found
    assert found["skip_carries_class_token_early"] == "open"
    assert "The model has no class token." in page


def test_a_cnn_says_what_it_cannot_have(place, tmp_path, capsys):
    out = tmp_path / "out"
    answer = inspected(capsys, f"{place}/cnn.safetensors", f"{place}/flat/*.png", "--out", str(out), "--photos", "1")
    page = check_folder(out, answer)
    assert answer["attention_deviation"] is None
    assert not any(name.startswith(("attention", "positions", "token-norms")) for name in answer["figures"])
    assert "no self-attention" in page
    assert "自己アテンションがない" in page
    assert "local_heads_below" not in outcomes(answer)
    assert outcomes(answer)["sees_far_at_once"] in ("supported", "contradicted")
    assert (out / "figures" / "explanation-1.png").exists()


def test_three_images_and_a_backbone_are_enough(place, tmp_path, capsys):
    config = ViTConfig(**{**VIT, "num_classes": 0}, class_token=True, pool="class")  # type: ignore[arg-type]
    model = write_model(tmp_path / "backbone.safetensors", "backbone", config, ())
    (tmp_path / "broken.png").write_bytes(b"nothing")
    files = [f"{place}/flat/{number}.png" for number in range(3)]
    answer = inspected(capsys, model, *files, str(tmp_path / "broken.png"), "--out", str(tmp_path / "out"))
    page = check_folder(tmp_path / "out", answer)
    assert (answer["num_images"], answer["skipped"]) == (3, 1)
    assert answer["skipped_files"][0]["path"].endswith("broken.png")
    assert "attention-1" in answer["figures"]
    assert not any(name.startswith(("explanation", "cka")) for name in answer["figures"])
    assert "at least four images" in page
    assert "without a head" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cnn.safetensors", "flat", "--blocks", "1"], "no self-attention"),
        (["class.safetensors", "flat", "--blocks", "5"], "1 to 4"),
        (["class.safetensors", "flat", "--heads", "0"], "1 to 2"),
        (["class.safetensors", "nowhere"], "stands for no image"),
        (["class.safetensors", "flat", "--photos", "0"], "1 or more"),
        (["model.onnx", "flat"], "model.safetensors that it was exported from"),
        (["nothing.safetensors", "flat"], "nothing.safetensors"),
    ],
)
def test_mistakes_are_explained(place, tmp_path, capsys, arguments, says):
    paths = [str(place / argument) if "." in argument or argument in ("flat", "nowhere") else argument for argument in arguments]
    assert main(["inspect", *paths, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_content_is_left_alone(place, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert main(["inspect", f"{place}/class.safetensors", f"{place}/flat", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
