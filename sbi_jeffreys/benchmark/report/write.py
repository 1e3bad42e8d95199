"""From a folder of records to a folder with the report: `results.*`, `tables/`, `figures/`, page.

The parts: :mod:`.load` reads records into a tidy table, :mod:`.compare` has the statistics,
:mod:`.published` the published values, :mod:`.tables` and :mod:`.figures` show them, :mod:`.page`
puts all on one page.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from .catalogue import COSTS, METRICS
from .compare import paired_differences
from .figures import draw_cost, draw_coverage, draw_differences
from .load import Results, load_results
from .markup import Table
from .page import Section, render_page
from .panels import Drawing
from .published_tables import best_published_table, published_table
from .score_figures import draw_scores
from .tables import (
    budgets_of,
    difference_tables,
    score_tables,
    tally_table,
)

__all__ = ["write_report"]

# What tables and figures are called.
_METRIC = "|".join([*METRICS, *COSTS, "coverage"])
_KIND = r"n\d+(_paired|_differences)?|scores|cost"
_OURS = re.compile(rf"(({_METRIC})_({_KIND})|tally|published|published_best)\.(md|tex|png)")


def write_report(directory: Path, out: Path | None = None, *, baseline: str = "npe") -> Path:
    """Write the report of a benchmark.

    Args:
        directory: Folder that `sbi-jeffreys bench run` wrote.
        out: Folder to write to, made if it is missing; `None` takes `directory / "report"`. Files
            of an earlier report are overwritten, and what it had and this one lacks is removed.
        baseline: Method that the others are compared with.

    Returns:
        Path of the page, `out / "index.html"`.

    Raises:
        ValueError: If there are no records that can be read, or none of the baseline.
        OSError: If a folder cannot be read or written.
    """
    results = load_results(directory)
    found = results.axis("method")
    if baseline not in found:
        raise ValueError(
            f"The baseline {baseline!r} is not among the methods here: {', '.join(found)}. Name "
            "one of them with --baseline, or run it too."
        )
    methods = [baseline, *(method for method in found if method != baseline)]
    out = directory / "report" if out is None else out
    for folder in (out, out / "tables", out / "figures"):
        folder.mkdir(parents=True, exist_ok=True)
    results.table.to_csv(out / "results.csv", index=False)
    results.table.to_parquet(out / "results.parquet", engine="pyarrow", index=False)
    sections = _sections(results, methods, baseline)
    _remove_earlier(out)
    for section in sections:
        for table in section.tables:
            (out / "tables" / f"{table.name}.md").write_text(table.to_markdown(), encoding="utf-8")
            (out / "tables" / f"{table.name}.tex").write_text(table.to_latex(), encoding="utf-8")
        for drawing in section.drawings:
            (out / "figures" / f"{drawing.name}.png").write_bytes(drawing.to_png())
    page = out / "index.html"
    page.write_text(render_page(results, sections, baseline=baseline), encoding="utf-8")
    return page


def _remove_earlier(out: Path) -> None:
    """Remove tables and figures of an earlier report: it may have had some that this one lacks."""
    for path in [*(out / "tables").iterdir(), *(out / "figures").iterdir()]:
        if _OURS.fullmatch(path.name):
            path.unlink()


def _sections(results: Results, methods: Sequence[str], baseline: str) -> list[Section]:
    table = results.table
    budgets = sorted(int(n) for n in table["num_simulations"].unique())
    differences = {name: paired_differences(table, name, baseline) for name in METRICS}
    sections = [_glance(differences, methods, baseline)]
    for name, metric in METRICS.items():
        parts: list[Drawing | Table | None] = [*score_tables(table, name, metric, methods)]
        if metric.drawn:
            parts.insert(0, draw_scores(table, name, metric, methods))
        compared = difference_tables(differences[name], name, metric, methods, baseline)
        for shown, n in zip(compared, budgets_of(differences[name]), strict=True):
            if metric.drawn:
                parts.append(
                    draw_differences(differences[name], name, metric, methods, baseline, n)
                )
            parts.append(shown)
        sections.append(Section(name, metric.label, _present(parts), folded=not metric.drawn))
    curves = [draw_coverage(table, methods, n) for n in budgets]
    costs = [draw_cost(table, name, methods) for name in ("c2st", "nll")]
    cost_tables = [t for name in COSTS for t in score_tables(table, name, COSTS[name], methods)]
    literature = [best_published_table(table), published_table(table)]
    return [
        *sections,
        Section("coverage", "Coverage", _present(curves)),
        Section("cost", "Cost", _present([*costs, *cost_tables]), folded=True),
        Section("literature", "Published values", _present(literature)),
    ]


def _present(parts: Sequence[Drawing | Table | None]) -> list[Drawing | Table]:
    return [part for part in parts if part is not None]


def _glance(
    differences: Mapping[str, pd.DataFrame], methods: Sequence[str], baseline: str
) -> Section:
    tally = tally_table(differences, methods, baseline)
    if tally is not None:
        return Section("glance", "At a glance", [tally])
    return Section(
        "glance",
        "At a glance",
        text=f"No method can be compared with {baseline}: that needs the same task, budget and "
        "seed of both, and at least two pairs.",
    )
