"""Properties of sashimi_wb.tokens.layouts and its agreement with the reference arrays."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.tokens.layouts import deinterleave, interleave, parse_strategy, token_order
from sashimi_wb.tokens.quantization import linear_encode
from sashimi_wb.tokens.streams import shift

REFERENCE = np.load(Path(__file__).parents[1]/"reference"/"interleave"/"interleave.npz")
strategies = st.one_of(st.sampled_from(["temporal", "blocking"]), st.integers(1, 40).map(lambda n: f"blocking-{n}"))
DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)


@given(strategies, st.integers(1, 3), st.integers(0, 45), st.integers(1, 5), st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=120, deadline=None)
def test_round_trip(strategy, b, t, c, dtype, channel_major):
    x = (torch.rand(b, c, t).transpose(1, 2) if channel_major else torch.rand(b, t, c)).mul(200).to(dtype)
    before = x.clone()
    tokens = interleave(x, strategy)
    assert tokens.shape == (b, t*c, 1) and tokens.dtype == dtype
    assert torch.equal(deinterleave(tokens, strategy, c), x)
    assert torch.equal(x, before)


@given(strategies, st.integers(0, 45), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_order_is_a_permutation_in_time_order_per_channel(strategy, t, c):
    order = token_order(t, c, strategy)
    assert order.sort().values.tolist() == list(range(t*c))
    for channel in range(c): assert (order[order % c == channel]//c).tolist() == list(range(t))
    size = parse_strategy(strategy, t)
    for start in range(0, t - t % size, size):  # whole blocks: each channel's samples stand together
        block = order[start*c:(start + size)*c]
        assert (block % c).tolist() == [k for k in range(c) for _ in range(size)]
    assert torch.equal(interleave(torch.arange(t*c).view(1, t, c), strategy).flatten(), order)


def test_equal_names():
    x = torch.rand(2, 30, 2)
    assert torch.equal(interleave(x, "temporal"), interleave(x, "blocking-1"))
    assert torch.equal(interleave(x, "blocking"), interleave(x, "blocking-30"))
    assert torch.equal(interleave(x, "blocking"), interleave(x, "blocking-4096"))
    assert torch.equal(interleave(x, "temporal").flatten(), x.flatten())


def test_reference_arrays():
    config = json.loads(str(REFERENCE["config"]))
    wrong = 0
    for length in config["lengths"]:
        stereo = torch.from_numpy(REFERENCE[f"L{length}/stereo"])[None]
        for s in config["strategies"]:
            key = f"L{length}/{s}"
            tokens = interleave(stereo, s)
            assert np.array_equal(tokens[0].numpy(), REFERENCE[f"{key}/interleaved"]), key
            assert torch.equal(deinterleave(tokens, s), stereo), key
            if not REFERENCE[f"{key}/deinterleave_correct"]:  # where the inverse of the public code is wrong
                wrong += 1
                assert not np.array_equal(REFERENCE[f"{key}/deinterleaved"][..., 0], stereo.numpy())
            codes = interleave(linear_encode(stereo, 16, "clip_minmax"), s)[0].numpy()
            assert np.array_equal(codes, REFERENCE[f"{key}/y_16bit"]), key
            delayed = shift(torch.from_numpy(codes)[None], 2**15)[0]
            assert np.array_equal(delayed, REFERENCE[f"{key}/x_16bit"]), key
    assert wrong > 0


def test_gradients_pass_both_ways():
    weight = torch.rand(2, 21, 1)
    for s in ("temporal", "blocking", "blocking-3"):
        x = torch.rand(2, 7, 3, requires_grad=True)
        (interleave(x, s)*weight).sum().backward()
        assert torch.equal(x.grad, deinterleave(weight, s, 3))
        tokens = weight.clone().requires_grad_()
        (deinterleave(tokens, s, 3)*x.detach()).sum().backward()
        assert torch.equal(tokens.grad, interleave(x.detach(), s))


@pytest.mark.parametrize("strategy", ("zigzag", "blocking-0", "blocking-", "blocking--1", "blocking-1.5",
                                      "blocking-²", "temporal-2", "TEMPORAL", "", None, 3))
def test_unknown_strategies_list_the_known(strategy):
    for f in (lambda: interleave(torch.zeros(1, 4, 2), strategy), lambda: deinterleave(torch.zeros(1, 4, 1), strategy),
              lambda: token_order(4, 2, strategy)):
        with pytest.raises(ValueError, match="known: 'temporal', 'blocking', 'blocking-N' with N >= 1"): f()


def test_wrong_shapes():
    with pytest.raises(ValueError, match="expected \\(b t c\\)"): interleave(torch.zeros(4, 2), "temporal")
    with pytest.raises(ValueError, match="expected \\(b l 1\\)"): deinterleave(torch.zeros(1, 4, 2), "temporal")
    with pytest.raises(ValueError, match="2 channels divide, got 5"): deinterleave(torch.zeros(1, 5, 1), "temporal")
    with pytest.raises(ValueError, match="0 channels"): deinterleave(torch.zeros(1, 5, 1), "temporal", 0)


def test_deinterleaved_features_equal_the_reference_where_it_is_right():
    config, n_right = json.loads(str(REFERENCE["config"])), 0
    for length in config["lengths"]:
        stereo = torch.from_numpy(REFERENCE[f"L{length}/stereo"])[None]
        for strategy in config["strategies"]:
            ours, key = deinterleave(interleave(stereo, strategy), strategy), f"L{length}/{strategy}"
            assert torch.equal(ours, stereo)
            features = torch.stack([ours, 10*ours, 100*ours], -1)     # (1 t c 3), as in the file
            theirs = torch.from_numpy(REFERENCE[f"{key}/deinterleaved"])
            right = bool(REFERENCE[f"{key}/deinterleave_correct"])
            assert torch.allclose(features, theirs, rtol=1e-6, atol=0) == right, key     # in single precision
            n_right += right
    assert n_right > 0
