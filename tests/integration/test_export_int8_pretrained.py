"""int8 of a pretrained ViT on real photos, as docs/edge.md reports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kawara import verbs

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs the extra edge")

SHARED = Path(__file__).parents[2].parent / "shared"
WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224_in1k.safetensors"
SAMPLES = SHARED / "data" / "imagenet_samples"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists() or not SAMPLES.is_dir(), reason="needs weights and photos in ../shared")
def test_a_pretrained_vit_keeps_its_accuracy_and_is_faster(tmp_path):
    index_of = dict(reversed(line.split("\t")[:2]) for line in (SAMPLES / "classes.tsv").read_text().splitlines() if line[:1].isdigit())
    rows = [f"{photo.resolve()},{index_of[photo.name.split('_')[0]]}" for photo in sorted(SAMPLES.glob("*.JPEG"))]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    certificate = verbs.export(WEIGHTS, out=tmp_path / "model.onnx", precision="int8", data=tmp_path / "photos.csv").certificate
    assert certificate.accepted
    assert certificate.num_images == 672
    assert certificate.int8 is not None
    assert certificate.int8["float_layers"] == []
    assert certificate.agreement > 0.95
    if certificate.int8["weight_bits"] == 8:  # a CPU that is fast at it
        assert certificate.latency["speedup"] > 1.4
