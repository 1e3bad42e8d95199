"""Published C2ST values, and how ours compare with them.

`benchmark/published_c2st.csv` has a row per task, budget, method and classifier: mean C2ST over
observations, in sbibm the ten official ones with 10,000 samples of each. Values measured with a
network ("mlp") compare with our `c2st`, those with a random forest ("rf") with our `c2st_rf`, and
never with each other. `digitised` values were read off a figure. `kind` "amortized" is a method
that, as ours, is trained once on simulations from the prior.
"""

from functools import cache
from importlib.resources import files

import pandas as pd

from .compare import summary

__all__ = [
    "CLASSIFIERS",
    "NPE_NAMES",
    "TOLERANCE",
    "best_amortised",
    "compare_published",
    "load_published",
    "published_npe",
]

CLASSIFIERS = {"c2st": "mlp", "c2st_rf": "rf"}
"""Classifier of published values, by our name of the metric."""

NPE_NAMES = {"c2st": "NPE", "c2st_rf": "NPE[PFN25]"}
"""Published NPE whose line is drawn, by our name of the metric."""

# sbibm's NPE is its NPE-NSF, its NLE is NLE-MAF and its NRE is NRE-RES: equal values in the table.
# sbi's own NPE is a MAF today, so that it has two counterparts.
COUNTERPARTS = {
    "npe": {"c2st": ["NPE", "NPE-MAF"], "c2st_rf": ["NPE[PFN25]"]},
    "npe_nsf": {"c2st": ["NPE"]},
    "npe_sbibm": {"c2st": ["NPE"]},
    "npe_sbibm_maf": {"c2st": ["NPE-MAF"]},
    "npe_ensemble": {"c2st_rf": ["NPE-ens5"]},
    "nle": {"c2st": ["NLE"], "c2st_rf": ["NLE-maf[PFN25]"]},
    "nre": {"c2st": ["NRE"]},
}

TOLERANCE = 0.03
"""A difference of C2ST beyond which the comparison is flagged."""

KEYS = ["task", "num_simulations"]


@cache
def load_published() -> pd.DataFrame:
    """Read the table that comes with the package.

    Returns:
        Columns task, num_simulations, method, kind, classifier, c2st_mean, c2st_median, digitised
        and source; one row for each of the first five.
    """
    with files("sbi_jeffreys.benchmark").joinpath("published_c2st.csv").open("rb") as file:
        table = pd.read_csv(file)
    # Several studies of one paper repeat the same runs.
    return table.drop_duplicates([*KEYS, "method", "classifier"], ignore_index=True)


def published_npe(metric: str) -> pd.DataFrame:
    """Return the published values of NPE that go with a metric of ours.

    Args:
        metric: "c2st" or "c2st_rf".

    Returns:
        Rows of :func:`load_published`.
    """
    rows = load_published()
    return rows[(rows["classifier"] == CLASSIFIERS[metric]) & (rows["method"] == NPE_NAMES[metric])]


def best_amortised(metric: str) -> pd.DataFrame:
    """Return the best published value of an amortised method for each task and budget.

    Args:
        metric: "c2st" or "c2st_rf".

    Returns:
        Rows of :func:`load_published`. Methods that were told the task's structure, pretrained on
        other tasks, or chosen by their C2ST, are of another kind and left out.
    """
    rows = load_published()
    rows = rows[(rows["classifier"] == CLASSIFIERS[metric]) & (rows["kind"] == "amortized")]
    return rows.loc[rows.groupby(KEYS)["c2st_mean"].idxmin()]


def compare_published(table: pd.DataFrame) -> pd.DataFrame:
    """Compare our runs of published methods with the published values.

    Args:
        table: Tidy table of :class:`.load.Results`.

    Returns:
        A row per pair: task, num_simulations, method, metric, published_method, ours, published,
        difference (ours less published), beyond (whether by more than :data:`TOLERANCE`),
        digitised and source.
    """
    found = []
    for metric in CLASSIFIERS:
        ours = summary(table, metric)["mean"].rename("ours").reset_index()
        rows = load_published()
        rows = rows[rows["classifier"] == CLASSIFIERS[metric]]
        for method, counterparts in COUNTERPARTS.items():
            pairs = ours[ours["method"] == method].merge(
                rows[rows["method"].isin(counterparts.get(metric, []))].rename(
                    columns={"method": "published_method", "c2st_mean": "published"}
                ),
                on=KEYS,
            )
            found.append(pairs.assign(metric=metric))
    pairs = pd.concat(found, ignore_index=True)
    pairs["difference"] = pairs["ours"] - pairs["published"]
    # Rounded, so that a difference of 0.03 as written is not beyond it.
    pairs["beyond"] = pairs["difference"].abs().round(4) > TOLERANCE
    columns = [*KEYS, "method", "metric", "published_method", "ours", "published"]
    columns += ["difference", "beyond", "digitised", "source"]
    return pairs[columns].sort_values(["metric", *KEYS, "method"], ignore_index=True)
