"""Runs end whatever the encoding of the terminal, the log file or the locale."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqnet.data import make_shards
from dqnet.report.compare.__main__ import main as compare
from dqnet.standard_output import take_every_character

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ["quant.widths=[2,3]", "data.batch_size=700", "trainer.epochs=1"]
SETTINGS += ["trainer.device=cpu", "trainer.progress=false"]


@pytest.fixture
def stdout(monkeypatch):
    """``stdout(encoding)``: standard output of that encoding from now on; its bytes."""

    def replace(encoding):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding, write_through=True))
        return content

    return replace


@pytest.fixture
def trained(command, tmp_path, monkeypatch):
    """A run of one epoch, in a folder that no encoding but Unicode's has a name for."""
    folder = tmp_path / "Läufe 数"
    assert command("train.py", *SETTINGS, f"hydra.run.dir={folder}").status == 0
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_a_run_ends_in_every_encoding(command, stdout, tmp_path, encoding):
    written = stdout(encoding)
    assert command("train.py", *SETTINGS, "hydra.run.dir=run").status == 0
    text = written.getvalue().decode(encoding)
    assert f"of target {'~' if encoding == 'ascii' else '±'} " in text
    shades = "░█" if encoding == "cp437" else ".#"
    bars = [line.split("|")[-2].strip() for line in text.splitlines() if "conv1 |" in line]
    assert len(bars) >= 6
    assert all(bar and set(bar) <= set(shades) for bar in bars)


def test_what_an_evaluation_and_a_comparison_print(command, stdout, trained, tmp_path):
    written = stdout("ascii")
    asked = "curve=true", "controls=true"
    assert command("eval.py", f"checkpoint={trained}", *asked).status == 0
    compare([str(trained), "--out", str(tmp_path / "größer")])
    text = written.getvalue().decode("ascii")
    assert "L?ufe ?/eval.json" in text
    assert "written to" in text and "gr??er: compare.csv" in text


def test_what_making_shards_prints(stdout, tmp_path, monkeypatch):
    monkeypatch.setattr(make_shards, "make_shards", lambda **options: {"splits": {}})
    monkeypatch.setattr(sys, "argv", ["make_shards", "source", "Ziel ü"])
    written = stdout("ascii")
    make_shards.main()
    assert written.getvalue() == b"python train.py data=shards data.root=Ziel ?\n"


@pytest.mark.slow
def test_an_ascii_locale_reads_and_writes_the_same_files(command, trained, tmp_path):
    """There Python opens files as ASCII too, unless told otherwise."""
    asked = [f"checkpoint={trained}", "report=html"]
    assert command("eval.py", asked[0], f"output={tmp_path}/here").status == 0
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *asked, f"output={tmp_path}/there"],
        env={**os.environ, **ascii_only, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert process.returncode == 0, process.stderr
    here, there = (tmp_path / name / "per_sample.csv" for name in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    assert f"{there}, {tmp_path}/there/samples.npz".encode() in process.stdout
    assert "Läufe 数" in (tmp_path / "there/report/index.html").read_text(encoding="utf-8")


def test_a_choice_of_the_user_stays(monkeypatch):
    chosen = io.TextIOWrapper(io.BytesIO(), "ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", chosen)
    take_every_character()
    assert chosen.errors == "backslashreplace"
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # as in a notebook
    take_every_character()


def test_a_failure_is_kept_whatever_its_words(tmp_path):
    from dqnet.sweep.failure import read_failure, write_failure

    write_failure(tmp_path, ValueError("no image é 数 \udce9.png"))
    assert read_failure(tmp_path) == "ValueError: no image é 数 \\udce9.png"
