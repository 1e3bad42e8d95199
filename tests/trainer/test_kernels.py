"""Calibration kernels: what they may return, and what is refused."""

import pytest
import torch
from trainers import THETA, X, make, usable

NAN, INF = float("nan"), float("inf")


def test_a_kernel_may_be_a_number():
    losses = {}
    for kernel in (lambda x: 0.5, lambda x: 0.5 * torch.ones(len(x))):
        trainer = make().append_simulations(THETA, X)
        trainer.train(max_num_epochs=1, calibration_kernel=kernel)
        losses[trainer.summary["training_loss"][0]] = kernel
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("made", "how"),
    [({}, {}), ({"objective": "ml"}, {}), ({}, {"dataloader_kwargs": {}})],
)
def test_only_ratios_of_weights_count(made, how):
    """Prices, progress and norms are in nats. Powers of two round nothing."""

    def trained(unit):
        trainer = make(seed=1, **made).append_simulations(THETA, X)
        given = how | {"calibration_kernel": lambda x: unit * (1 + x[:, 0].abs())}
        estimator = trainer.train(max_num_epochs=3, **given)
        trainer.train(max_num_epochs=4, resume_training=True, **given)
        return estimator.state_dict(), trainer.summary["validation_loss"]

    (usual, losses), (other, others) = trained(1.0), trained(2.0**-9)
    assert losses == others
    assert all(torch.equal(usual[key], other[key]) for key in usual)


def test_a_kernel_of_another_shape_is_refused():
    trainer = make().append_simulations(THETA, X)
    with pytest.raises(ValueError, match=r"shape \(54, 1\) for 54 x.*one weight for each"):
        trainer.train(calibration_kernel=lambda x: torch.ones(len(x), 1))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (NAN, "returned nan, and others.*for 54 of 54 x"),
        (INF, "returned inf, and others.*for 54 of 54 x"),
        (-0.5, "returned -0.5, and others.*a weight of zero or more for each"),
        (0.0, "zero at all 54 x to train on: make it wider"),
    ],
)
def test_a_kernel_whose_weights_teach_nothing_is_refused(weight, message):
    trainer = make().append_simulations(THETA, X)
    with pytest.raises(ValueError, match=f"calibration_kernel .*{message}"):
        trainer.train(calibration_kernel=lambda x: torch.full((len(x),), weight))
    with pytest.raises(ValueError, match="zero at all 5 x that are held out"):
        trainer.train(
            calibration_kernel=lambda x: (x.sum(dim=1) < 99).float(),
            validation_data=(THETA[:5], X[:5] + 100),
        )
    trainer.train(max_num_epochs=1, calibration_kernel=lambda x: (x[:, 0] > 0).float())
    assert usable(trainer)


@pytest.mark.parametrize("kernel", [0, False, 0.5, "weights"])
def test_a_kernel_is_a_function(kernel):
    trainer = make().append_simulations(THETA, X)
    with pytest.raises(TypeError, match=f"calibration_kernel must be a function.*got {kernel!r}"):
        trainer.train(calibration_kernel=kernel)
