"""Run folders are found, and each counts once."""

import pytest
from run_folders import write_run

from dqnet.errors import UserError
from dqnet.report.compare.find_runs import find_runs


def test_folders_are_searched_to_the_bottom_and_each_run_counts_once(tmp_path):
    write_run(tmp_path / "a" / "deep" / "er" / "run")
    write_run(tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    found, unfinished = find_runs([tmp_path, tmp_path / "a", tmp_path / "link"])
    assert [run.folder.name for run in found] == ["run", "b"]
    assert unfinished == []


def test_a_run_without_summary_is_unfinished(tmp_path):
    for name, file in [("early", "metrics.jsonl"), ("late", "last.pt")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "late" / "metrics.jsonl").touch()
    write_run(tmp_path / "whole")
    found, unfinished = find_runs([tmp_path])
    assert [run.folder.name for run in found] == ["whole"]
    assert sorted(folder.name for folder in unfinished) == ["early", "late"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_runs([tmp_path / "nowhere"])


def test_the_training_that_a_search_makes_is_part_of_its_run(tmp_path):
    run = write_run(tmp_path / "run")
    learned = run / "search"
    learned.mkdir()
    for name in ("summary.json", "last.pt"):
        (learned / name).write_bytes((run / "summary.json").read_bytes())
    assert [found.folder for found in find_runs([tmp_path])[0]] == [run]
    (learned / "summary.json").unlink()
    assert find_runs([tmp_path])[1] == []
