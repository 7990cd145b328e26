"""The page's text, without a browser."""

import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from evaluations import controls, write_evaluation
from run_folders import write_run

from dqnet.errors import UserError
from dqnet.report.page.figure import ACCENT, Figure, blank, in_style, tip
from dqnet.report.page.figures import NAMES
from dqnet.report.page.html import write_report
from dqnet.units import unit_for


class Page(HTMLParser):
    """Tags, and the text below every element that has an id."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.addresses, self._open = [], {}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs.items() if k in ("src", "href", "data")]
        if tag not in ("meta", "link", "input", "br"):
            self._open.append(attrs.get("id"))
        if "id" in attrs:
            assert attrs["id"] not in self.ids
            self.ids[attrs["id"]] = []

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        for name in filter(None, self._open):
            self.ids[name].append(data)

    def text(self, name):
        return " ".join(" ".join(self.ids[name]).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluation with everything that a page can show, and its page."""
    folder = tmp_path_factory.mktemp("everything")
    write_run(folder / "static <i>", top1=71.5, cost=88_000.0)
    write_run(folder / "float", method=None, top1=75.25)
    made = write_evaluation(folder / "run", controls=controls(), curve=True)
    write(made)
    return made


def write(made):
    """Writes the page of :func:`made`."""
    return write_report(
        made.folder, [made.folder.parent / name for name in ("static <i>", "float")]
    )


def test_everything_at_once(made):
    path = made.folder / "report/index.html"
    page = Page(path)
    assert page.text("top1") == f"{made.metrics['top1']:.2f} %"
    assert page.text("loss") == "0.5432 cross-entropy"
    assert page.text("instance-gain").startswith("+0.42 points of top-1 (95 % interval +0.11 to")
    assert "lies above zero" in page.text("instance-gain")
    assert "holds zero" in page.text("loss-gain")
    assert page.text("benefit").startswith("−0.50 points of top-1")
    assert "lies below zero" in page.text("benefit")
    assert "found on held-out images. 69.50" in page.text("controls")
    assert "99.00 k Bit-FLOPs" in page.text("shuffled-cost")
    assert "static <i> dorefa, 3 bits 0 71.50 0.5000 88.00 k" in page.text("baselines")
    assert "float full precision 0 75.25" in page.text("baselines")
    assert {f"{name}.{kind}" for name in NAMES for kind in ("png", "pdf")} | {"index.html"} == {
        file.name for file in path.parent.iterdir()
    }
    # Only links within figures, and the empty icon that keeps browsers from asking for one.
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert page.tags.count("script") - page.tags.count("svg") < 20
    assert "i" not in page.tags
    assert "b" not in page.tags


def test_data_never_becomes_markup(made):
    text = (made.folder / "report/index.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


@pytest.mark.parametrize("quantized, lead", [(True, "A static network"), (False, "A full-prec")])
def test_models_without_routing(tmp_path, quantized, lead):
    made = write_evaluation(tmp_path, layers=(), quantized=quantized)
    path = write_report(made.folder)
    page = Page(path)
    assert lead in path.read_text()
    assert ("bit_flops" in page.ids) == quantized
    assert not {"low", "distinct_routings", "figures-title", "controls"} & page.ids.keys()
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]


def test_what_run_it_is(tmp_path):
    run = tmp_path / "my run"
    (run / ".hydra").mkdir(parents=True)
    config = "model:\n  name: resnet20_cifar\nquant:\n  quantizer: lsq\n  widths: [2, 3]\n"
    (run / ".hydra/config.yaml").write_text(config)
    (run / ".hydra/overrides.yaml").write_text("- quant=lsq\n- quant.widths=[2,3]\n")
    made = write_evaluation(tmp_path / "other", layers=(), checkpoint=str(run / "best.pt"))
    page = Page(write_report(made.folder))
    assert page.text("command") == "python train.py quant=lsq 'quant.widths=[2,3]'"
    assert page.ids["config"] == [config]


def test_same_evaluation_same_bytes_and_no_earlier_figures(made):
    report = made.folder / "report"
    before = {file.name: file.read_bytes() for file in report.iterdir()}
    (report / "cost_histogram.png").write_bytes(b"of an earlier evaluation")
    write(made)
    assert before == {file.name: file.read_bytes() for file in report.iterdir()}
    shutil.copytree(report, made.folder.parent / "again/report")
    path = write_report(write_evaluation(made.folder.parent / "again", layers=()).folder)
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]


def test_baseline_that_is_not_complete(tmp_path):
    made = write_evaluation(tmp_path)
    with pytest.raises(UserError, match=r"none/summary\.json cannot be read"):
        write_report(made.folder, [tmp_path / "none"])


@in_style
def test_inline_figures_follow_the_page():
    canvas, axes = blank()
    (line,) = axes.plot([0, 1], [2, 3], color=ACCENT)
    tip(line, 'a "tip" <b>')
    svg = Figure("name", "title", "words", "an <alt>", canvas).svg()
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "an <alt>"
    tips = [e.get("data-tip") for e in root.iter() if e.get("data-tip")]
    assert tips == ['a "tip" <b>']
    assert "var(--accent)" in svg
    assert not re.search(rf"{ACCENT}|DejaVu|http://(?!www\.w3\.org)", svg)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert ids
    assert all(i.startswith("name-") for i in ids)


def test_controls_are_means_of_their_draws(made):
    table = Page(made.folder / "report/index.html").text("controls")
    assert re.findall(r"(own|shuffled|random|fixed|all at \d bits) Every", table) == [
        *("own", "shuffled", "random", "fixed", "all at 2 bits", "all at 4 bits")
    ]
    assert "Mean of 3 draws, 69.80 to 70.00 %. 69.90 0.5000 90.00 k" in table


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0.000"),
        (999.96, "1000"),
        (18_800_000, "18.80 M"),
        (3.61e8, "361.0 M"),
        (2e12, "2.000 T"),
    ],
)
def test_units(value, text):
    assert unit_for(value).show(value) == text
