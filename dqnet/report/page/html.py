"""``report/index.html``: everything about one evaluation on one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from dqnet.errors import UserError
from dqnet.report.page.figures import NAMES, figures_of
from dqnet.report.page.figures.trade_off import described
from dqnet.report.page.gallery import make_gallery
from dqnet.report.page.provenance import provenance_of
from dqnet.report.page.results import read_results
from dqnet.report.runs import read_run
from dqnet.runtime.files import write_atomically
from dqnet.units import unit_for

TEMPLATE = Path(__file__).parent / "template"


def write_report(folder: Path, baselines: Sequence[Path] = ()) -> Path:
    """Writes the page, and its figures as PNG and PDF, to ``folder/report``.

    Args:
        folder: holds ``eval.json``, ``per_sample.csv``, ``samples.npz`` and perhaps ``curve.csv``
            and ``.hydra``.
        baselines: folders of complete runs to compare with.

    Returns:
        The page's path.

    Raises:
        UserError: if one of the files is missing or of another evaluation.
    """
    results = read_results(folder)
    runs = [read_run(baseline) for baseline in baselines]
    figures = figures_of(results, runs)
    report = folder / "report"
    try:
        report.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"report folder {report} cannot be made: {error.strerror}") from error
    for name in NAMES:  # a figure of an earlier evaluation would pass for one of this
        for kind in ("png", "pdf"):
            (report / f"{name}.{kind}").unlink(missing_ok=True)
    for figure in figures:
        figure.save(report)

    parts = [(TEMPLATE / f"{name}.js").read_text("utf-8") for name in ("gallery", "detail")]
    script = "\n".join(parts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        figures=figures,
        results=results,
        metrics=results.metrics,
        gallery=make_gallery(results),
        controls=results.metrics["controls"],
        baselines=[(described(run), run) for run in runs],
        run=provenance_of(folder, results.metrics),
        show=lambda value: unit_for(value).show(value),
        style=Markup((TEMPLATE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The page's own script is the only one that a browser runs, whatever the data hold.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    path = report / "index.html"
    content = page.encode("utf-8", "surrogateescape")  # a path need not be text
    write_atomically(path, lambda temporary: temporary.write_bytes(content) and None)
    return path
