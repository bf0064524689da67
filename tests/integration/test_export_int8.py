"""`kawara export --precision int8`: from calibration to refusal, in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kawara
from kawara import verbs
from kawara.cli import main
from kawara.data.preprocessing import Preprocessing
from kawara.edge.float_twin import write_float_twin
from kawara.edge.graph import PlaceInGraph
from kawara.errors import ConfigError, DataError
from kawara.models import create_model
from kawara.weights import ModelCard, save_model

onnx = pytest.importorskip("onnx", reason="needs the extra edge")
pytest.importorskip("onnxscript", reason="needs the extra edge")
pytest.importorskip("onnxruntime", reason="needs the extra edge")

NAMES = ("ant", "bee", "cow")
PREPROCESSING = Preprocessing((16, 16), crop_fraction=1.0)


@pytest.fixture(scope="module", autouse=True)
def placed():
    """Leave the resize out of the graph, whose tracing takes most of the time: all images here have the size of the model."""

    def cut(self, image_u8):
        side = torch.arange(16)
        return image_u8.permute(0, 3, 1, 2).index_select(2, side).index_select(3, side).float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlaceInGraph, "forward", cut)
        yield


def model_and_photos(folder, name, *, outlier=None, parts=("train", "test"), count=64, **options):
    """Save a model of random weights, and photos that it names right: an int8 model that answers otherwise loses accuracy."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, image_size=16, **options).eval()
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (4 * count, 16, 16, 3), dtype=np.uint8)
    normalised = PREPROCESSING.normalise(torch.stack([PREPROCESSING.place(image) for image in images]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(normalised)
        model.eval()
        if outlier is not None:  # one channel of the values is huge, and the projection takes it as before
            attention = model.get_submodule(f"blocks.{outlier}.attn")
            attention.qkv.weight[2 * attention.width + 3] *= 3e3
            attention.qkv.bias[2 * attention.width + 3] *= 3e3
            attention.proj.weight[:, 3] /= 3e3
        logits = model(normalised)
        head = model.get_submodule(model.head_names[0])
        head.bias.sub_(logits.mean(dim=0))  # every class is named
        best = (logits - logits.mean(dim=0)).softmax(dim=-1).topk(2)
    save_model(folder / "model.safetensors", model.state_dict(), ModelCard(name, model.config, NAMES, PREPROCESSING))
    sure = (best.values[:, 0] - best.values[:, 1]).argsort(descending=True)[: len(parts) * count]
    for number, index in enumerate(sure.tolist()):
        place = folder / "photos" / parts[number % len(parts)] / NAMES[best.indices[index, 0]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(place / f"{index}.png")
    return folder / "model.safetensors", folder / "photos"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return model_and_photos(folder, "vit_femto_4", outlier=1, depth=2, class_token=True, pool="class")


def test_a_planted_outlier_is_refused_and_named(planted, capsys):
    source, photos = planted
    out = source.parent / "plain.onnx"
    assert main(["export", str(source), "--out", str(out), "--precision", "int8", "--data", str(photos), "--fallback", "none"]) == 3
    printed = capsys.readouterr()
    assert "is refused: it loses" in printed.err
    assert "blame   blocks.1.attn.proj" in printed.out
    stored = json.loads((source.parent / "plain.onnx.certificate.json").read_text())
    assert stored["accuracy"]["drop_points"] > 0.5
    assert stored["int8"]["float_layers"] == []
    assert stored["int8"]["layers"][0]["layer"] == "blocks.1.attn.proj"
    assert len(stored["int8"]["layers"]) == stored["int8"]["num_layers"] == 9
    assert stored["int8"]["calibration"]["images"] == f"{photos}, train"
    assert stored["int8"]["calibration"]["set_aside"] is False
    assert {len(variant) for variant in stored["int8"]["variants"]} == {5}
    assert not out.exists()
    assert out.with_name("plain.onnx.rejected").exists()


def test_the_mixed_fallback_passes_and_says_what_stayed_in_float(planted, capsys):
    source, photos = planted
    out = source.parent / "mixed.onnx"
    assert main(["export", str(source), "--out", str(out), "--precision", "int8", "--data", str(photos), "--json"]) == 0
    certificate = json.loads(capsys.readouterr().out)
    assert certificate["accepted"]
    assert certificate["int8"]["float_layers"][0] == "blocks.1.attn.proj"
    assert len(certificate["int8"]["float_layers"]) < 5
    first, *_, last = certificate["int8"]["attempts"]
    assert first["drop_points"] > 0.5 >= last["drop_points"]
    assert first["float_layers"] == []
    assert {"torch", "export", "fp32", "speedup"} <= set(certificate["latency"])
    # The layer is in float in the file, too: it has no int8 weight.
    weights = {tensor.name for tensor in onnx.load(out).graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    assert "model.blocks.0.attn.proj.weight" in weights
    assert "model.blocks.1.attn.proj.weight" not in weights
    predictor = kawara.load(out)
    images = np.random.default_rng(5).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    together = [answer.label for answer in predictor.predict(list(images))]
    assert together == [predictor.predict(image)[0].label for image in images]


def test_a_cnn_in_int8_is_certified_and_computed_in_whole_numbers(tmp_path):
    import onnxruntime

    source, photos = model_and_photos(tmp_path, "resnet_pico", zero_residual=False)
    certificate = verbs.export(source, precision="int8", data=photos, max_drop=5.0, weight_bits=7).certificate
    assert certificate.accepted
    assert certificate.agreement > 0.9
    assert certificate.int8 is not None
    assert certificate.int8["weight_bits"] == 7
    proto = onnx.load(tmp_path / "model.onnx")
    weights = [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert max(abs(weight).max() for weight in weights) == 63
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("QLinearConv") == certificate.int8["num_layers"]
    # What it is timed against: the same in float, but for weights of 7 bits.
    write_float_twin(tmp_path / "model.onnx", tmp_path / "twin.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in onnx.load(tmp_path / "twin.onnx").graph.node}
    images = list(np.random.default_rng(5).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    scores = [[answer.score for answer in kawara.load(file).predict(images)] for file in (source, tmp_path / "twin.onnx")]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_openvino_computes_the_same_graph(tmp_path):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    source, photos = model_and_photos(tmp_path, "vit_femto_4", parts=("all",), count=128, depth=1)
    exported = verbs.export(source, to="openvino", precision="int8", data=photos / "all", max_drop=5.0)
    assert [file.name for file in exported.files] == ["model.bin", "model.xml"]
    assert exported.certificate.accepted
    assert exported.certificate.agreement > 0.9
    record = exported.certificate.int8
    assert record is not None
    assert record["calibration"]["set_aside"]
    assert record["calibration"]["num_images"] == 32
    assert exported.certificate.num_images == 96
    left = {"model.bin", "model.safetensors", "model.xml", "model.xml.certificate.json", "photos"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_what_cannot_be_calibrated_is_said(planted, tmp_path):
    source, photos = planted
    out = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match="labelled images"):
        verbs.export(source, out=out, precision="int8")
    with pytest.raises(ConfigError, match="only with --precision int8"):
        verbs.export(source, out=out, data=photos, fallback="none")
    with pytest.raises(ConfigError, match="7 or 8 bits"):
        verbs.export(source, out=out, data=photos, precision="int8", weight_bits=4)
    few = tmp_path / "few"
    for name in NAMES:
        (few / name).mkdir(parents=True)
        for number in range(7):
            pixels = np.random.default_rng(number + 100 * len(name)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(few / name / f"{number}.png")
    with pytest.raises(DataError, match="too few images"):
        verbs.export(source, out=out, data=photos, precision="int8", calibrate=few)
    with pytest.raises(DataError, match="too few images"):
        verbs.export(source, out=out, data=few, precision="int8")
    with pytest.raises(DataError, match="too few images"):  # those that are compared on do not calibrate
        verbs.export(source, out=out, data=photos / "test", precision="int8", calibrate=photos / "test")
    (few / "zebra").mkdir()
    Image.new("RGB", (16, 16)).save(few / "zebra" / "a.png")
    with pytest.raises(DataError, match="zebra"):
        verbs.export(source, out=out, data=photos, precision="int8", calibrate=few)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_ronto_1", {}),
        ("seresnet_pico", {"zero_residual": False}),
        ("vit_femto_4", {"mlp": "swiglu", "registers": 2, "layer_scale": 0.5, "pool": "map", "depth": 2}),
        ("vit_femto_conv_4", {"class_token": True, "pool": "class", "distillation_token": True, "depth": 2}),
    ],
)
def test_every_family_can_be_in_int8(tmp_path, name, options):
    source, photos = model_and_photos(tmp_path, name, **options)
    certificate = verbs.export(source, precision="int8", data=photos, max_drop=10.0, fallback="none").certificate
    assert certificate.accepted
    assert certificate.agreement > 0.85
