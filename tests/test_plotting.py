"""Figures show the data they are given."""

import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sbi_jeffreys.plotting import plot_training
from sbi_jeffreys.posterior_plots import plot_posteriors

EPOCHS = 6
KEYS = [
    *(f"{what}_{which}" for what in ("divergence", "multiplier", "slack") for which in
      ("forward", "reverse", "proxy")),
    "log_partition_mean",
    "log_partition_std",
    "effective_sample_size",
    "validation_loss_proxy",
]  # fmt: skip
PANELS = ["likelihood", "divergences", "multipliers", "log_partition", "effective_sample_size"]


@pytest.fixture
def summary():
    values = {key: [i + e / 10 for e in range(EPOCHS)] for i, key in enumerate(KEYS)}
    return values | {
        "validation_loss": [3.0, 1.0, 2.0, 5.0, math.nan, 4.0],
        "epochs_trained": [3, 3],
        "best_validation_loss": [1.0, 4.0],
    }


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return {
        "reference": torch.randn(3000, 3, generator=generator),
        "NPE": torch.randn(500, 3, generator=generator) + 1.0,
    }


def panels(figure):
    return {ax.get_label(): ax for ax in figure.axes}


def has_line(ax, values):
    return any(
        len(line.get_ydata()) == len(values)
        and np.allclose(line.get_ydata(), values, equal_nan=True)
        for line in ax.lines
    )


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_training_panels_hold_their_series(summary):
    axes = panels(plot_training(summary))
    assert list(axes) == PANELS
    assert has_line(axes["likelihood"], summary["validation_loss"])
    assert has_line(axes["likelihood"], summary["validation_loss_proxy"])
    for which in ("forward", "reverse", "proxy"):
        assert has_line(axes["divergences"], summary[f"divergence_{which}"])
        assert has_line(axes["divergences"], summary[f"slack_{which}"])
        assert has_line(axes["multipliers"], summary[f"multiplier_{which}"])
    assert has_line(axes["log_partition"], summary["log_partition_mean"])
    assert has_line(axes["effective_sample_size"], summary["effective_sample_size"])
    assert texts(axes["likelihood"].get_legend()) == ["flow", "proxy", "best"]
    assert texts(axes["divergences"].get_legend())[-1] == "slack"


def test_training_band_is_one_standard_deviation(summary):
    (band,) = panels(plot_training(summary))["log_partition"].collections
    mean, std = np.array(summary["log_partition_mean"]), np.array(summary["log_partition_std"])
    vertices = band.get_paths()[0].vertices[:, 1]
    assert vertices.min() == pytest.approx((mean - std).min())
    assert vertices.max() == pytest.approx((mean + std).max())


def test_training_marks_best_epoch_of_each_round(summary):
    ax = panels(plot_training(summary))["likelihood"]
    (best,) = [line for line in ax.lines if line.get_label() == "best"]
    assert list(best.get_xdata()) == [2, 6]  # epochs count from 1, NaN is never the best
    assert list(best.get_ydata()) == [1.0, 4.0]


def test_training_marks_rounds(summary):
    for ax in plot_training(summary).axes:
        dotted = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
        assert dotted == [3.5]


def test_training_leaves_out_what_was_not_recorded(summary):
    plain = {key: [] for key in KEYS} | {"multiplier_proxy": [math.nan] * EPOCHS}
    plain |= {key: summary[key] for key in ("validation_loss", "epochs_trained")}
    figure = plot_training(plain)
    assert list(panels(figure)) == ["likelihood"]
    assert texts(figure.axes[0].get_legend()) == ["flow", "best"]


def test_a_legend_names_no_slack_that_is_not_drawn(summary):
    # Fixed weights have none; under linear prices all lie on their divergences.
    never = {f"slack_{which}": [math.nan] * EPOCHS for which in ("forward", "reverse", "proxy")}
    linear = {key: [1.0] * EPOCHS for key in summary if key.startswith("multiplier_")}
    for other in (never, linear):
        ax = panels(plot_training(summary | other))["divergences"]
        assert texts(ax.get_legend()) == ["data to flow", "flow to proxy", "data to proxy"]
        assert all(line.get_linestyle() != "--" for line in ax.lines)


def test_training_takes_a_trainer_and_one_epoch():
    class Trainer:
        summary = {"validation_loss": [2.0], "epochs_trained": [1]}  # noqa: RUF012

    assert has_line(plot_training(Trainer()).axes[0], [2.0])


def test_training_of_which_nothing_is_finite():
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_training({"validation_loss": [math.nan], "epochs_trained": [1]})


@pytest.mark.parametrize("record", [{}, {"validation_loss": []}, object(), None])
def test_training_without_record(record):
    with pytest.raises(ValueError, match=r"call train\(\) first"):
        plot_training(record)


def test_posteriors_form_a_triangle_with_labels_and_legend(samples):
    figure = plot_posteriors(samples, labels=["a", "b", "c"], title="slcp")
    assert len(figure.axes) == 6
    assert [ax.get_xlabel() for ax in figure.axes[-3:]] == ["a", "b", "c"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["", "b", "", "c", "", ""]
    assert texts(figure.legends[0]) == ["reference", "NPE"]
    assert figure.get_suptitle() == "slcp"


def test_posteriors_show_the_samples(samples):
    limits = [(-5.0, 6.0)] * 3
    figure = plot_posteriors(samples, limits=limits)
    marginal, pair = figure.axes[0], figure.axes[1]
    for outline, value in zip(marginal.patches[::2], samples.values(), strict=True):
        density, edges, _ = outline.get_data()
        expected, _ = np.histogram(value[:, 0].numpy(), bins=edges, density=True)
        np.testing.assert_allclose(density, expected)
    points = pair.collections[0].get_offsets()
    assert len(points) == 2000 + 500
    assert set(np.asarray(points[:, 0])) <= set(torch.cat(list(samples.values()))[:, 0].tolist())
    assert pair.get_xlim() == pair.get_ylim() == (-5.0, 6.0)


def test_posteriors_mark_the_truth(samples):
    figure = plot_posteriors(samples, truth=torch.tensor([0.1, 0.2, 0.3]))
    vertical, horizontal = figure.axes[1].lines
    # As a task has them, or an array.
    rows = {"a": samples["NPE"].numpy()}
    for truth in (torch.tensor([[0.1, 0.2, 0.3]]), np.array([0.1, 0.2, 0.3])):
        assert plot_posteriors(rows, truth=truth).axes[1].lines[0].get_xdata()[0] == pytest.approx(
            0.1
        )
    assert vertical.get_xdata()[0] == pytest.approx(0.1)
    assert horizontal.get_ydata()[0] == pytest.approx(0.2)
    assert texts(figure.legends[0])[-1] == "true parameters"


def test_posteriors_of_one_or_constant_parameter():
    figure = plot_posteriors({"point": torch.ones(10, 1)})
    assert figure.axes[0].get_xlim() == (0.5, 1.5)


def test_posteriors_of_a_constant_far_from_zero():
    figure = plot_posteriors({"point": torch.full((10, 1), 1e18)})
    low, high = figure.axes[0].get_xlim()
    assert low < 1e18 < high


def test_posteriors_take_limits_of_any_kind():
    limits = torch.tensor([[0.0, 2.0]], requires_grad=True)
    assert plot_posteriors({"a": torch.rand(5, 1)}, limits=limits).axes[0].get_xlim() == (0, 2)


@pytest.mark.parametrize("samples", [torch.rand(5, 2), [torch.rand(5, 2)]])
def test_posteriors_need_names(samples):
    with pytest.raises(TypeError, match=r"dictionary of samples by the name.*(Tensor|list)"):
        plot_posteriors(samples)


def test_global_state_is_untouched(samples, summary):
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    plot_posteriors(samples)
    plot_training(summary)
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": {}}, "samples is empty"),
        ({"samples": {"a": torch.zeros(5)}}, r"samples\['a'\] must have shape \(n, d\)"),
        ({"samples": {"a": torch.full((5, 2), math.nan)}}, r"samples\['a'\] has NaN or inf"),
        ({"samples": {"a": torch.rand(5, 2), "b": torch.rand(5, 3)}}, "differ in dimension"),
        ({"samples": {"a": torch.rand(5, 2)}, "labels": ["x"]}, r"labels must have shape \(2,\)"),
        ({"samples": {"a": torch.rand(5, 2)}, "limits": [(0, 1)]}, "limits must have shape"),
        ({"samples": {"a": torch.rand(5, 2)}, "truth": torch.zeros(3)}, "truth must have shape"),
        ({"samples": {"a": torch.rand(5, 1)}, "truth": [math.nan]}, "truth must be finite"),
        ({"samples": {"a": torch.rand(5, 1)}, "limits": [(1, 0)]}, "limits must be finite, each"),
        ({"samples": {"a": torch.rand(5, 1)}, "limits": [(0, math.inf)]}, "limits must be finite"),
    ],
)
def test_posteriors_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_posteriors(**arguments)


def test_a_posterior_is_not_its_samples():
    posterior = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    with pytest.raises(TypeError, match=r"samples\['NPE'\] is a Normal: pass its samples"):
        plot_posteriors({"NPE": posterior})
