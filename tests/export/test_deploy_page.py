"""The script of docs/deploy.md classifies a picture with no help from this package."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dqnet
from dqnet.config import ExportConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


@pytest.mark.parametrize("widths", ["[4]", "[3,4]"])
def test_the_script_answers_as_the_network_does(widths, run, measure, tmp_path):
    done = run("quant=lsq", f"quant.widths={widths}")
    measure(done.folder, export=ExportConfig("onnx"))
    path = done.folder / "model.onnx"
    (script,) = re.findall(r"```python\n(# classify\.py.*?)```", PAGE.read_text(), re.DOTALL)
    assert "dqnet." not in script and script.count("\n") <= 20
    (tmp_path / "classify.py").write_text(script)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")

    command = [sys.executable, "classify.py", str(path), "picture.png"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    net = dqnet.load_exported(path)
    how = net.metadata["preprocessing"]
    image = (torch.from_numpy(pixels).float() / 255 - how["mean"][0]) / how["std"][0]
    expected = net(image[None, None].float()).logits.argmax().item()
    assert printed.stdout.strip() == net.metadata["class_names"][expected]
