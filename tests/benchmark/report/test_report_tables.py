"""Cells of tables against means that are known, and escaping in all three formats."""

import html.parser

import pandas as pd
import pytest

from sbi_jeffreys.benchmark.report.catalogue import METRICS, format_number
from sbi_jeffreys.benchmark.report.compare import paired_differences
from sbi_jeffreys.benchmark.report.load import COLUMNS
from sbi_jeffreys.benchmark.report.markup import Cell, Table
from sbi_jeffreys.benchmark.report.published import (
    best_amortised,
    compare_published,
    load_published,
    published_npe,
)
from sbi_jeffreys.benchmark.report.published_tables import best_published_table, published_table
from sbi_jeffreys.benchmark.report.tables import (
    difference_tables,
    score_tables,
    tally_table,
)

METHODS = ["npe", "ml", "nle"]


@pytest.fixture(scope="module")
def values():
    """Two observations, two seeds; nle lacks the task sir, ml a seed of it."""
    rows = []
    for task, method, by_seed in (
        ("slcp", "npe", {0: (0.90, 0.94), 1: (0.92, 0.96)}),
        ("slcp", "ml", {0: (0.80, 0.84), 1: (0.82, 0.86)}),
        ("slcp", "nle", {0: (0.95, 0.99), 1: (0.97, 1.00)}),
        ("sir", "npe", {0: (0.70, 0.70), 1: (0.70, 0.70)}),
        ("sir", "ml", {0: (0.60, 0.60)}),
    ):
        for seed, numbers in by_seed.items():
            rows += [
                [task, method, 1000, seed, str(i + 1), "c2st", v] for i, v in enumerate(numbers)
            ]
    return pd.DataFrame(rows, columns=COLUMNS)


def texts(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def bold(table):
    return {row[0].text: [cell.bold for cell in row[1:]] for row in table.rows}


def test_means_and_standard_errors(values):
    (table,) = score_tables(values, "c2st", METRICS["c2st"], METHODS)
    assert table.header == ("task", *METHODS)
    assert texts(table) == {
        # Seeds of npe have 0.92 and 0.94: mean 0.93, standard error 0.02 / 2.
        "slcp": ["0.930 ± 0.010", "0.830 ± 0.010", "0.978 ± 0.007"],
        # No standard error of one seed, and no best where the lowest lacks a seed.
        "sir": ["0.700 ± 0.000", "0.600 †", "–"],
    }
    assert bold(table) == {"slcp": [False, True, False], "sir": [False, False, False]}
    assert "†" in table.note


def test_the_lowest_is_bold_however_its_last_digit_is_rounded():
    rows = [["slcp", m, 1000, 0, "1", "c2st", v] for m, v in (("npe", 0.2005), ("ml", 0.8))]
    (table,) = score_tables(pd.DataFrame(rows, columns=COLUMNS), "c2st", METRICS["c2st"], METHODS)
    # A tie that pandas rounds down, and Python, which writes the number, up.
    assert texts(table)["slcp"][0] == "0.201"
    assert bold(table)["slcp"] == [True, False, False]


def test_one_seed_says_so(values):
    (table,) = score_tables(values[values["seed"] == 0], "c2st", METRICS["c2st"], METHODS)
    assert "±" not in table.rows[0][1].text
    assert "one seed" in table.note


def test_differences_and_their_count(values):
    differences = paired_differences(values, "c2st", "npe")
    (table,) = difference_tables(differences, "c2st", METRICS["c2st"], METHODS, "npe")
    cells = texts(table)
    # ml is 0.1 lower in every pair, so that nothing varies.
    assert cells["slcp"][0] == "−0.100 [−0.100, −0.100]"
    assert cells["sir"] == ["−0.100 [−0.100, −0.100]", "–"]
    assert cells["wins / ties / losses"] == ["2 / 0 / 0", "0 / 0 / 1"]
    assert [cell.tone for cell in table.rows[1][1:]] == ["better", "worse"]
    tally = tally_table({"c2st": differences}, METHODS, "npe")
    assert texts(tally) == {"C2ST": ["2 / 0 / 0", "0 / 0 / 1"]}


def test_who_is_infinite_at_most_observations_does_not_win():
    """An infinite value has no row; that there was one is seen by the other metrics."""
    rows = []
    for seed in (0, 1):
        for method, finite in (("npe", range(10)), ("ml", range(2))):
            rows += [["slcp", method, 1000, seed, str(i), "c2st", 0.6] for i in range(10)]
            level = 1.0 if method == "npe" else 0.5
            rows += [["slcp", method, 1000, seed, str(i), "kl_reverse", level] for i in finite]
    values = pd.DataFrame(rows, columns=COLUMNS)
    metric = METRICS["kl_reverse"]
    (table,) = score_tables(values, "kl_reverse", metric, METHODS[:2])
    assert texts(table) == {"slcp": ["1.000 ± 0.000", "0.500 ± 0.000 †"]}
    assert bold(table) == {"slcp": [False, False]}
    differences = paired_differences(values, "kl_reverse", "npe")
    (table,) = difference_tables(differences, "kl_reverse", metric, METHODS[:2], "npe")
    assert texts(table) == {
        "slcp": ["−0.500 [−0.500, −0.500] †"],
        "wins / ties / losses": ["0 / 0 / 0"],
    }
    assert "nobody wins" in table.note
    # Nor where both are, at others, and nobody has all values.
    npe = (values["metric"] == "kl_reverse") & (values["method"] == "npe")
    values = values[~(npe & (values["observation"].astype(int) >= 2))]
    (table,) = score_tables(values, "kl_reverse", metric, METHODS[:2])
    assert texts(table) == {"slcp": ["1.000 ± 0.000 †", "0.500 ± 0.000 †"]}
    assert bold(table) == {"slcp": [False, False]}


def test_nothing_to_compare_has_no_tally(values):
    alone = paired_differences(values[values["method"] == "npe"], "c2st", "npe")
    assert tally_table({"c2st": alone}, ["npe"], "npe") is None
    assert difference_tables(alone, "c2st", METRICS["c2st"], ["npe"], "npe") == []


@pytest.mark.parametrize(
    ("value", "digits", "sign", "expected"),
    [
        (0.5, 3, False, "0.500"),
        (-2.345, 2, False, "−2.35"),
        (12345.6, 0, False, "12,346"),
        (-0.0004, 3, True, "0.000"),
        (0.004, 3, True, "+0.004"),
    ],
)
def test_numbers(value, digits, sign, expected):
    assert format_number(value, digits, sign=sign) == expected


NASTY = 'a_b & <script>"$5%#{x}~^\\|*'


class Text(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_escaped():
    parser = Text()
    parser.feed(Table("t", NASTY, ("task", NASTY), [[Cell(NASTY), Cell("1")]], NASTY).to_html())
    assert "script" not in parser.tags
    assert parser.text.count(NASTY) == 4


def test_latex_is_escaped():
    latex = Table(
        "t", "Title", ("task", NASTY), [[Cell("slcp"), Cell("0.5", bold=True)]]
    ).to_latex()
    assert (
        r"a\_b \& \textless{}script\textgreater{}"
        '"'
        r"\$5\%\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textbar{}*" in latex
    )
    assert r"slcp & \textbf{0.5} \\" in latex
    assert latex.index(r"\toprule") < latex.index(r"\midrule") < latex.index(r"\bottomrule")


def test_markdown_is_escaped():
    lines = Table(
        "t", "Title", ("task", NASTY), [[Cell("a\nb"), Cell("1", bold=True)]]
    ).to_markdown()
    header = lines.splitlines()[2]
    # Three bars that are not escaped: the table keeps its two columns.
    assert header.replace("\\|", "").count("|") == 3
    assert "<" not in header
    assert r"a\_b" in header
    assert "| a b | **1** |" in lines


def test_published_values_are_unique_and_by_classifier():
    published = load_published()
    assert not published.duplicated(["task", "num_simulations", "method", "classifier"]).any()
    assert set(published_npe("c2st")["classifier"]) == {"mlp"}
    assert set(published_npe("c2st_rf")["classifier"]) == {"rf"}
    for metric in ("c2st", "c2st_rf"):
        best = best_amortised(metric)
        assert set(best["kind"]) == {"amortized"}
        npe = published_npe(metric).merge(best, on=["task", "num_simulations"])
        assert (npe["c2st_mean_y"] <= npe["c2st_mean_x"]).all()


def test_ours_stand_beside_published_values(values):
    published = load_published().set_index(["task", "num_simulations", "method", "classifier"])
    pairs = compare_published(values).set_index(["task", "method", "published_method"])
    row = pairs.loc[("slcp", "npe", "NPE")]
    expected = published.loc[("slcp", 1000, "NPE", "mlp"), "c2st_mean"]
    assert row["published"] == expected
    assert row["difference"] == pytest.approx(0.93 - expected)
    assert row["beyond"] == (abs(0.93 - expected) > 0.03)
    assert ("slcp", "nle", "NLE") in pairs.index
    assert "ml" not in pairs.index.get_level_values("method")


def test_beyond_is_marked(values):
    npe = load_published().query("task == 'sir' and method == 'NPE' and num_simulations == 1000")
    expected = npe["c2st_mean"].item()
    for shift, mark in ((0.03, False), (0.031, True)):
        near = values[(values["task"] == "sir") & (values["method"] == "npe")].assign(
            value=expected + shift
        )
        (row,) = [row for row in published_table(near).rows if row[4].text == "NPE"]
        assert row[7].text.endswith("!") == mark
        assert row[7].bold == mark


def test_no_published_value_no_table(values):
    ours = values.assign(num_simulations=123)
    assert published_table(ours) is None
    assert best_published_table(ours) is None


def test_best_of_ours_has_all_values(values):
    rows = {row[0].text: row for row in best_published_table(values).rows}
    assert [cell.text for cell in rows["slcp"][3:5]] == ["ml", "0.830"]
    # ml is lower there, but has one seed of two.
    assert [cell.text for cell in rows["sir"][3:5]] == ["npe", "0.700"]
