"""Files are whole or not there, whatever happens while they are written."""

import json
from pathlib import Path

import pytest
import torch

from dqnet.errors import UserError
from dqnet.runtime.files import read_json, write_atomically, write_json
from dqnet.training.checkpoint import save_checkpoint
from dqnet.training.logging import MetricsFile
from dqnet.training.weights import read_checkpoint


class PowerCut(BaseException):
    """Not an Exception: nothing may handle it."""


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, PowerCut])
def test_error_while_writing_leaves_the_old_file_alone(tmp_path, old, error):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)

    def write(temporary):
        temporary.write_text("half of the n")
        raise error

    # What the system refuses is the user's to mend.
    with pytest.raises(UserError if error is OSError else error):
        write_atomically(path, write)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == ({"file": old} if old else {})


def test_file_is_not_touched_before_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("new")
        seen.append((temporary.parent, path.read_text()))

    write_atomically(path, write)
    assert seen == [(tmp_path, "old")]
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "new"}


def test_json_survives_the_way(tmp_path):
    content = {"a": 0.1 + 0.2, "b": None, "c": {"2": 3}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content


def test_content_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": torch.ones(1)})
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_checkpoint_survives_a_crash_while_the_next_is_saved(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"config": {}, "model": {}, "epoch": 1})

    def crash(temporary, content):
        temporary.open("wb").write(content[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {"config": {}, "model": {}, "epoch": 2})
    assert read_checkpoint(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


# metrics.jsonl


@pytest.fixture
def metrics(tmp_path):
    """Four epochs."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for epoch in range(4):
        file.append({"epoch": epoch, "val_top1": 100 / 3})
    return file


def epochs(metrics):
    return [json.loads(line)["epoch"] for line in metrics.path.read_text().splitlines()]


@pytest.mark.parametrize("count", range(6))
def test_epochs_after_the_checkpoint_are_dropped(metrics, count):
    metrics.keep_until(count)
    assert epochs(metrics) == list(range(min(count, 4)))


@pytest.mark.parametrize("lost", [1, 2, 20])
def test_what_follows_a_line_cut_off_stands_on_its_own_line(metrics, lost):
    metrics.path.write_text(metrics.path.read_text()[:-lost])
    metrics.keep_until(3)
    metrics.append({"epoch": 3, "val_top1": 0.0})
    assert epochs(metrics) == [0, 1, 2, 3]
