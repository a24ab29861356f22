"""Checkpoints are whole files, or a clear error."""

import pytest
import torch
from safetensors.torch import save_file

from subquad.training import checkpoint
from subquad.training.checkpoint import load, save
from subquad.training.errors import CommandError

TENSORS = {"model.a": torch.arange(6.0).view(2, 3), "loss.sum": torch.tensor(2.5)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, TENSORS, {"config": {"layers": 2}, "vocabulary": "añ"})
    return path


def test_round_trip(path):
    loaded = load(path)
    assert loaded.metadata == {"config": {"layers": 2}, "vocabulary": "añ"}
    assert loaded.tensors.keys() == TENSORS.keys()
    assert torch.equal(loaded.part("model")["a"], TENSORS["model.a"])
    assert load(path, parts=("loss",)).tensors.keys() == {"loss.sum"}


def test_a_folder_means_its_last_checkpoint(path):
    assert load(path.parent).path == path


def test_strided_tensors_are_saved(path):
    save(path, {"model.a": TENSORS["model.a"].t()}, {})
    assert torch.equal(load(path).part("model")["a"], TENSORS["model.a"].t())


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_files_are_refused(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(CommandError, match="not a whole safetensors file"):
        load(path)


def test_foreign_files_are_refused(path):
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(CommandError, match="not a whole safetensors file"):
        load(path)
    for header in (None, {"format": "pt"}):
        save_file(TENSORS, path, header)
        with pytest.raises(CommandError, match="not a checkpoint of a subquad"):
            load(path)


def test_other_versions_are_refused(path):
    save_file(TENSORS, path, {"format": "subquad.lm", "format_version": "99"})
    with pytest.raises(CommandError, match="format must be 1, got 99"):
        load(path)


def test_a_damaged_header_is_refused(path):
    header = {"format": "subquad.lm", "format_version": "1", "config": "{"}
    save_file(TENSORS, path, header)
    with pytest.raises(CommandError, match="damaged header"):
        load(path)


def test_missing_files_are_refused(tmp_path):
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(CommandError, match="no such checkpoint"):
            load(missing)


def test_a_failed_save_keeps_the_old_file(path, monkeypatch):
    old = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(CommandError, match=r"cannot write.*No space left"):
        save(path, {"model.a": torch.zeros(3)}, {})
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]
