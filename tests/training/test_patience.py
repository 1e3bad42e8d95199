"""Patience: when a lower price is tried, when it is taken back, when a run ends."""

import math

import pytest
import torch
from torch import nn

from sbi_jeffreys.training.patience import Patience, ProxyPlateau

# Steps before which nothing counts, and more than enough of them in every epoch after.
FIRST, EPOCH = 1000, 10


def run(patience, losses, steps=FIRST, epoch=EPOCH):
    """Look at one loss after the other; return stiffness and whether to go back at each."""
    seen = []
    for loss in losses:
        steps += epoch
        back = patience.look(loss, steps)
        seen.append((patience.stiffness, back))
    return seen


def test_without_trials_patience_ends_after_its_epochs():
    patience = Patience(3, trials=False)
    patience.look(1.0, 0)
    for loss in (1.0, 0.995, 2.0):
        assert not patience.exhausted
        run(patience, [loss], patience.steps)
    assert patience.exhausted
    assert patience.best == 0.995
    assert patience.stiffness == 1.0


def test_at_an_eighth_of_the_rate_patience_lasts_for_eight_times_as_many_steps():
    fast, slow = Patience(4), Patience(4, pace=0.125)
    found = run(fast, [1.0] * 5)
    slowly = run(slow, [1.0] * 33, steps=8 * FIRST)
    # The first look is progress; from there on eight for one.
    assert slowly[0] == found[0]
    assert slowly[8::8] == found[1:]
    # Nor does it begin before as many steps have been taken: 200 at the default rate.
    young = Patience(4, pace=0.125)
    run(young, [1.0] * 159, steps=0)
    assert young.stall == 0
    run(young, [1.0] * 2, steps=young.steps)
    assert young.stall > 0


def test_at_a_lower_rate_a_proxy_has_more_time_before_it_is_put_back():
    steps = []
    for pace in (1.0, 0.125):
        proxy, plateau = nn.Linear(1, 1), ProxyPlateau(pace)
        plateau.look(torch.zeros(1), proxy, 0)
        while not plateau.reached():
            plateau.look(torch.ones(1), proxy, plateau.steps + 8)
        steps.append(plateau.steps)
    assert steps == [96, 768]


def test_without_trials_the_pace_does_not_matter():
    patience = Patience(3, trials=False, pace=0.1)
    run(patience, [1.0] * 4)
    assert patience.exhausted


def test_progress_begins_patience_anew():
    patience = Patience(3, trials=False)
    run(patience, [1.0, 1.0, 1.0, 0.98])
    assert patience.stall == 0


def test_a_trial_that_comes_to_nothing_is_taken_back_and_the_run_ends_soon():
    patience = Patience(4)
    found = run(patience, [1.0] * 4)
    # An epoch without progress, two more at a tenth of the price, and back.
    assert found == [(1.0, False), (0.1, False), (0.1, False), (1.0, True)]
    assert not patience.exhausted
    # Without any progress a run has ended after as many epochs as it has patience for.
    assert run(patience, [1.0], patience.steps) == [(1.0, False)]
    assert patience.exhausted


def test_while_the_proxy_is_far_ahead_a_trial_begins_after_all_of_the_patience():
    patience = Patience(4, lead=0.5)
    assert run(patience, [1.0] * 4) == [(1.0, False)] * 4
    # What creeps counts here.
    run(patience, [0.985], patience.steps)
    assert patience.stall == 0
    found = run(patience, [0.985] * 6, patience.steps)
    # It has the time of any other, less an epoch.
    assert found == [(1.0, False)] * 3 + [(0.1, False), (1.0, True), (1.0, False)]
    assert patience.exhausted


def test_a_flow_that_has_followed_tries_a_lower_price():
    patience = Patience(4, lead=0.5)
    run(patience, [1.0] * 3)
    patience.lead = 0.3
    found = run(patience, [1.0] * 3, patience.steps)
    # The trial has the time of one that begins at once, less an epoch.
    assert found == [(0.1, False), (1.0, True), (1.0, False)]
    # Nor is one that is under way taken back where the proxy gets ahead.
    patience = Patience(4)
    run(patience, [1.0] * 2)
    patience.lead = 0.5
    assert run(patience, [1.0] * 2, patience.steps) == [(0.1, False), (1.0, True)]


def test_a_run_that_gains_after_a_failed_trial_tries_another():
    patience = Patience(4)
    run(patience, [1.0] * 4)
    # Nats are counted from where the trial went back to, however they come.
    run(patience, [0.98, 0.96], patience.steps)
    assert patience.failed == 1.0
    run(patience, [0.94], patience.steps)
    assert patience.failed is None
    assert run(patience, [0.94], patience.steps) == [(0.1, False)]
    assert not patience.exhausted


def test_a_run_that_gains_little_after_a_failed_trial_ends():
    patience = Patience(4)
    run(patience, [1.0] * 4)
    run(patience, [0.97, 0.97], patience.steps)
    assert patience.stiffness == 1.0
    assert patience.exhausted


def test_what_was_seen_before_patience_begins_is_forgotten_but_for_the_start():
    patience = Patience(4)
    patience.look(1.0, 0)
    patience.look(0.5, 100)
    assert patience.best == 0.5
    assert patience.begins(FIRST)
    patience.forget()
    patience.look(0.9, FIRST)
    assert (patience.best, patience.mark) == (0.9, 0.9)
    assert not patience.begins(FIRST + EPOCH)
    # The start may be better than all that follows.
    patience = Patience(4)
    patience.look(1.0, 0)
    patience.forget()
    patience.look(1.5, FIRST)
    assert (patience.best, patience.mark) == (1.0, 1.5)
    # At a lower rate patience begins later; maximum likelihood has it from the start.
    assert not Patience(4, pace=0.1).begins(FIRST)
    assert not Patience(4, trials=False).begins(FIRST)


def test_epochs_of_many_steps_count_for_more_where_there_are_trials():
    # 45 steps: two epochs are not a quarter of a patience of 20 times twenty steps, three are. The
    # trial may begin one epoch's worth beyond the quarter, and has four.
    patience = Patience(20)
    found = run(patience, [1.0] * 8, epoch=45)
    assert found == [(1.0, False)] * 3 + [(0.1, False)] * 4 + [(1.0, True)]
    # Of the epoch in which patience begins, what lies after the beginning.
    patience = Patience(100)
    run(patience, [1.0] * 2, steps=0, epoch=150)
    assert patience.stall == 100 / 20
    # However long an epoch, a trial has one of its own.
    patience = Patience(20)
    found = run(patience, [1.0] * 3, epoch=4500)
    assert found == [(1.0, False), (0.1, False), (1.0, True)]
    # Maximum likelihood has no price that could settle: its epochs are sbi's.
    patience = Patience(20, trials=False)
    run(patience, [1.0] * 7, epoch=45)
    assert patience.stall == 6


def test_a_run_that_climbs_back_to_its_start_makes_progress():
    patience = Patience(4)
    patience.look(1.0, 0)
    found = run(patience, [1.5, 1.4, 1.3, 1.2, 1.2, 1.2])
    # Nor is a trial ended for what the run had lost before.
    assert [value for value, _ in found] == pytest.approx([1.0] * 4 + [0.1] * 2)
    assert run(patience, [1.31], patience.steps) == [(1.0, True)]
    # What it goes back to is the start, the best so far.
    assert patience.best == patience.mark == patience.failed == 1.0
    # Without trials it counts, as any look does.
    patience = Patience(4, trials=False)
    patience.look(1.0, 0)
    run(patience, [1.5, 1.4])
    assert patience.stall == 2


def test_shares_of_an_odd_patience_are_rounded_up():
    found = run(Patience(3), [1.0] * 4)
    assert found == [(1.0, False), (0.1, False), (0.1, False), (1.0, True)]


@pytest.mark.parametrize("loss", [1.2, math.nan, math.inf])
def test_a_trial_that_gets_worse_ends_at_once(loss):
    patience = Patience(10)
    run(patience, [1.0] * 6)
    assert patience.stiffness == pytest.approx(0.1)
    assert run(patience, [loss], patience.steps) == [(1.0, True)]


def test_a_trial_that_comes_to_something_is_kept_and_the_next_goes_on_from_there():
    patience = Patience(4)
    found = run(patience, [1.0, 1.0, 0.5, 0.5, 0.5, 0.5])
    stiffness = [value for value, _ in found]
    assert stiffness == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01, 0.1])
    assert patience.failed == 0.5


def test_creeping_postpones_a_trial_and_the_end_only_after_one_has_failed():
    # Between what counts at first, 0.02 nat, and after a failure, 0.01.
    patience = Patience(8)
    creeping = [1.0 - 0.015 * i for i in range(4)]
    assert [value for value, _ in run(patience, creeping)] == pytest.approx([1.0, 1.0, 1.0, 1.0])
    assert patience.stall == 1
    patience = Patience(4, failed=1.0)
    run(patience, [1.0 - 0.011 * i for i in range(5)])
    assert patience.stall == 0
    assert patience.stiffness == 1.0
    patience = Patience(8)
    run(patience, [1.0 - 0.005 * i for i in range(4)])
    assert patience.stiffness == pytest.approx(0.1)


def test_nothing_counts_in_the_first_steps():
    patience = Patience(4)
    run(patience, [1.0] * 19, 0)
    assert patience.stall == 0
    run(patience, [1.0], 190)
    assert patience.stall == 1


def test_epochs_of_few_steps_count_less():
    patience = Patience(4, trials=False)
    run(patience, [1.0], FIRST, epoch=0)
    run(patience, [1.0] * 15, FIRST, epoch=1)
    assert not patience.exhausted
    run(patience, [1.0], patience.steps, epoch=1)
    assert patience.exhausted


def test_a_run_that_goes_on_after_its_end_counts_anew():
    patience = Patience(2)
    run(patience, [1.0] * 10)
    assert patience.exhausted
    patience.go_on(4, trials=True)
    assert not patience.exhausted
    assert patience.limit == 4


def test_a_run_that_was_interrupted_counts_on():
    whole, parts = Patience(6), Patience(6)
    expected = run(whole, [1.0] * 7)
    found = []
    for first in (0, 2, 4, 5):
        last = {0: 2, 2: 4, 4: 5, 5: 7}[first]
        found += run(parts, [1.0] * (last - first), FIRST + first * EPOCH)
        parts.go_on(6, trials=True)
    assert found == expected
    assert parts == whole


def test_plateau_keeps_the_best_and_is_reached_after_looks_without_progress():
    proxy, plateau = nn.Linear(1, 1), ProxyPlateau()
    plateau.look(torch.ones(1), proxy, 100)
    best = proxy.weight.clone()
    nn.init.zeros_(proxy.weight)
    # Four looks, but not 96 steps yet; then both.
    for steps in (110, 120, 130, 140, 195):
        plateau.look(torch.ones(1), proxy, steps)
        assert not plateau.reached()
    plateau.look(torch.ones(1), proxy, 196)
    assert plateau.weights["weight"].equal(best)
    assert plateau.reached()
    # Counting begins anew.
    assert not plateau.reached()
    for steps in (300, 400, 500):
        plateau.look(torch.ones(1), proxy, steps)
        assert not plateau.reached()


def test_one_row_does_not_overrule_all_others():
    proxy, plateau = nn.Linear(1, 1), ProxyPlateau()
    plateau.look(torch.tensor([2.0, 2.0, 2.0, 600.0]), proxy, 8)
    better = torch.tensor([-1.0, -1.0, 0.0, 96_000.0])
    plateau.look(better, proxy, 16)
    assert plateau.best.equal(better)
    # Small losses of all rows weigh as in a mean.
    plateau.look(better + torch.tensor([0.1, 0.1, 0.1, -0.2]), proxy, 24)
    assert plateau.best.equal(better)
    plateau.look(better + torch.tensor([0.1, 0.1, -0.1, -0.2]), proxy, 32)
    assert not plateau.best.equal(better)


def test_other_rows_are_compared_with_none_of_before():
    proxy, plateau = nn.Linear(1, 1), ProxyPlateau()
    plateau.look(torch.zeros(4), proxy, 8)
    plateau.look(torch.ones(4), proxy, 16)
    assert plateau.looks == 1
    plateau.look(torch.ones(3), proxy, 24)
    assert plateau.best.equal(torch.ones(3))
    assert plateau.looks == 0


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_the_worst(worst):
    proxy, plateau = nn.Linear(1, 1), ProxyPlateau()
    plateau.look(torch.tensor([worst, 1.0]), proxy, 8)
    plateau.look(torch.tensor([worst, 1.0]), proxy, 16)
    assert plateau.looks == 1
    plateau.look(torch.tensor([worst, 0.5]), proxy, 24)
    assert plateau.looks == 0
    plateau.look(torch.tensor([5.0, 3.0]), proxy, 32)
    assert plateau.best.tolist() == [5.0, 3.0]
    plateau.look(torch.tensor([worst, 2.5]), proxy, 40)
    assert plateau.best.tolist() == [5.0, 3.0]


def test_a_trial_has_its_share_however_far_the_epoch_before_went():
    # 7.5 epochs' worth in each: the trial begins at 5 + 1, is at 13.5, and ends beyond 15.
    found = run(Patience(20), [1.0] * 4, epoch=150)
    assert found == [(1.0, False), (0.1, False), (0.1, False), (1.0, True)]


def test_a_run_that_goes_on_after_its_end_tries_a_lower_price_again():
    patience = Patience(4)
    run(patience, [1.0] * 5)
    assert patience.exhausted
    patience.go_on(4, trials=True)
    assert run(patience, [1.0], patience.steps) == [(0.1, False)]
