"""The table at the end of a run."""

import io

import pytest
from rich.console import Console
from tiny import ROUTED

from dqnet.training.tables import print_summary

SUMMARY = {
    "top1": 91.234,
    "top5": 99.5,
    "loss": 0.12345,
    "bit_flops": 11e6,
    "bit_flops_std": 1e6,
    "bit_flops_total": 13e6,
    "target_bit_flops": 10e6,
    "mean_width": 3.1,
    "width_counts": {},
    "distinct_routings": 7,
    "controller_params": 50,
    "controller_macs": 20,
    "params": 10_000,
    "macs": 1_000,
}
FLOAT = dict.fromkeys(("bit_flops", "bit_flops_std", "target_bit_flops"))


def printed(**changes):
    text = io.StringIO()
    print_summary(Console(file=text, width=120), SUMMARY | changes)
    return text.getvalue()


def counts(**rows):
    """Images at each width, of layers ``layer_name``."""
    return {"width_counts": {name: dict(enumerate(row, 1)) for name, row in rows.items()}}


@pytest.mark.parametrize(
    "figure",
    [
        "91.23 %",
        "99.50 %",
        "0.1235",
        "11.000 M",
        "10.000 M (the mean is 1.100 of it)",
        "3.100 bits",
    ],
)
def test_figures_of_a_converted_network(figure):
    assert figure in printed()


@pytest.mark.parametrize("word", ["Bit-FLOPs", "target", "controller", "routings", "bit"])
def test_float_network_has_no_rows_about_bits(word):
    text = printed(**FLOAT)
    assert word not in text
    assert "91.23 %" in text


def test_controller_is_compared_with_the_backbone():
    text = printed(**counts(a=(1, 1)))
    assert "50 parameters (0.50% of the backbone's)" in text
    assert "20 multiply-accumulates (2.00%)" in text


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
def test_each_layer_has_its_shares(k):
    text = printed(**counts(first=(*[0] * (k - 1), 8), second=(2, *[0] * (k - 2), 6)))
    first, second = (
        next(x for x in text.splitlines() if name in x) for name in ("first", "second")
    )
    assert first.count("0.0%") == k  # and 100.0%
    assert "100.0%" in first
    assert "25.0%" in second
    assert "75.0%" in second
    assert first.count("█") == 20
    assert (second.count("░"), second.count("█")) == (5, 15)


def test_table_of_a_run(run):
    result = run()
    assert f"{result.summary['top1']:.2f} %" in result.text
    assert all(name in result.text for name in ROUTED)
