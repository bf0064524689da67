"""A full disk: a clear error, the last good file in its place, and nothing else left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kawara

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs limits on the size of files")

# A file that grows beyond the limit fails as on a full disk, but for the number of the error.
LIMITED = """
import json, pathlib, resource, signal, sys, warnings
import numpy as np, torch
from PIL import Image
from kawara import files
from kawara.errors import RunFolderError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)

def tensors(path):
    import safetensors.torch
    safetensors.torch.save_file({"a": torch.zeros(100_000)}, path)

def picture(path):
    Image.fromarray(noise).save(path, "PNG")

def bytes_(path):
    path.write_bytes(noise.tobytes())

def text(path):
    path.write_text("<html>" * 50_000)

def arrays(path):
    np.savez_compressed(path.with_suffix(".npz"), noise=noise)

def figure(path):
    from kawara.plots import to_png
    import matplotlib.figure
    drawn = matplotlib.figure.Figure()
    drawn.add_subplot().imshow(noise)
    path.write_bytes(to_png(drawn, dpi=300))

folder = pathlib.Path(sys.argv[1])
said = {}
for writer in (tensors, picture, bytes_, text, arrays, figure):
    target = folder / writer.__name__
    target.write_text("the last good one")
    try:
        with files.replacing(target) as temporary:
            writer(temporary)
    except RunFolderError as error:
        said[f"{writer.__name__}: file"] = str(error)
    try:
        with files.new_folder(folder / f"{writer.__name__}-folder") as temporary:
            writer(temporary / "file")
    except RunFolderError as error:
        said[f"{writer.__name__}: folder"] = str(error)
try:
    files.write_json(folder / "text", {"long": "x" * 200_000})
except RunFolderError as error:
    said["json"] = str(error)
print(json.dumps(said))
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(kawara.__file__).parents[1])}


def test_every_kind_of_file_fails_in_a_clear_way(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], check=False, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said) == 13
    for message in said.values():
        assert "cannot be written" in message
        assert "File too large" in message
    assert {path.name for path in tmp_path.iterdir()} == {"tensors", "picture", "bytes_", "text", "arrays", "figure"}
    assert {path.read_text() for path in tmp_path.iterdir()} == {"the last good one"}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_run_on_a_full_disk_keeps_its_last_checkpoint_and_goes_on(small_disk, tmp_path):
    def train(out: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kawara", "train", "digits", "--model", "vit_femto_conv_2", "--steps", "60", "--out", out]
        command += ["--set", "threads=1", "--json"]
        return subprocess.run(list(map(str, command)), check=False, env=environment(), capture_output=True, text=True)

    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_300_000))  # room for the first checkpoints, not for the file that replaces one
    done = train(small_disk / "run")
    assert done.returncode == 2, done.stderr
    assert "No space is left" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"] == "RunFolderError"
    assert not [path for path in small_disk.rglob("*") if path.name.endswith(".partial") or path.name.startswith(".tmp")]
    assert (small_disk / "run" / "checkpoints" / "last.safetensors").exists()
    ballast.unlink()
    done = train(small_disk / "run")
    assert done.returncode == 0, done.stderr
    assert "going on with the unfinished run" in done.stderr
    assert train(tmp_path / "whole").returncode == 0
    first, second = ((place / "model.safetensors").read_bytes() for place in (small_disk / "run", tmp_path / "whole"))
    assert first[-100_000:] == second[-100_000:]  # the weights come last
