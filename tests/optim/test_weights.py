"""The running mean of the weights: its share of the newest, and the weights it stands in for."""

import pytest
import torch
from torch import nn

from sbi_jeffreys.optim.weights import RunningMean, moving


@pytest.mark.parametrize(
    ("newest", "steps", "share"),
    [(1, 1, 1.0), (1, 4, 0.25), (10, 5, 1.0), (10, 40, 0.25), (10, 10**6, 0.02)],
)
def test_share_of_the_newest_weights(newest, steps, share):
    parameter = nn.Parameter(torch.zeros(3))
    mean = RunningMean([parameter], newest)
    nn.init.ones_(parameter)
    mean.update(steps)
    with mean.in_place():
        torch.testing.assert_close(parameter.detach(), torch.full((3,), share))
    assert (parameter == 1).all()


def test_beginning_anew_is_of_the_chosen_parameters():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    mean = RunningMean(parameters, 1)
    for parameter in parameters:
        nn.init.ones_(parameter)
    mean.begin_anew(parameters[:1])
    with mean.in_place():
        assert [p.tolist() for p in parameters] == [[1.0, 1.0], [0.0, 0.0]]
    mean.begin_anew()
    with mean.in_place():
        assert [p.tolist() for p in parameters] == [[1.0, 1.0], [1.0, 1.0]]


def test_statistics_of_a_batch_normalisation_move_where_they_are_counted():
    counted, kept = nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval()
    plain = nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    net = nn.ModuleList((counted, kept, plain))
    found = {id(tensor) for tensor in moving(net)}
    statistics = (counted.running_mean, counted.running_var)
    assert found == {id(t) for t in (*net.parameters(), *statistics)}


def test_an_error_puts_the_weights_back():
    parameter = nn.Parameter(torch.zeros(3))
    mean = RunningMean([parameter], 1)
    nn.init.ones_(parameter)

    def interrupted():
        with mean.in_place():
            assert (parameter == 0).all()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (parameter == 1).all()
