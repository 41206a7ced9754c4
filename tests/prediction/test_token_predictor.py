"""The predictor along a stream of tokens: what it continues keeps its level."""
import numpy as np
import pytest

from sashimi_wb.prediction.adaptive import AdaptivePredictor
from sashimi_wb.prediction.token_predictor import TokenPredictor
from sashimi_wb.tokens.quantization import Quantizer

pytestmark = pytest.mark.slow


def codes_of(values): return np.clip(np.floor(values + 0.5), -2**15, 2**15 - 1).astype(np.int64) + 2**15


def likeliest(row): return codes_of(row[1:2])   # the second center


def rms(codes): return np.sqrt(((codes - 2.0**15)**2).mean())


@pytest.mark.parametrize("n_channels,block", [(1, 1), (2, 1), (2, 16)])
@pytest.mark.parametrize("growth", (1.0, 1.0006, 0.9994))
def test_a_continuation_keeps_the_level_of_its_prompt(n_channels, block, growth):
    "Tones that grow or fade in the prompt have poles outside or inside the unit circle."
    t, n = np.arange(4096), 8192
    tone = (np.sin(0.1*t) + np.sin(0.37*t))*2000*growth**(t - t.mean())
    prompt = codes_of(tone[:, None] + np.random.default_rng(0).standard_normal((len(t), n_channels))*3)
    tokens = prompt.reshape(-1, block, n_channels).transpose(0, 2, 1).ravel()
    predictor, out = TokenPredictor(Quantizer(bits=16), n_channels, block), np.zeros(n*n_channels, np.int64)
    predictor.read(tokens)
    predictor.freeze()
    for i in range(len(out)):
        out[i:i + 1] = likeliest(predictor.row())
        predictor.read(out[i:i + 1])
    for part in np.array_split(out, 4): assert abs(20*np.log10(rms(part)/rms(tokens))) < 3


def test_without_the_level_a_frozen_predictor_grows():
    "What the test above would miss if the level were not held."
    t = np.arange(4096)
    prompt = codes_of(np.sin(0.1*t)*500*1.0006**t + np.random.default_rng(0).standard_normal(len(t))*3)
    plain = AdaptivePredictor(Quantizer(bits=16))
    plain.rows(prompt)
    plain.freeze()
    out = np.zeros(8192, np.int64)
    for i in range(len(out)):
        out[i] = likeliest(plain.row())[0]
        plain.update(int(out[i]))
    assert rms(out[-2048:]) > 2*rms(prompt)


@pytest.mark.parametrize("value", (0, 2**15, 2**16 - 1))
def test_constant_sound_stays_finite(value):
    predictor = TokenPredictor(Quantizer(bits=16))
    predictor.read(np.full(600, value))
    predictor.freeze()
    rows = predictor.read(np.full(600, value))
    assert np.isfinite(rows).all()
