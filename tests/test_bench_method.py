"""The comparison of variants: every variant can be built, runs are completed and not repeated."""

import math

import pandas as pd
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_jeffreys.bench_method import VARIANTS, main


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variants_are_trainers_with_arguments(name):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    trainer_class, arguments, _ = VARIANTS[name](prior)
    own = {"settings", "members"}
    arguments = {key: value for key, value in arguments.items() if key not in own}
    trainer_class(prior, show_progress_bars=False, **arguments)


def test_a_run_is_completed_and_not_repeated(tmp_path, capsys):
    path = tmp_path / "out.csv"
    common = ["--tasks", "two_moons", "--seeds", "0", "--num-simulations", "60"]
    common += ["--num-test", "50", "--jobs", "1", "--out", str(path), "--variants"]
    main([*common, "ml, our flow"])
    first = pd.read_csv(path)
    main([*common, "ml, our flow", "ml, five members", "ml, weight decay 0.1"])
    rows = pd.read_csv(path)
    assert rows.iloc[:1].equals(first)
    assert list(rows.variant) == ["ml, our flow", "ml, five members", "ml, weight decay 0.1"]
    assert rows.nll.map(math.isfinite).all()
    # Different models: an ensemble of five differs from its first member.
    assert rows.nll.nunique() == 3
    assert "five members" in capsys.readouterr().out
