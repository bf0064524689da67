"""`kawara export`, and the use of what it writes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import kawara
from kawara import verbs
from kawara.cli import main
from kawara.data.preprocessing import Preprocessing
from kawara.edge import export as exports
from kawara.errors import ConfigError, DataError, ModelFileError, RunFolderError
from kawara.models import create_model
from kawara.training.progress import Reporter
from kawara.verbs.merging import merged
from kawara.weights import ModelCard, save_model

onnx = pytest.importorskip("onnx", reason="needs the extra edge")
pytest.importorskip("onnxscript", reason="needs the extra edge")
pytest.importorskip("onnxruntime", reason="needs the extra edge")

NAMES = ("蟻", "bee", "cow")


def made(folder, name="vit_femto_4", *, seed=0, preprocessing=None, **options):
    """Save a model that decides by what it sees, as model.safetensors."""
    torch.manual_seed(seed)
    preprocessing = preprocessing or Preprocessing((16, 16), crop_fraction=0.8)
    model = create_model(name, num_classes=3, image_size=preprocessing.image_size, channels=preprocessing.channels, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    card = ModelCard(name, model.config, NAMES, preprocessing)
    save_model(folder / "model.safetensors", model.state_dict(), card)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A labelled folder, test part only, of images of many sizes."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for index in range(24):
        place = folder / "test" / NAMES[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        size = draw.integers(5, 60, 2)
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photos):
    """A distilled ViT with a class token, and its .onnx with the certificate."""
    folder = tmp_path_factory.mktemp("export")
    options = {"class_token": True, "pool": "class", "distillation_token": True, "depth": 1}
    source = made(folder, **options)
    return source, verbs.export(source, data=photos)


def arrays(count=6):
    draw = np.random.default_rng(3)
    return [draw.integers(0, 256, (*draw.choice([7, 16, 33], 2), 3), dtype=np.uint8) for _ in range(count)]


def rows(predictions):
    return torch.tensor([[guess.score for guess in sorted(answer.top, key=lambda guess: guess.index)] for answer in predictions])


def test_the_certificate_says_what_was_measured(exported):
    source, result = exported
    certificate = result.certificate
    assert result.files == [source.with_suffix(".onnx")]
    assert certificate.accepted
    assert certificate.num_images == 24
    assert certificate.agreement == 1
    assert certificate.max_difference is not None
    assert 0 < certificate.max_difference < 1e-5
    assert certificate.accuracy is not None
    assert certificate.accuracy["drop_points"] == 0
    assert certificate.num_bytes == result.files[0].stat().st_size
    stored = json.loads(result.certificate_path.read_text())
    assert stored == json.loads(json.dumps(certificate.to_dict()))
    assert sorted(path.name for path in source.parent.iterdir()) == ["model.onnx", "model.onnx.certificate.json", "model.safetensors"]


def test_the_file_says_what_it_is_and_not_where_it_was_made(exported):
    _, result = exported
    proto = onnx.load(result.files[0])
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["kawara"])["class_names"] == list(NAMES)
    assert json.loads(metadata["kawara_versions"])["torch"] == torch.__version__
    assert [axis.dim_param or axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "height", "width", 3]
    assert b"site-packages" not in result.files[0].read_bytes()


def test_predictions_are_those_of_the_model_file_in_any_batch(exported):
    source, result = exported
    images = arrays()
    wanted = rows(kawara.load(source, device="cpu").predict(images))
    predictor = kawara.load(result.files[0])
    together = rows(predictor.predict(images))
    assert torch.allclose(together, wanted, atol=1e-6)
    alone = torch.cat([rows(predictor.predict(image)) for image in images])
    assert torch.allclose(alone, together, atol=1e-6)
    alike = np.stack([arrays(1)[0]] * 5)
    assert torch.allclose(rows(predictor.predict(list(alike))), rows(predictor.predict(alike[0])).expand(5, -1), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (5000, 4000)])
def test_images_of_extreme_sizes_are_answered_right(exported, size):
    source, result = exported
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted = rows(kawara.load(source, device="cpu").predict(image))
    assert torch.allclose(rows(kawara.load(result.files[0]).predict(image)), wanted, atol=1e-6)


def test_the_verbs_take_the_export_as_they_take_the_model(exported, photos, capsys):
    source, result = exported
    outputs = []
    for model in (source, result.files[0]):
        assert main(["evaluate", str(model), str(photos), "--json"]) == 0
        evaluation = json.loads(capsys.readouterr().out)
        assert main(["predict", str(model), str(photos), "--json"]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        outputs.append((evaluation["top1"], evaluation["confusion"], [(a["path"], a["label"], round(a["score"], 4)) for a in answers]))
    assert outputs[0] == outputs[1]
    assert len(outputs[0][2]) == 24
    assert main(["evaluate", str(result.files[0]), str(photos), "--protocol", "knn"]) == 2
    assert "no features" in capsys.readouterr().err
    assert main(["predict", str(result.files[0]), str(photos), "--device", "cuda"]) == 2


def test_a_refused_export_is_kept_under_another_name(tmp_path, exported, photos, monkeypatch, capsys):
    """Weights that are spoilt on their way out: the certificate sees it."""
    source, result = exported
    proto = onnx.load(result.files[0])
    head = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("head.bias"))
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) + np.float32([9, 0, 0]), head.name))
    monkeypatch.setattr(exports, "trace", lambda model, preprocessing: None)
    monkeypatch.setattr(exports, "write_onnx", lambda program, card, path, precision="fp32": onnx.save(proto, path))
    shutil.copy(source, tmp_path / "model.safetensors")
    assert main(["export", str(tmp_path / "model.safetensors"), "--data", str(photos), "--json"]) == 3
    output = capsys.readouterr()
    assert "is refused: a probability differs by" in output.err
    assert json.loads(output.out)["accepted"] is False
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model.onnx.certificate.json", "model.onnx.rejected", "model.safetensors"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(exported, tmp_path, photos, monkeypatch):
    source, _ = exported
    with pytest.raises(RunFolderError, match="exists already"):
        verbs.export(source)
    own = tmp_path / "model.safetensors"
    shutil.copy(source, own)
    for options, error in (
        ({"out": tmp_path / "no" / "model.onnx"}, "There is no folder"),
        ({"out": tmp_path / "model.xml"}, "does not fit the format"),
        ({"to": "tensorrt"}, "no format to export to"),
        ({"to": "torch", "precision": "fp16"}, "in fp32"),
        ({"max_drop": -1}, "number of points"),
    ):
        with pytest.raises(ConfigError, match=error):
            verbs.export(own, **options)
    others = tmp_path / "others" / "zebra"
    others.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(others / "a.png")
    with pytest.raises(DataError, match="zebra"):
        verbs.export(own, data=others.parent)

    def unsupported(*_, **__):
        raise RuntimeError("No decompositions registered for aten.exotic")

    monkeypatch.setattr(torch.export, "export", unsupported)
    with pytest.raises(ConfigError, match=r"cannot be exported[\s\S]*aten.exotic"):
        verbs.export(own)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "others"]


def test_files_of_others_are_refused(tmp_path):
    bare = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["a"], ["b"])],
            "bare",
            [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1])],
            [onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(bare, tmp_path / "bare.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"\x80not a model")
    with pytest.raises(ModelFileError, match="not written by kawara"):
        kawara.load(tmp_path / "bare.onnx")
    with pytest.raises(ModelFileError, match="cannot be read"):
        kawara.load(tmp_path / "noise.onnx")
    with pytest.raises(ModelFileError, match="no model file"):
        kawara.load(tmp_path / "absent.onnx")


def test_openvino_in_half_precision_gives_nearly_the_same(exported, tmp_path, photos):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    source, result = exported
    _, card, _ = verbs.exporting.open_model(source)
    exports.write_openvino(result.files[0], card, tmp_path / "model.xml", "fp32")
    exports.write_openvino(result.files[0], card, tmp_path / "half.xml", "fp16")
    assert (tmp_path / "half.bin").stat().st_size < 0.55 * (tmp_path / "model.bin").stat().st_size
    images = [*arrays(), np.random.default_rng(4).integers(0, 256, (501, 375, 3), dtype=np.uint8)]
    wanted = rows(kawara.load(source, device="cpu").predict(images))
    predictor = kawara.load(tmp_path / "model.xml")
    assert predictor.class_names == NAMES
    assert torch.allclose(rows(predictor.predict(images)), wanted, atol=1e-5)
    difference = (rows(kawara.load(tmp_path / "half.xml").predict(images)) - wanted).abs().max()
    assert 1e-6 < difference < 0.05
    with pytest.raises(DataError, match="too long and narrow"):
        predictor.predict(np.zeros((1, 9000, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_femto_conv_4", {}),
        ("vit_femto_4", {"registers": 2, "layer_scale": 0.1, "pool": "map"}),
        ("resnet_pico", {}),
        ("seresnet_pico", {}),
        ("convnext_ronto_1", {}),
        ("regnety_400mf", {"preprocessing": Preprocessing((64, 64), resize="squash")}),
        ("vit_femto_7", {"preprocessing": Preprocessing((28, 28), "grey", interpolation="bilinear", mean=(0.5,), std=(0.5,))}),
    ],
)
def test_every_family_can_be_exported(tmp_path, name, options):
    result = verbs.export(made(tmp_path, name, **options), precision="fp32")
    assert result.certificate.refused == []


@pytest.mark.slow
def test_a_program_of_torch_answers_without_kawara(tmp_path):
    source = made(tmp_path)
    result = verbs.export(source, to="torch")
    assert result.certificate.accepted
    found = {"kawara": ""}
    program = torch.export.load(result.files[0], extra_files=found).module()
    image = arrays(1)[0]
    assert torch.allclose(program(torch.from_numpy(image)[None]), rows(kawara.load(source, device="cpu").predict(image)), atol=1e-6)
    assert json.loads(found["kawara"])["class_names"] == list(NAMES)


@pytest.mark.slow
def test_half_the_precision_is_half_the_file(tmp_path):
    source = made(tmp_path, "vit_pico_4")
    result = verbs.export(source, precision="fp16")
    assert result.certificate.num_bytes < 0.6 * source.stat().st_size + 100_000
    assert result.certificate.refused == []


VIT = {"class_token": True, "pool": "class", "depth": 3}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A model, and a labelled folder with the three parts, whose labels are what the model itself answers, but for a few."""
    folder = tmp_path_factory.mktemp("labelled")
    source = made(folder, **VIT)
    predictor = kawara.load(source)
    draw = np.random.default_rng(4)
    for part, count in (("train", 12), ("val", 60), ("test", 60)):
        for index in range(count):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            label = predictor.predict(pixels)[0].label if index % 10 else NAMES[index % 3]
            place = folder / "data" / part / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index}.png")
    return source, folder / "data"


def test_merged_tokens_are_exported_and_certified_against_the_unmerged_model(labelled, tmp_path):
    source, data = labelled
    result = verbs.export(source, out=tmp_path / "merged.onnx", data=data, merge=3, max_drop=100)
    certificate = result.certificate
    assert certificate.accepted
    assert certificate.merging == {"r": 3}
    assert certificate.max_difference < 1e-4  # from torch that merges
    plain, merging = verbs.evaluate(source, data), verbs.evaluate(source, data, merge=3)
    assert certificate.accuracy["torch"]["top1"] == plain.metrics["top1"]
    assert certificate.accuracy["export"]["top1"] == merging.metrics["top1"] == verbs.evaluate(result.files[0], data).metrics["top1"]
    assert plain.metrics["top1"] - merging.metrics["top1"] == pytest.approx(certificate.accuracy["drop_points"] / 100)
    assert certificate.accuracy["drop_points"] > 0
    assert kawara.load(result.files[0]).card.config.merge == 3
    operators = {node.op_type for node in onnx.load(result.files[0]).graph.node}
    assert {"TopK", "ScatterElements"} <= operators
    with pytest.raises(ConfigError, match="merges what it was exported to merge"):
        verbs.evaluate(result.files[0], data, merge=1)


def test_merged_tokens_in_openvino(labelled, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    certificate = verbs.export(labelled[0], to="openvino", out=tmp_path, merge=2).certificate
    assert certificate.accepted
    assert certificate.max_difference < 1e-4


def test_the_number_of_merged_tokens_is_chosen_on_images_that_are_not_certified(labelled):
    source, data = labelled
    predictor = kawara.load(source)
    found = merged(predictor, "auto", data=data, max_drop=1.0, reporter=Reporter(quiet=True))
    record = found.record
    assert record["images"].endswith("val")
    assert (record["num_images"], record["certified_on_the_same"], record["max_drop"]) == (60, False, 1.0)
    assert (found.predictor.card.config.merge, predictor.card.config.merge) == (record["r"], 0)
    plain = verbs.evaluate(source, data, split="val").metrics["top1"]
    for tried in record["tried"]:
        merging = verbs.evaluate(predictor, data, split="val", merge=tried["r"]).metrics["top1"]
        assert tried["drop_points"] == pytest.approx(100 * (plain - merging))
        assert (tried["drop_points"] <= 1.0) == (tried["r"] <= record["r"])
    assert record["r"] == -(-16 // 3) or record["r"] + 1 in [tried["r"] for tried in record["tried"]]


def test_a_data_set_of_one_part_is_chosen_on_and_certified_on(labelled):
    source, data = labelled
    found = merged(kawara.load(source), "auto", data=data / "test", max_drop=20, precision="fp16", reporter=Reporter(quiet=True))
    assert found.record["certified_on_the_same"]
    assert found.record["max_drop"] == 10  # the other half is left for the precision


def test_what_cannot_be_merged_says_so(labelled, tmp_path, capsys):
    source, data = labelled
    with pytest.raises(ConfigError, match="--merge auto measures"):
        verbs.export(source, out=tmp_path, merge="auto")
    with pytest.raises(ConfigError, match="number of tokens for each block"):
        verbs.export(source, out=tmp_path, merge="many")
    cnn = made(tmp_path, "resnet_femto", preprocessing=Preprocessing((16, 16)))
    for merge in (2, "auto"):
        with pytest.raises(ConfigError, match="Only the tokens of a ViT"):
            verbs.export(cnn, merge=merge, data=data)
    assert main(["evaluate", str(source), str(data), "--merge", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == verbs.evaluate(source, data, merge=4).metrics["top1"]
