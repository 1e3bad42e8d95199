"""The report as one HTML page that asks for nothing outside itself.

Images are data URIs, style is inline, there is no script; a content security policy makes the
browser refuse the rest.
"""

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from ..jobs import Job
from .load import Results
from .markup import Table
from .panels import Drawing
from .tables import job_table

__all__ = ["Section", "render_page"]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --paper: #ffffff; --band: #f6f8fa; --good: #00548a; --bad: #a63c00; --warn: #fff4ce; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --line: #3d444d;
  --paper: #0d1117; --band: #161b22; --good: #79b8ff; --bad: #ffa36b; --warn: #3a2f0b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 72rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p { max-width: 48rem; }
a { color: var(--good); }
nav ul { columns: 15rem; padding-left: 1.2rem; margin: .5rem 0; }
.lead, .note, figcaption { color: var(--soft); }
.note, figcaption { font-size: .875rem; max-width: 60rem; }
.note { margin: .25rem 0 1.25rem; }
.warning { background: var(--warn); border-left: 4px solid #bf8700; padding: .6rem 1rem;
  margin: 1rem 0; }
.warning ul { margin: .25rem 0; padding-left: 1.2rem; }
figure { margin: 1.25rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .5rem;
  border: 1px solid var(--line); border-radius: 6px; }
figcaption { margin-top: .4rem; }
.scroll { overflow-x: auto; margin-top: 1.25rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .35rem; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
thead th { background: var(--band); }
tbody th { font-weight: 400; }
table.numeric th:first-child { position: sticky; left: 0; background: var(--paper); }
table.numeric th:not(:first-child), table.numeric td { text-align: right; }
table.wrap td, table.words td:last-child { white-space: normal; min-width: 9rem; }
.better { color: var(--good); }
.worse { color: var(--bad); text-decoration: underline; text-decoration-style: dotted; }
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--band); padding: .75rem 1rem; font-size: .8rem;
  border-radius: 6px; }
code { font-size: .9em; overflow-wrap: anywhere; }
@media print { body { max-width: none; } details > * { display: block; } }
"""


@dataclass
class Section:
    """A part of the page under one heading."""

    anchor: str
    """Identifier that links point to."""
    title: str
    """Its heading."""
    parts: Sequence[Drawing | Table] = ()
    """Figures and tables, in their order."""
    text: str = ""
    """A paragraph before everything."""
    folded: bool = False
    """Whether the tables are folded away; figures then come first."""

    @property
    def drawings(self) -> list[Drawing]:
        """The figures among its parts."""
        return [part for part in self.parts if isinstance(part, Drawing)]

    @property
    def tables(self) -> list[Table]:
        """The tables among its parts."""
        return [part for part in self.parts if isinstance(part, Table)]

    def to_html(self) -> str:
        """Write heading, figures and tables."""
        parts = [f'<h2 id="{self.anchor}">{html.escape(self.title)}</h2>']
        if self.text:
            parts.append(f"<p>{html.escape(self.text)}</p>")
        if not self.folded:
            return "\n".join([*parts, *_blocks(self.parts)])
        parts += _blocks(self.drawings)
        if self.tables:
            count = _count(len(self.tables), "table")
            tables = "\n".join(_blocks(self.tables))
            parts.append(f"<details><summary>{count}</summary>\n{tables}\n</details>")
        return "\n".join(parts)


def _blocks(parts: Sequence[Drawing | Table]) -> Iterator[str]:
    """Write figures and tables; of tables in a row with the same note only the last shows it."""
    for part, following in zip_longest(parts, parts[1:]):
        if isinstance(part, Drawing):
            yield _figure(part)
        else:
            repeated = isinstance(following, Table) and following.note == part.note
            yield (replace(part, note="") if repeated else part).to_html()


def _figure(drawing: Drawing) -> str:
    return (
        f'<figure id="{drawing.name}"><img src="{drawing.to_data_uri()}" '
        f'alt="{html.escape(drawing.alt)}"><figcaption>{html.escape(drawing.caption)}</figcaption>'
        "</figure>"
    )


def render_page(results: Results, sections: Sequence[Section], *, baseline: str) -> str:
    """Write the page.

    Args:
        results: What was read.
        sections: Its parts with figures and tables; those with neither are left out.
        baseline: Method that others are compared with.

    Returns:
        HTML.
    """
    sections = [s for s in sections if s.parts or s.text]
    links = [(s.anchor, s.title) for s in sections]
    links = [("run", "What was run"), *links, ("problems", "Jobs and records that are missing")]
    nav = "".join(f'<li><a href="#{a}">{html.escape(title)}</a></li>' for a, title in links)
    body = "\n".join(section.to_html() for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Benchmark report</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>Benchmark report</h1>
<p class="lead">{html.escape(_lead(results, baseline))}</p>
</header>
{_warnings(results)}
<nav aria-label="Contents"><ul>{nav}</ul></nav>
<main>
{_what_was_run(results)}
{body}
{_problems(results)}
</main>
</body>
</html>
"""


def _lead(results: Results, baseline: str) -> str:
    tasks, methods, budgets, seeds = (
        len(results.axis(name)) for name in ("task", "method", "num_simulations", "seed")
    )
    return (
        f"{_count(len(results.records), 'job')} on {_count(tasks, 'task')}: "
        f"{_count(methods, 'method')}, {_count(budgets, 'budget')}, {_count(seeds, 'seed')}. "
        f"Differences are from {baseline}. Numbers are in results.csv and results.parquet, tables "
        "in tables/, figures in figures/, next to this page."
    )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _warnings(results: Results) -> str:
    found = []
    if results.failed:
        found.append(_count(len(results.failed), "failed job"))
    if results.missing:
        found.append(_count(len(results.missing), "missing job"))
    if results.corrupt:
        found.append(f"{_count(len(results.corrupt), 'record')} that cannot be read")
    for name in ("evaluation", "versions"):
        kinds = len(_kinds(results, name))
        if kinds > 1:
            found.append(f"records differ in {name} ({kinds} kinds): compare with care")
    if not found:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in found)
    return (
        f'<div class="warning" role="note"><strong>Not complete.</strong><ul>{items}</ul>'
        '<a href="#problems">Which ones</a></div>'
    )


def _kinds(results: Results, name: str) -> dict[str, int]:
    """Count the different values of a field of the records."""
    counts: dict[str, int] = {}
    for record in [*results.records.values(), *results.failed.values()]:
        text = _describe(record.get(name) or {})
        counts[text] = counts.get(text, 0) + 1
    return counts


def _describe(fields: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in fields.items()
    )


def _what_was_run(results: Results) -> str:
    rows = [
        ("Tasks", ", ".join(results.axis("task"))),
        ("Methods", ", ".join(results.axis("method"))),
        ("Simulations", ", ".join(f"{n:,}" for n in results.axis("num_simulations"))),
        ("Seeds", ", ".join(map(str, results.axis("seed")))),
    ]
    for name in ("evaluation", "versions", "machine"):
        kinds = _kinds(results, name)
        for text, count in kinds.items():
            which = f" ({_count(count, 'job')})" if len(kinds) > 1 else ""
            rows.append((f"{name.capitalize()}{which}", text or "not recorded"))
    started = sorted(str(r["started"]) for r in results.records.values() if r.get("started"))
    if started:
        rows.append(("Started", f"{started[0]} (first job) to {started[-1]} (last job)"))
    hours = results.table.loc[results.table["metric"] == "total_cpu_seconds", "value"].sum() / 3600
    if hours:
        rows.append(("Processor time", f"{hours:,.2f} h in all"))
    if results.command:
        rows.append(("Command", results.command))
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>'
        + (f"<code>{html.escape(text)}</code>" if name == "Command" else html.escape(text))
        + "</td></tr>"
        for name, text in rows
    )
    return (
        '<h2 id="run">What was run</h2><div class="scroll"><table id="run_table" class="wrap">'
        f"<tbody>{body}</tbody></table></div>"
    )


def _problems(results: Results) -> str:
    parts = ['<h2 id="problems">Jobs and records that are missing</h2>']
    if not (results.failed or results.missing or results.corrupt):
        return "\n".join([*parts, "<p>None: every job of the grid ran.</p>"])
    for job, record in results.failed.items():
        parts.append(_failure(job, record.get("error") or {}))
    if results.missing:
        title = f"{_count(len(results.missing), 'job')} of the grid without a record"
        table = job_table("missing", title, results.missing).to_html()
        parts.append(f"<details><summary>{title}</summary>{table}</details>")
    parts.append(
        _list("Records that cannot be read", (f"{k}: {v}" for k, v in results.corrupt.items()))
    )
    return "\n".join(parts)


def _failure(job: Job, error: Mapping[str, Any]) -> str:
    what = f"{job.task}, {job.method}, {job.num_simulations:,} simulations, seed {job.seed}"
    message = f"{error.get('type', 'unknown error')}: {error.get('message', '')}"
    return (
        f'<details class="failed"><summary>Failed: {html.escape(what)}</summary>'
        f"<p>{html.escape(message)}</p>"
        f"<pre>{html.escape(str(error.get('traceback') or 'No traceback was recorded.'))}</pre>"
        "</details>"
    )


def _list(title: str, items: Iterable[str]) -> str:
    entries = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f"<h3>{title}</h3><ul>{entries}</ul>" if entries else ""
