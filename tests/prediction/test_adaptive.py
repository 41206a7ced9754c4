"""The adaptive predictor: the same bits everywhere, steady on every kind of sound, frozen when told."""
import hashlib

import numpy as np
import pytest

from sashimi_wb.baselines import adaptive_bits, flac_bits_per_sample
from sashimi_wb.prediction.adaptive import ROW, VERSION, AdaptivePredictor, pack_rows, unpack_rows
from sashimi_wb.prediction.parts import N_PARTS
from sashimi_wb.tokens.quantization import Quantizer


def tones(n: int, bits: int, n_channels: int = 1) -> np.ndarray:
    """Codes (n, c) of decaying tones and noise, from integers and exact operations only."""
    state, x = np.zeros((n_channels, 4)), np.empty((n, n_channels))
    noise = np.random.Generator(np.random.PCG64(3)).integers(-2**10, 2**10, (n, n_channels))
    for t in range(n):
        kick = 2.0**14 if t % 700 == 0 else 0.0
        for k in range(n_channels):
            a, b, c, d = state[k]
            new = 1.9375*a - 0.998046875*b + noise[t, k]/64 + kick/(k + 1)
            other = 1.5*c - 0.9990234375*d + noise[t, 0]/128 + kick/2
            state[k] = new, a, other, c
            x[t, k] = np.floor((new + other)/4)
    half = 2**(bits - 1)
    return np.clip(x*2.0**(bits - 18), -half, half - 1).astype(np.int64) + half


# rows are kept on disk under VERSION: whoever changes a bit of them raises it, and enters the new digests under it
DIGESTS = {1: ("b1f7f61da6121c74", "65ff870db4950013", "d5e2a3007ef3828a", "6989c21f32b8cb54")}


@pytest.mark.portable
@pytest.mark.parametrize(("number", "quantizer", "n_channels", "block"), [
    (0, Quantizer("linear", 16), 1, 1),
    (1, Quantizer("linear", 24), 2, 1),
    (2, Quantizer("linear", 8), 2, 64),
    (3, Quantizer("mu_law", 8), 3, 1),
])
def test_the_same_bits_on_every_machine(number, quantizer, n_channels, block):
    rows = AdaptivePredictor(quantizer, n_channels, block).rows(tones(1500, quantizer.bits, n_channels))
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == DIGESTS[VERSION][number]
    assert np.array_equal(unpack_rows(pack_rows(rows)), rows)


SOUNDS = {
    "silence": lambda n, half: np.zeros(n),
    "direct current": lambda n, half: np.full(n, half - 1),
    "square wave": lambda n, half: np.where(np.arange(n)//40 % 2, half - 1, -half),
    "extremes at random": lambda n, half: np.where(np.random.default_rng(0).integers(0, 2, n), half - 1, -half),
    "one click": lambda n, half: np.eye(1, n, n//2)[0]*(half - 1),
    "silence after noise": lambda n, half: np.where(np.arange(n) < n//2,
                                                    np.random.default_rng(0).integers(-half, half, n), 0),
    "clipped tone": lambda n, half: np.clip(np.round(3*half*np.sin(np.arange(n)/9)), -half, half - 1),
    "steep ramp": lambda n, half: np.arange(n)*(half//7 + 1) % (2*half) - half,
}


@pytest.mark.parametrize("bits", [1, 2, 8, 16, 24])
@pytest.mark.parametrize("name", SOUNDS)
def test_no_sound_breaks_it(name, bits):
    half = 2**(bits - 1)
    codes = np.clip(SOUNDS[name](6000, half), -half, half - 1).astype(np.int64) + half
    predictor = AdaptivePredictor(Quantizer("linear", bits))
    rows = predictor.rows(codes)
    assert rows.shape == (6000, ROW) and np.isfinite(rows).all()
    assert (np.abs(rows[:, :2]) <= half).all() and (rows[:, 2:2 + 2*N_PARTS] > 0).all()
    assert (rows[:, 2 + N_PARTS:2 + 2*N_PARTS].sum(1) == 1).all()
    assert np.array_equal(unpack_rows(pack_rows(rows)), rows)
    if name not in ("extremes at random", "silence after noise"):     # noise has nothing to predict
        assert adaptive_bits(codes, bits) < flac_bits_per_sample(codes, bits, 16000) + .02


@pytest.mark.slow
def test_steady_for_long():
    rng = np.random.default_rng(0)
    loud = np.clip(np.convolve(rng.normal(0, 3000, 400_000), [1, 1.7, .9], "same"), -2**15, 2**15 - 1)
    x = np.where(np.arange(400_000)//50_000 % 2, np.round(loud), rng.integers(-2, 3, 400_000)).astype(np.int64) + 2**15
    predictor = AdaptivePredictor(Quantizer("linear", 16))
    size = sum(a.nbytes for part in predictor.state for a in (part if isinstance(part, tuple) else (part,)))
    bits = predictor.bits(x).reshape(8, 50_000).mean(1)
    assert np.ptp(bits[::2]) < .05 and np.ptp(bits[1::2]) < .05         # no stretch is worse than the first of its kind
    assert size == sum(a.nbytes for part in predictor.state for a in (part if isinstance(part, tuple) else (part,)))


def test_mu_law_is_predicted_on_the_line():
    x = np.round(12_000*np.sin(np.arange(8000)/20) + 3000*np.sin(np.arange(8000)/3.3))/2**15
    q = Quantizer("mu_law", 8)
    codes = q.encode(x[None, :, None])[0, :, 0].numpy()
    companded = adaptive_bits(codes, 8)                                  # as if the codes were evenly spaced
    assert adaptive_bits(codes, 8, "mu_law") < .7*companded


@pytest.mark.parametrize("block", [1, 16, 100])
def test_a_second_channel_helps(block):
    codes = tones(6000, 16, 2)
    alone = np.mean([AdaptivePredictor(Quantizer("linear", 16)).bits(codes[:, k]).mean() for k in range(2)])
    codes[:, 1] = np.clip(codes[:, 0]//2 + codes[:, 1]//2, 0, 2**16 - 1)
    together = AdaptivePredictor(Quantizer("linear", 16), 2, block).bits(codes)
    assert together.mean() < alone


def test_blocks_see_the_future_of_the_first_channel():
    """The second channel is the first, 8 samples earlier: only a look ahead predicts it."""
    noise = np.random.default_rng(0).integers(0, 2**12, 4100)
    codes = np.stack([noise[:4096], np.concatenate([noise[8:4096], noise[:8]])], 1)
    second = {}
    for block in (1, 128):
        bits = AdaptivePredictor(Quantizer("linear", 12), 2, block).bits(codes)
        times = np.concatenate([np.stack([np.full(block, k) for k in range(2)]).ravel() for _ in range(4096//block)])
        second[block] = bits[times == 1][1024:].mean()
    assert second[1] > 11.5 and second[128] < 6


def test_frozen_keeps_what_it_learned():
    codes = tones(3000, 16)
    frozen = AdaptivePredictor(Quantizer("linear", 16))
    frozen.rows(codes[:2000])
    adapting = frozen.copy()
    before = frozen.freeze().row()
    weights = frozen.state.problems.weights.copy(), frozen.state.filters.weights.copy()
    rows = frozen.rows(codes[2000:])
    assert (rows[:, 2:-1] == before[2:-1]).all() and len(np.unique(rows[:, 0])) > 900
    assert (frozen.state.problems.weights == weights[0]).all() and (frozen.state.filters.weights == weights[1]).all()
    assert (adapting.rows(codes[2000:])[1:, 2:-1] != rows[1:, 2:-1]).any()


@pytest.mark.parametrize("n_channels", [4, 8])
def test_many_channels(n_channels):
    bits = AdaptivePredictor(Quantizer("linear", 16), n_channels).bits(tones(800, 16, n_channels))
    assert len(bits) == 800*n_channels and bits.mean() < 12


@pytest.mark.parametrize("bad", [{"n_channels": 0}, {"block": 0, "n_channels": 2}])
def test_refused_settings(bad):
    with pytest.raises(ValueError, match="expected"): AdaptivePredictor(Quantizer("linear", 16), **bad)


def test_refused_codes():
    predictor = AdaptivePredictor(Quantizer("linear", 8), 2)
    for codes in (np.zeros((5, 3), int), np.zeros((5, 2)), np.full((5, 2), 256), np.full((5, 2), -1)):
        with pytest.raises(ValueError, match="codes: expected integers"): predictor.rows(codes)
    assert predictor.rows(np.zeros((0, 2), int)).shape == (0, ROW)
    with pytest.raises(ValueError, match="mu_law|16 bits"): adaptive_bits(np.zeros(10, int), 20, "mu_law")
    with pytest.raises(ValueError, match="at least one"): adaptive_bits(np.zeros(0, int), 8)
