from __future__ import annotations

import pytest
import torch

from kawara.errors import ModelFileError, RunFolderError
from kawara.models import create_model
from kawara.training.averaging import WeightAverage
from kawara.training.checkpoint import load_checkpoint, save_checkpoint
from kawara.training.journal import Journal
from kawara.training.optimizer import OptimizerConfig, build_optimizers
from kawara.training.run_folder import RunFolder, claimed_next, next_free, numbered


def parts(name: str):
    torch.manual_seed(0)
    model = create_model("vit_femto_conv_4", num_classes=3, image_size=8, channels=1)
    return model, build_optimizers(model, OptimizerConfig(name=name), 8), WeightAverage(model, 0.9)


def step(model, optimizers, average, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(4, 1, 8, 8)).logsumexp(-1).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    average.update(model)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_going_on_from_a_checkpoint_gives_the_same_bits(tmp_path, name):
    model, optimizers, average = parts(name)
    for seed in range(3):
        step(model, optimizers, average, seed)
    save_checkpoint(tmp_path / "last.safetensors", model, optimizers, average, {"step": 3, "best_score": 0.5})
    other, other_optimizers, other_average = parts(name)
    assert load_checkpoint(tmp_path / "last.safetensors", other, other_optimizers, other_average)["step"] == 3
    for seed in range(3, 6):
        step(model, optimizers, average, seed)
        step(other, other_optimizers, other_average, seed)
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)
    for a, b in zip(average.state.values(), other_average.state.values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage", ["truncate", "flip header", "empty", "missing"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path, damage):
    model, optimizers, average = parts("adamw")
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, model, optimizers, average, {"step": 0})
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip header":
        path.write_bytes(content[:8] + b"#" + content[9:])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(ModelFileError, match=r"last\.safetensors"):
        load_checkpoint(path, model, optimizers, average)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model, optimizers, average = parts("adamw")
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, model, optimizers, average, {"step": 1})
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kawara.training.checkpoint.safetensors.torch.save_file", full)
    with pytest.raises(RunFolderError, match="No space"):
        save_checkpoint(path, model, optimizers, average, {"step": 2})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


def test_the_journal_forgets_what_came_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.sync() == 0
    for number in range(5):
        journal.write("train", number, loss=float("nan") if number == 2 else 1.0)
        if number == 3:
            at_checkpoint = journal.sync()
    with open(journal.path, "ab") as file:
        file.write('{"event": "tr\u00e4'.encode()[:-1])  # cut by a crash, within a letter
    assert [record["step"] for record in journal.read()] == [0, 1, 2, 3, 4]
    assert journal.read()[2]["loss"] is None
    journal.rewind(at_checkpoint)
    journal.write("train", 4, loss=2.0)
    assert [record["step"] for record in journal.read()] == [0, 1, 2, 3, 4]
    assert journal.read()[-1]["loss"] == 2.0


def test_a_journal_that_lost_its_end_goes_on_at_a_new_line(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("train", 1)
    length = journal.sync()
    journal.path.write_bytes(journal.path.read_bytes() + b'{"event": "tra')
    journal.rewind(length + 100)  # the checkpoint saw more than the disk kept
    journal.write("train", 2)
    assert [record["step"] for record in journal.read()] == [1, 2]


def test_the_state_of_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "photos-1")
    assert folder.state == "new"
    folder.make()
    (folder.path / ".config.yaml.123.partial").mkdir()
    folder.environment.write_text("{}")
    folder.inputs.write_text("{}")
    assert folder.state == "new"  # a start that was killed
    folder.config.write_text("seed: 0")
    assert folder.state == "unfinished"
    folder.metrics.write_text("{}")
    assert folder.state == "finished"
    other = RunFolder(tmp_path / "pictures")
    other.path.mkdir()
    (other.path / "precious.txt").write_text("x")
    assert other.state == "other"
    assert RunFolder(other.path / "precious.txt").state == "other"


def test_a_claimed_folder_is_cleaned_and_goes_again_if_nothing_came_of_it(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "photos-1")
    with folder.claimed():
        assert folder.last.parent.is_dir()
    assert list(tmp_path.iterdir()) == []
    folder.make()
    left = folder.last.parent / ".last.safetensors.1.partial"
    left.mkdir()
    (left / ".tmpXYZ").write_bytes(b"half")
    with folder.claimed():
        assert list(folder.last.parent.iterdir()) == []


def test_new_runs_take_the_first_folder_that_nobody_has(tmp_path):
    with claimed_next(tmp_path, "photos") as first:
        assert first.path.name == "photos-1"
        with claimed_next(tmp_path, "photos") as second:
            assert second.path.name == "photos-2"
            with pytest.raises(RunFolderError, match="Another process"), first.claimed():
                pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be written"), claimed_next(tmp_path / "file", "photos"):
        pass


def test_run_folders_are_numbered(tmp_path):
    assert next_free(tmp_path / "photos-0").name == "photos-1"
    for number in (1, 2, 10):
        (tmp_path / f"photos-{number}").mkdir()
    assert next_free(tmp_path / "photos-0").name == "photos-3"
    assert [path.name for path in numbered(tmp_path, "photos")] == ["photos-1", "photos-2", "photos-10"]
    assert numbered(tmp_path / "none", "photos") == []


def test_a_model_file_can_be_read_by_whom_files_here_can_be(tmp_path):
    """safetensors would let only its owner read it."""
    (tmp_path / "plain").write_text("x")
    model, optimizers, average = parts("adamw")
    save_checkpoint(tmp_path / "last.safetensors", model, optimizers, average, {"step": 0})
    assert (tmp_path / "last.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
