"""Bad input is refused with its value and a remedy; odd input works."""

import linecache
import logging
import warnings

import numpy as np
import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn
from trainers import THETA, X, make, usable

from sbi_jeffreys import load, save
from sbi_jeffreys.costs import LinearCost
from sbi_jeffreys.density import JeffreysDensity
from sbi_jeffreys.duals import ResilientDual

NAN, INF = float("nan"), float("inf")

ONE_SAMPLE = "ignore:Only one data sample provided"


def with_entry(values: Tensor, row: int, column: int, value: float) -> Tensor:
    changed = values.clone()
    changed[row, column] = value
    return changed


MASKED = np.ma.masked_array(X.numpy().copy(), mask=np.zeros(X.shape, bool))
MASKED[3] = np.ma.masked


# Simulations


SIMULATIONS = {
    "theta is one-dimensional": (THETA[:, 0], X, ValueError, ("(60,)", ".reshape(-1, 1)")),
    "x is one-dimensional": (THETA, X[:, 0], ValueError, ("(60,)", ".reshape(-1, 1)")),
    "theta is three-dimensional": (THETA[None], X, ValueError, ("(1, 60, 2)", "(n, d)")),
    "theta is one number": (THETA[0, 0], X, ValueError, ("()", ".reshape(-1, 1)")),
    "x is one number": (THETA, X[0, 0].double(), ValueError, ("()", ".reshape(-1, 1)")),
    "lengths": (THETA[:50], X, ValueError, ("50", "60", "one x for each theta")),
    "none": (THETA[:0], X[:0], ValueError, ("No simulations", "(0, 2)")),
    "no data in x": (THETA, X[:, :0], ValueError, ("No simulations", "(60, 0)")),
    "other dimension than the prior": (THETA[:, :1], X, ValueError, ("1 param", "has 2", "order")),
    "NaN in theta": (with_entry(THETA, 7, 1, NAN), X, ValueError, ("1 of 60", "row 7", "remove")),
    "inf in theta": (with_entry(THETA, 9, 0, INF), X, ValueError, ("1 of 60", "row 9", "remove")),
    "list": (THETA.tolist(), X, TypeError, ("theta", "list", "numpy array")),
    "None": (THETA, None, TypeError, ("x must be", "NoneType")),
    "complex": (THETA, X + 0j, TypeError, ("x is complex", "real and imaginary")),
    "masked": (THETA, MASKED, TypeError, ("x is", "masked", "x.filled(np.nan)")),
    "words": (X.numpy().astype(str), X, TypeError, ("theta", "<U", "theta.astype(float)")),
    "sparse": (THETA, X.to_sparse(), TypeError, ("x is", "sparse", "dense")),
}


@pytest.mark.parametrize("case", SIMULATIONS)
def test_simulations_are_refused(case):
    theta, x, error, parts = SIMULATIONS[case]
    with pytest.raises(error) as caught:
        make().append_simulations(theta, x)
    for part in parts:
        assert part in str(caught.value)


def test_another_default_type_is_refused_before_networks_are_made(tmp_path):
    trainer = make().append_simulations(THETA, X)
    trainer.train(max_num_epochs=1)
    path = tmp_path / "posterior.safetensors"
    save(trainer.build_posterior(), path)
    torch.set_default_dtype(torch.float64)
    try:
        for call in (
            lambda: make().append_simulations(THETA, X),
            lambda: trainer.train(max_num_epochs=2, resume_training=True),
            lambda: save(trainer.build_posterior(), path),
            lambda: load(path),
        ):
            with pytest.raises(ValueError, match=r"torch.float64.*set_default_dtype"):
                call()
    finally:
        torch.set_default_dtype(torch.float32)


def test_theta_that_never_varies_is_refused():
    theta = torch.stack((THETA[:, 0], torch.full((60,), 0.5)), dim=1)
    trainer = make().append_simulations(theta, X)
    with pytest.raises(ValueError, match=r"column 1 \(= 0.5\) of all 60 simulations.*leave it out"):
        trainer.train(max_num_epochs=1)


def test_theta_may_repeat_within_a_batch_of_simulations():
    trainer = make()
    for row in range(20):
        trainer.append_simulations(THETA[row : row + 1].repeat(3, 1), X[3 * row : 3 * row + 3])
    trainer.train(max_num_epochs=1, validation_data=(THETA[:1].repeat(5, 1), X[:5]))
    assert usable(trainer)


def test_later_simulations_must_have_the_same_shape():
    trainer = make().append_simulations(THETA, X)
    with pytest.raises(ValueError, match=r"shape \(1,\), in earlier simulations \(2,\)"):
        trainer.append_simulations(THETA, X[:, :1])


@pytest.mark.filterwarnings(ONE_SAMPLE)
@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("kwargs", [{}, {"dataloader_kwargs": {"batch_size": 1}}])
def test_too_few_simulations(num, kwargs):
    trainer = make().append_simulations(THETA[:num], X[:num])
    with pytest.raises(ValueError, match=rf"{num} simulations are too few with val.*append more"):
        trainer.train(max_num_epochs=1, **kwargs)


@pytest.mark.parametrize("estimator", ["mdn", "coupling_nsf"])
@pytest.mark.parametrize("num", [3, 10])
def test_fewer_simulations_than_a_batch_work(estimator, num):
    trainer = make(estimator).append_simulations(THETA[:num], X[:num])
    trainer.train(max_num_epochs=2, training_batch_size=200)
    assert usable(trainer)


@pytest.mark.parametrize("estimator", ["mdn", "coupling_nsf", "maf"])
def test_constant_column_of_x_works(estimator):
    x = torch.cat((X, torch.full((60, 1), 3.0)), dim=1)
    with pytest.warns(UserWarning, match=r"constant values in dimension\(s\) \[2\]"):
        trainer = make(estimator).append_simulations(THETA, x)
    trainer.train(max_num_epochs=1)
    posterior = trainer.build_posterior()
    assert posterior.potential(THETA[:3], x=x[:1]).isfinite().all()


def test_nan_and_inf_in_x_are_excluded_with_a_count(caplog):
    x = with_entry(with_entry(with_entry(X, 3, 0, NAN), 4, 1, INF), 5, 1, -INF)
    with caplog.at_level(logging.WARNING):
        trainer = make().append_simulations(THETA, x)
    assert "1 NaN simulations and 2 Inf simulations" in caplog.text
    theta, kept, _ = trainer.get_simulations()
    valid = torch.cat((torch.arange(3), torch.arange(6, 60)))
    assert torch.equal(theta, THETA[valid])
    assert torch.equal(kept, X[valid])
    trainer.train(max_num_epochs=1)
    assert usable(trainer)


def test_all_of_x_invalid():
    with pytest.raises(AssertionError, match="No valid data entries left"):
        make().append_simulations(THETA, torch.full_like(X, NAN))


def test_nan_in_x_kept_by_the_user_is_named():
    x = X.clone()
    x[::2] = NAN
    trainer = make("coupling_nsf").append_simulations(THETA, x, exclude_invalid_x=False)
    with pytest.raises(ValueError, match=r"not finite before the first epoch.*exclude_invalid_x"):
        trainer.train(max_num_epochs=1)


@pytest.mark.filterwarnings("ignore:Found 6 NaN simulations")
def test_held_out_rows_may_lack_what_rows_to_train_on_lack():
    """Trials of unequal number, filled up with NaN, for an embedding that knows what to do."""

    class Known(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.nan_to_num(0.0))

    x = with_entry(X, 3, 0, NAN)
    build = posterior_nn("mdn", embedding_net=Known(2, 3), z_score_x="none")
    trainer = make(build).append_simulations(THETA, x, exclude_invalid_x=False)
    trainer.train(max_num_epochs=1, validation_data=(THETA[:9], x[:9]))
    trainer.train(max_num_epochs=2, validation_data=(THETA[:9], x[:9]), resume_training=True)
    assert len(trainer.summary["validation_loss"]) == 2


def test_another_default_type_of_torch_is_refused():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match=r"float64.*set_default_dtype\(torch.float32\)"):
            make().append_simulations(THETA, X)
    finally:
        torch.set_default_dtype(torch.float32)


def test_simulations_of_a_differentiable_simulator():
    theta = THETA.clone().requires_grad_()
    trainer = make("coupling_nsf").append_simulations(theta, theta + X)
    trainer.train(max_num_epochs=1, validation_data=(theta[:9], (theta + X)[:9]))
    assert usable(trainer)


# Arguments


INIT = {
    "estimator": ({"density_estimator": "nope"}, ValueError, ("'nope'", "coupling_nsf", "'maf'")),
    "estimator is a module": (
        {"density_estimator": torch.nn.Linear(1, 1)},
        TypeError,
        ("density_estimator", "function of (theta, x)", "Linear"),
    ),
    "estimator is a number": ({"density_estimator": 3}, TypeError, ("density_estimator", "int")),
    "proxy": ({"proxy": "nope"}, ValueError, ("'nope'", "'mlp'", "function")),
    "proxy is a module": ({"proxy": torch.nn.Linear(1, 1)}, TypeError, ("function", "Linear")),
    "objective": ({"objective": "nope"}, ValueError, ("'nope'", "'dual'", "ResilientDual")),
    "objective is a number": ({"objective": 1.0}, TypeError, ("1.0", "init() and step()")),
    "objective of two": (
        {"objective": ResilientDual((LinearCost(), LinearCost()))},
        ValueError,
        ("2 multipliers", "three divergences"),
    ),
    "objective is a class": ({"objective": ResilientDual}, TypeError, ("init() and step()",)),
    "draws": ({"draws": {"flow": 4}}, TypeError, ("draws must be", "{'flow': 4}")),
    "rate": ({"proxy_learning_rate": 0.0}, ValueError, ("proxy_learning_rate", "positive", "0.0")),
    "negative rate": ({"proxy_learning_rate": -1}, ValueError, ("proxy_learning_rate", "-1")),
    "no rate": ({"proxy_learning_rate": None}, TypeError, ("proxy_learning_rate", "None")),
    "decay": ({"proxy_weight_decay": -0.1}, ValueError, ("proxy_weight_decay", "-0.1")),
    "NaN decay": ({"proxy_weight_decay": NAN}, ValueError, ("proxy_weight_decay", "nan")),
    "infinite decay": ({"proxy_weight_decay": INF}, ValueError, ("proxy_weight_decay", "inf")),
    "no decay": ({"proxy_weight_decay": None}, TypeError, ("proxy_weight_decay", "None")),
}

TRAIN = {
    "batch": ({"training_batch_size": 0}, ValueError, ("training_batch_size", "0")),
    "broken batch": ({"training_batch_size": 1.5}, ValueError, ("training_batch_size", "1.5")),
    "atoms": ({"num_atoms": 0}, ValueError, ("num_atoms", "0")),
    "rate": ({"learning_rate": 0.0}, ValueError, ("learning_rate", "0.0")),
    "negative rate": ({"learning_rate": -1e-3}, ValueError, ("learning_rate", "-0.001")),
    "NaN rate": ({"learning_rate": NAN}, ValueError, ("learning_rate", "nan")),
    "rate is a word": ({"learning_rate": "fast"}, TypeError, ("learning_rate", "'fast'")),
    "patience": ({"stop_after_epochs": 0}, ValueError, ("stop_after_epochs", "0")),
    "epochs": ({"max_num_epochs": 0}, ValueError, ("max_num_epochs", "0")),
    "negative epochs": ({"max_num_epochs": -5}, ValueError, ("max_num_epochs", "-5")),
    "norm": ({"clip_max_norm": 0.0}, ValueError, ("clip_max_norm", "0.0")),
    "no validation": ({"validation_fraction": 0.0}, ValueError, ("validation_fraction", "0.0")),
    "all validation": ({"validation_fraction": 1.0}, ValueError, ("validation_fraction", "1.0")),
    "validation is a word": ({"validation_fraction": "a"}, TypeError, ("validation_fraction", "a")),
    "validation is none": ({"validation_fraction": None}, TypeError, ("validation_fraction",)),
    "loaders": ({"dataloader_kwargs": 3}, TypeError, ("dataloader_kwargs", "dictionary", "3")),
    "nothing to resume": ({"resume_training": True}, RuntimeError, ("Nothing to resume", "train")),
    "held-out lengths": ({"validation_data": (THETA, X[:5])}, ValueError, ("60", "5")),
    "held-out shape": (
        {"validation_data": (THETA, X[:, :1])},
        ValueError,
        ("(1,)", "(2,)", "one shape"),
    ),
    "held-out NaN": (
        {"validation_data": (THETA, with_entry(X, 3, 0, NAN))},
        ValueError,
        ("validation_data", "1 of 60", "remove"),
    ),
    "held-out theta only": ({"validation_data": THETA}, TypeError, ("(theta, x)", "Tensor")),
    "held-out and loaders": (
        {"validation_data": (THETA, X), "dataloader_kwargs": {}},
        ValueError,
        ("cannot be combined", "Leave one"),
    ),
    "batches that never fill": (
        {"dataloader_kwargs": {"batch_size": 50}},
        ValueError,
        ("no batch", "6 to validate", "drop_last=False"),
    ),
}


@pytest.mark.parametrize("case", INIT)
def test_arguments_of_the_trainer_are_refused(case):
    kwargs, error, parts = INIT[case]
    with pytest.raises(error) as caught:
        make(**kwargs)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("case", TRAIN)
def test_arguments_of_train_are_refused(case):
    kwargs, error, parts = TRAIN[case]
    trainer = make().append_simulations(THETA, X)
    with pytest.raises(error) as caught:
        trainer.train(**kwargs)
    for part in parts:
        assert part in str(caught.value)


def test_refused_arguments_leave_the_trainer_usable():
    trainer = make().append_simulations(THETA, X)
    with pytest.raises(ValueError, match="learning_rate"):
        trainer.train(learning_rate=0.0)
    trainer.train(max_num_epochs=1)
    assert usable(trainer)


def test_train_without_simulations():
    with pytest.raises(RuntimeError, match=r"No simulations: call append_simulations"):
        make().train()


def test_posterior_before_training():
    with pytest.raises(RuntimeError, match=r"call train\(\) before build_posterior"):
        make().append_simulations(THETA, X).build_posterior()


def test_training_twice_says_how_to_go_on():
    trainer = make().append_simulations(THETA, X)
    trainer.train(max_num_epochs=1)
    with pytest.raises(ValueError, match="resume_training=True"):
        trainer.train(max_num_epochs=1)


@pytest.mark.parametrize("first", [None, (THETA[:20], X[:20])], ids=["fraction", "others"])
def test_resuming_with_other_held_out_rows_is_refused(first):
    trainer = make().append_simulations(THETA, X)
    trainer.train(max_num_epochs=1, validation_data=first)
    with pytest.raises(ValueError, match="goes on with the held-out rows it began with"):
        trainer.train(validation_data=(THETA[20:40], X[20:40]), resume_training=True)
    trainer.train(max_num_epochs=2, validation_data=first, resume_training=True)
    assert usable(trainer)


# Numbers that float32 cannot tell apart


@pytest.mark.parametrize("name", ["theta", "x"])
def test_lost_digits_are_warned_of(name):
    values = {"theta": THETA.double(), "x": X.double()}
    values[name] = values[name] + torch.tensor([0.0, 2_460_000.5]).double()
    trainer = make(prior=None)
    with pytest.warns(UserWarning, match=f"{name} loses digits .* column 1.*Subtract an offset"):
        trainer.append_simulations(**values)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_digits_that_are_lost_are_told_of(dtype):
    x = torch.cat((X.double(), (1_700_000_000 + 10 * torch.arange(60))[:, None]), dim=1).to(dtype)
    with pytest.warns(UserWarning, match="x loses digits that matter in column 2"):
        make("coupling_nsf").append_simulations(THETA, x)


def test_values_beyond_float32_are_refused():
    with pytest.raises(ValueError, match=r"x holds values of up to .*e\+300.*another unit"):
        make().append_simulations(THETA, 1e300 * (X.double() + 2))


def test_an_observation_of_another_type_is_taken():
    trainer = make("coupling_nsf")
    trainer.append_simulations(THETA, X).train(max_num_epochs=1)
    posterior = trainer.build_posterior()
    expected = posterior.log_prob(THETA[:3], x=X[:1])
    assert torch.equal(posterior.log_prob(THETA[:3], x=X[:1].double()), expected)


# Gradients, seeds and warnings


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_needs_gradients(mode):
    trainer = make().append_simulations(THETA, X)
    trainer.train(max_num_epochs=1)
    with mode(), pytest.raises(RuntimeError, match="train outside of"):
        trainer.train(max_num_epochs=2, resume_training=True)
    trainer.train(max_num_epochs=2, resume_training=True)
    assert usable(trainer)
    with mode(), pytest.raises(RuntimeError, match="train outside of"):
        JeffreysDensity().fit(THETA)


@pytest.mark.parametrize("name", ["mnpe", "mnle"])
def test_estimators_of_discrete_parameters_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}.*discrete.*sbi's own MNPE"):
        make(name)


@pytest.mark.parametrize("seed", ["a", 1.5])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(TypeError, match=f"seed must be an integer or None, got {seed!r}"):
        make(seed=seed)


def lines_of(caught) -> list[str]:
    return [linecache.getline(w.filename, w.lineno).strip() for w in caught]


def test_warnings_name_the_users_line():
    """From whatever depth, and not only where there is one way to get there."""
    far = X.double() + 3e6
    trainer = make()
    with pytest.warns(UserWarning, match="loses digits") as caught:
        trainer.append_simulations(THETA, far)
    assert lines_of(caught)[:1] == ["trainer.append_simulations(THETA, far)"]
    with pytest.warns(UserWarning, match="loses digits") as caught:
        trainer.train(max_num_epochs=1, validation_data=(THETA, far))
    assert lines_of(caught)[:1] == ["trainer.train(max_num_epochs=1, validation_data=(THETA, far))"]
    with pytest.warns(UserWarning, match="outside of the prior") as caught:
        make().append_simulations(THETA + 1, X)
    assert lines_of(caught) == ["make().append_simulations(THETA + 1, X)"]


def test_who_stops_a_run_by_its_epochs_is_told():
    trainer = make().append_simulations(THETA, X)
    with pytest.warns(UserWarning, match=r"Maximum number .*=2` .* resume_training=True") as caught:
        trainer.train(max_num_epochs=2)
    assert lines_of(caught) == ["trainer.train(max_num_epochs=2)"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train(resume_training=True, stop_after_epochs=1)
