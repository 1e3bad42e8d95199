"""The whole report from records, and the page in a browser."""

import base64
import html.parser
import json
import re
import shutil
import subprocess

import pandas as pd
import pytest
from synthetic_records import failed, make_record, write, write_grid

from sbi_jeffreys.benchmark.report import write_report

NASTY = "a<b>&_$x"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks, three methods, two seeds; one job failed, one is missing, one is corrupt."""
    folder = tmp_path_factory.mktemp("bench")
    write_grid(folder, ["slcp", "sir"], ["npe", "jeffreys", NASTY], [1000], 2)
    write(folder, failed("slcp", "jeffreys", 1000, 1))
    (folder / "records" / f"sir--{NASTY}--n1000--seed1.json").unlink()
    (folder / "records" / "sir--npe--n1000--seed1.json").write_text("{")
    (folder / "config.json").write_text(json.dumps({"command": "bench run --out <x>"}))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def test_csv_and_parquet_are_equal(folder):
    # Python's own reading of a number is exact in every version of pandas.
    csv = pd.read_csv(
        folder / "report" / "results.csv", dtype={"observation": str}, converters={"value": float}
    )
    parquet = pd.read_parquet(folder / "report" / "results.parquet")
    pd.testing.assert_frame_equal(csv, parquet, check_exact=True)
    assert set(csv["method"]) == {"npe", "jeffreys", NASTY}
    assert not csv.duplicated(list(csv.columns[:-1])).any()


def test_page_shows_every_figure_and_table(folder, page):
    elements = Elements(page)
    figures = {path.stem for path in (folder / "report" / "figures").glob("*.png")}
    tables = {path.stem for path in (folder / "report" / "tables").glob("*.md")}
    assert {"c2st_scores", "nll_cost", "coverage_n1000", "c2st_n1000_differences"} <= figures
    assert {"c2st_n1000", "nll_n1000_paired", "training_seconds_n1000", "published"} <= tables
    assert {f["id"] for f in elements.all("figure")} == figures
    assert {t["id"] for t in elements.all("table")} == tables | {"run_table", "missing"}
    assert {path.stem for path in (folder / "report" / "tables").glob("*.tex")} == tables
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in elements.all("a")} <= set(ids)


def test_page_asks_for_nothing(page):
    elements = Elements(page)
    assert not elements.all("script")
    assert all(
        image["src"].startswith("data:image/svg+xml;base64,") for image in elements.all("img")
    )
    assert all(link["href"].startswith("data:") for link in elements.all("link"))
    assert all(link["href"].startswith("#") for link in elements.all("a"))
    assert "@import" not in page
    assert "url(" not in page
    for image in elements.all("img"):
        svg = base64.b64decode(image["src"].partition(",")[2]).decode()
        assert not re.search(r'(href|src)="(?!#)', svg)


def test_images_say_what_they_are(page):
    alts = [image["alt"] for image in Elements(page).all("img")]
    assert all(len(alt) > 40 for alt in alts)
    assert len(set(alts)) == len(alts)


def test_what_is_wrong_is_listed(page):
    assert "RuntimeError: Loss is NaN &lt;script&gt;" in page
    assert "<script" not in page
    assert "sir--npe--n1000--seed1.json: not JSON" in page
    assert "2 missing jobs" in page
    assert "a&lt;b&gt;&amp;_$x" in page
    assert "<b>&_" not in page
    assert "bench run --out &lt;x&gt;" in page


def test_evaluations_that_differ_are_noticed(tmp_path):
    write(tmp_path, make_record("slcp", "npe", 100, 0, observations=[], metrics={}))
    write(tmp_path, make_record("slcp", "npe", 100, 1, observations=[], evaluation={"quick": True}))
    page = write_report(tmp_path, tmp_path / "out").read_text(encoding="utf-8")
    assert "records differ in evaluation (2 kinds)" in page


def test_only_failures_still_make_a_page(tmp_path):
    write(tmp_path, failed("slcp", "npe", 100, 0))
    page = write_report(tmp_path)
    assert page == tmp_path / "report" / "index.html"
    assert "Loss is NaN" in page.read_text(encoding="utf-8")
    assert pd.read_csv(tmp_path / "report" / "results.csv").empty


def test_tables_of_an_earlier_report_do_not_stay(tmp_path):
    write_grid(tmp_path, ["slcp"], ["npe", "ml"], [100, 1000], 2)
    write_report(tmp_path)
    folder = tmp_path / "report"
    before = {p.name for kind in ("tables", "figures") for p in (folder / kind).iterdir()}
    assert {"c2st_n1000_paired.md", "nll_n1000_differences.png", "nll_cost.png"} <= before
    notes = folder / "tables" / "notes.md"
    notes.touch()
    for path in (tmp_path / "records").glob("*ml--n1000*"):
        path.unlink()
    write_report(tmp_path)
    after = {p.name for kind in ("tables", "figures") for p in (folder / kind).iterdir()}
    assert "c2st_n1000_paired.md" not in after
    assert "nll_n1000_differences.png" not in after
    assert "c2st_n100_paired.md" in after
    assert notes.exists()
    elements = Elements((folder / "index.html").read_text(encoding="utf-8"))
    shown = {e["id"] for kind in ("table", "figure") for e in elements.all(kind)}
    assert {name.rpartition(".")[0] for name in after} == shown - {"run_table", "missing"} | {
        "notes"
    }


def test_baseline_must_be_there(tmp_path):
    write_grid(tmp_path, ["slcp"], ["ml", "jeffreys"], [100], 1)
    with pytest.raises(ValueError, match=r"'npe' is not among the methods here: jeffreys, ml\."):
        write_report(tmp_path)


# Written into a copy of the page: what the browser made of it, and what it was refused.
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images].map(i => [i.closest("figure").id, i.naturalWidth]);
  const tables = [...document.querySelectorAll("table")].map(t => [t.id, t.rows.length]);
  const fetched = performance.getEntriesByType("resource").map(e => e.name.slice(0, 60));
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.body.setAttribute("data-probe", JSON.stringify({images, tables, fetched, wide}));
});
</script></head>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: apt-get install chromium")
def test_page_in_a_browser(folder, page, tmp_path):
    probed = tmp_path / "page.html"
    # The page's own policy lets no script run.
    policy = "script-src 'unsafe-inline'; default-src"
    probed.write_text(
        page.replace("default-src", policy).replace("</head>", PROBE), encoding="utf-8"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    command += ["--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (body,) = Elements(done.stdout).all("body")
    seen = json.loads(body["data-probe"])
    figures = {path.stem for path in (folder / "report" / "figures").glob("*.png")}
    assert {name for name, _ in seen["images"]} == figures
    assert all(width > 200 for _, width in seen["images"])
    tables = {path.stem for path in (folder / "report" / "tables").glob("*.md")}
    assert tables <= {name for name, _ in seen["tables"]}
    assert all(rows > 1 for _, rows in seen["tables"])
    assert all(name.startswith("data:") for name in seen["fetched"])
    # Wide tables scroll by themselves.
    assert seen["wide"] <= 0
