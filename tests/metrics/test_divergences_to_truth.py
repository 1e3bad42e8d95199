"""Divergences between normal distributions, in closed form."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sbi_jeffreys.metrics import divergences_to_truth

TRUTH = Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
MODEL = Normal(torch.tensor(0.4, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64))
LOG_EVIDENCE = -7.0


def estimate(n=2000, log_evidence=LOG_EVIDENCE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(n, generator=generator, dtype=torch.float64)
    model = MODEL.mean + MODEL.stddev * torch.randn(n, generator=generator, dtype=torch.float64)
    return divergences_to_truth(
        truth_at_truth=TRUTH.log_prob(truth) + log_evidence,
        model_at_truth=MODEL.log_prob(truth),
        truth_at_model=TRUTH.log_prob(model) + log_evidence,
        model_at_model=MODEL.log_prob(model),
    )


def test_estimates_and_standard_errors():
    forward, reverse = float(kl_divergence(TRUTH, MODEL)), float(kl_divergence(MODEL, TRUTH))
    expected = (forward, reverse, forward + reverse, LOG_EVIDENCE)
    runs = [estimate(seed=seed)[:4] for seed in range(200)]
    for k, value in enumerate(expected):
        scores = torch.tensor([(run[k].value - value) / run[k].standard_error for run in runs])
        # 200 standard scores: mean 0 +- 0.07, standard deviation 1 +- 0.05.
        assert abs(scores.mean()) < 0.25
        assert 0.8 < scores.std() < 1.2


def test_jeffreys_does_not_need_the_evidence_and_is_the_sum():
    one, other = estimate(log_evidence=0.0), estimate(log_evidence=300.0)
    assert one.jeffreys == pytest.approx(other.jeffreys)
    assert one.forward == pytest.approx(other.forward)
    assert one.jeffreys.value == pytest.approx(one.forward.value + one.reverse.value)


def test_effective_sample_size_is_that_of_the_weights():
    # 1 / E_model[(truth / model)^2], a Gaussian integral.
    s, m = float(MODEL.stddev), float(MODEL.mean)
    a = 2 - 1 / s**2
    expected = 1 / (s / math.sqrt(a) * math.exp(m**2 / s**2 * (1 + 1 / (a * s**2)) / 2))
    assert estimate(n=50_000).effective_sample_size == pytest.approx(expected, abs=0.02)


def test_leakage_is_infinitely_bad():
    zeros, leaky = torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, -math.inf])
    result = divergences_to_truth(
        truth_at_truth=zeros, model_at_truth=zeros, truth_at_model=leaky, model_at_model=zeros
    )
    assert result.reverse.value == result.jeffreys.value == math.inf
    assert math.isnan(result.jeffreys.standard_error)
    assert result.forward.value == pytest.approx(-math.log(3 / 4))
    assert result.effective_sample_size == pytest.approx(3 / 4)


def test_missing_mass_is_infinitely_bad():
    zeros, missing = torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, -math.inf])
    result = divergences_to_truth(
        truth_at_truth=zeros, model_at_truth=missing, truth_at_model=zeros, model_at_model=zeros
    )
    assert result.forward.value == result.jeffreys.value == math.inf
    assert result.reverse == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("truth_at_truth", torch.zeros(3), "truth_at_truth and model_at_truth must be vectors"),
        ("truth_at_truth", torch.full((4,), -math.inf), "truth_at_truth is not finite"),
        ("model_at_model", torch.full((4,), math.nan), "model_at_model is not finite"),
        ("model_at_truth", torch.full((4,), math.inf), r"model_at_truth has NaN or \+inf"),
        ("truth_at_model", torch.full((4,), math.nan), r"truth_at_model has NaN or \+inf"),
        ("truth_at_model", torch.full((4,), -math.inf), "truth_at_model is -inf at every sample"),
    ],
)
def test_errors(name, value, message):
    names = ("truth_at_truth", "model_at_truth", "truth_at_model", "model_at_model")
    arguments = dict.fromkeys(names, torch.zeros(4)) | {name: value}
    with pytest.raises(ValueError, match=message):
        divergences_to_truth(**arguments)
