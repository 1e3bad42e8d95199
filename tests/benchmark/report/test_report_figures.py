"""What is drawn, read back from the axes."""

import matplotlib
import numpy as np
import pytest
from synthetic_records import write_grid

from sbi_jeffreys.benchmark.report.catalogue import METRICS
from sbi_jeffreys.benchmark.report.compare import paired_differences, summary
from sbi_jeffreys.benchmark.report.figures import (
    draw_cost,
    draw_coverage,
    draw_differences,
)
from sbi_jeffreys.benchmark.report.load import load_results
from sbi_jeffreys.benchmark.report.published import published_npe
from sbi_jeffreys.benchmark.report.score_figures import draw_scores

METHODS = ["npe", "_a$x", "jeffreys"]


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return load_results(write_grid(folder, ["slcp", "sir"], METHODS, [1000, 10_000], 2)).table


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_lines_over_budgets(values):
    drawing = draw_scores(values, "c2st", METRICS["c2st"], METHODS)
    ax = {ax.get_title(): ax for ax in drawing.figure.axes}["slcp"]
    expected = summary(values, "c2st").loc["slcp"]["mean"].xs("jeffreys", level="method")
    lines = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 2]
    assert any(np.allclose(y, expected) for y in lines)
    published = published_npe("c2st").query("task == 'slcp'").set_index("num_simulations")
    assert any(np.allclose(y, published["c2st_mean"][[1000, 10_000]]) for y in lines)
    texts = legend_texts(drawing.figure)
    # A name with a leading underscore or a dollar sign is neither left out nor mathematics.
    assert [text.lstrip("\u200b") for text in texts[:3]] == ["npe", r"_a\$x", "jeffreys"]
    assert "published NPE (sbibm)" in texts


def test_dots_with_one_budget(values):
    few = values[values["num_simulations"] == 1000]
    drawing = draw_scores(few, "c2st_rf", METRICS["c2st_rf"], METHODS)
    ax = {ax.get_title(): ax for ax in drawing.figure.axes}["slcp"]
    # Panels share the names of methods at the left.
    names = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert names == ["npe", r"_a\$x", "jeffreys"]
    expected = summary(few, "c2st_rf").loc["slcp"]["mean"].xs("jeffreys", level="method").item()
    dots = [(x, y) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)]
    assert any(np.allclose(dot, (expected, 2)) for dot in dots)
    rf = published_npe("c2st_rf").query("task == 'slcp' and num_simulations == 1000")
    assert any(np.allclose(line.get_xdata(), rf["c2st_mean"].item()) for line in ax.lines)


def test_no_published_lines_for_other_metrics(values):
    drawing = draw_scores(values, "nll", METRICS["nll"], METHODS)
    assert len(legend_texts(drawing.figure)) == len(METHODS)
    assert "published" not in drawing.caption


def test_differences(values):
    differences = paired_differences(values, "c2st", "npe")
    drawing = draw_differences(differences, "c2st", METRICS["c2st"], METHODS, "npe", 1000)
    ax = {ax.get_title(): ax for ax in drawing.figure.axes}["sir"]
    row = differences.loc[("sir", 1000, "jeffreys")]
    drawn = [line.get_xdata() for line in ax.lines]
    assert any(np.allclose(x, [row["low"], row["high"]]) for x in drawn if len(x) == 2)
    assert any(np.allclose(x, row["difference"]) for x in drawn if len(x) == 1)


def test_cost_and_coverage(values):
    cost = draw_cost(values, "nll", METHODS)
    seconds = summary(values, "training_cpu_seconds").loc["sir"]["mean"].xs("npe", level="method")
    ax = {ax.get_title(): ax for ax in cost.figure.axes}["sir"]
    assert any(
        np.allclose(line.get_xdata(), seconds) for line in ax.lines if len(line.get_xdata()) == 2
    )
    (first, _) = draw_coverage(values, METHODS, 1000).figure.axes
    assert sum(len(line.get_xdata()) == 5 for line in first.lines) == len(METHODS)


def test_nothing_to_draw(values):
    none = values[values["metric"] == "leakage"]
    assert draw_scores(none, "nll", METRICS["nll"], METHODS) is None
    assert draw_cost(none, "nll", METHODS) is None
    assert draw_coverage(none, METHODS, 1000) is None
    empty = paired_differences(none, "nll", "npe")
    assert draw_differences(empty, "nll", METRICS["nll"], METHODS, "npe", 1000) is None


def test_settings_come_back_and_files_repeat(values):
    before = dict(matplotlib.rcParams)
    one, two = (draw_cost(values, "nll", METHODS).to_data_uri() for _ in range(2))
    assert one == two
    assert dict(matplotlib.rcParams) == before
