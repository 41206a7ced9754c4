"""The mixture is the sum over all histories of its two sources, and costs little more than the better one."""
import math
from itertools import product

import numpy as np
import pytest

from sashimi_wb.prediction.mixing import CHANGE, mix, mix_step


def over_histories(model, predictor):
    "Log2 of the probability of all tokens: a sum over which source gave each of them."
    total = 0.0
    for history in product((0, 1), repeat=len(model)):
        changes = sum(a != b for a, b in zip(history, history[1:]))
        stays = len(model) - 1 - changes
        p = 0.5*(CHANGE/2)**changes*(1 - CHANGE/2)**stays
        total += p*math.prod((predictor, model)[source][t] for t, source in enumerate(history))
    return math.log2(total)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_sum_over_all_histories(seed):
    p, q = np.random.default_rng(seed).random((2, 10))**4
    log2_p, _ = mix(np.log(p)[None], np.log(q)[None])
    assert log2_p.sum() == pytest.approx(over_histories(p, q), rel=1e-12)
    w = 0.5
    for t in range(10):
        here, w = mix_step(w, p[t], q[t])
        assert math.log2(here) == pytest.approx(log2_p[0, t], rel=1e-12)


def test_streams_are_separate_and_may_be_cut_anywhere():
    p, q = -np.random.default_rng(0).exponential(3, (2, 4, 50))
    whole, last = mix(p, q)
    for i in range(4): np.testing.assert_array_equal(mix(p[i:i + 1], q[i:i + 1])[0][0], whole[i])
    first, w = mix(p[:, :17], q[:, :17])
    rest, w = mix(p[:, 17:], q[:, 17:], w)
    np.testing.assert_array_equal(np.concatenate([first, rest], 1), whole)
    np.testing.assert_array_equal(w, last)
    assert mix(p[:, :0], q[:, :0])[0].shape == (4, 0)


def test_cost_of_the_worse_source_is_bounded():
    good, bad = np.full((1, 5000), -2.0), np.full((1, 5000), -3000.0)
    for pair in ((good, bad), (bad, good)):
        log2_p, _ = mix(*pair)
        assert -log2_p.sum() <= 5000*(2/math.log(2) - math.log2(1 - CHANGE/2)) + 1 + 1e-6
    by_turns = np.where(np.arange(5000)//1000 % 2, good, bad)
    log2_p, _ = mix(by_turns, good + bad - by_turns)
    assert -log2_p.sum() <= 5000*(2/math.log(2) - math.log2(1 - CHANGE/2)) + 1 + 4*math.log2(2/CHANGE) + 1e-6


def test_weights_stay_between_their_ends():
    w = 0.5
    for p, q in ((1.0, 0.0), (0.0, 1.0), (1e-300, 1.0), (1.0, 1e-300)):
        for _ in range(50):
            w = mix_step(w, p, q)[1]
            assert CHANGE/2 <= w <= 1 - CHANGE/2
    assert mix_step(0.25, 0.5, 0.5) == pytest.approx((0.5, 0.25 + CHANGE/4))


def test_wrong_input():
    with pytest.raises(ValueError, match="of one shape"): mix(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="of one shape"): mix(np.zeros((1, 3)), np.zeros((1, 4)))
    for wrong in (np.inf, -np.inf, np.nan, 0.5):
        with pytest.raises(ValueError, match="finite and at most 0"): mix(np.full((1, 3), wrong), np.zeros((1, 3)))
        with pytest.raises(ValueError, match="predictor: expected"): mix(np.zeros((1, 3)), np.full((1, 3), wrong))
