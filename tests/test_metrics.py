import io
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.metrics import (
    Tally,
    accuracy_at,
    bits_per_byte,
    bits_per_sample,
    code_rank,
    compression_ratio,
    flac_bits_per_sample,
    flac_bytes,
    order0_entropy,
    perplexity,
    snr_db,
)

REFERENCE = Path(__file__).parent / "reference" / "metrics"
NAMES = {1: "accuracy", 3: "accuracy@3", 5: "accuracy@5", 10: "accuracy@10"}


@pytest.mark.parametrize("name", ["classes16", "classes256"])
def test_against_reference(name):
    data = np.load(REFERENCE / f"{name}.npz", allow_pickle=False)
    log_probs, y = torch.from_numpy(data["logits"]).double().log_softmax(-1), torch.from_numpy(data["y"])
    nats = -log_probs.gather(-1, y[..., None])[..., 0]
    bits = log_probs.shape[-1].bit_length() - 1
    result = Tally(bits).add(nats, None, log_probs, y).result()
    assert result["nats_per_token"] == pytest.approx(float(data["cross_entropy_f64"]), abs=1e-6)
    assert result["bits_per_sample"] == pytest.approx(float(data["bpb_f64"]), abs=1e-6)
    assert result["perplexity"] == pytest.approx(float(data["ppl_f64"]), rel=1e-6)
    for k, key in NAMES.items():
        assert accuracy_at(log_probs, y, k) == pytest.approx(float(data[f"{key}_f64"]), abs=1e-6)
        assert result[key] == accuracy_at(log_probs, y, k)


def test_padding_counts_as_wrong_there_and_not_here():
    data = np.load(REFERENCE / "classes16_padded.npz", allow_pickle=False)
    log_probs, y = torch.from_numpy(data["logits"]).double().log_softmax(-1), torch.from_numpy(data["y"])
    mask = y != -100
    assert 0 < (~mask).sum() == 5
    nats = -log_probs.gather(-1, y.clamp(min=0)[..., None])[..., 0]
    result = Tally(4).add(nats, mask, log_probs, y).result()
    assert result["nats_per_token"] == pytest.approx(float(data["cross_entropy_f64"]), abs=1e-6)
    for k, key in NAMES.items():
        theirs = float(data[f"{key}_f64"])
        ours = accuracy_at(log_probs, y, k, mask)
        assert ours == pytest.approx(accuracy_at(log_probs[mask], y[mask], k)) == pytest.approx(result[key])
        assert theirs == pytest.approx(ours * mask.sum().item() / mask.numel(), abs=1e-6) and ours > theirs
    with pytest.raises(ValueError, match="mask"): accuracy_at(log_probs, y, 1)


def test_three_figures():
    assert bits_per_sample(8 * math.log(2)) == pytest.approx(8) and bits_per_sample(math.log(2), 3) == pytest.approx(3)
    assert bits_per_byte(4, 16) == 2 and bits_per_byte(4, 8) == 4 and bits_per_byte(12, 24) == 4
    assert compression_ratio(4, 16) == 4 and compression_ratio(0, 8) == math.inf
    assert perplexity(math.log(7)) == pytest.approx(7) and perplexity(1e9) == math.inf
    for bits in (0, 25, "8", 8.0, True):
        for f in (bits_per_byte, compression_ratio):
            with pytest.raises(ValueError, match="1 to 24"): f(4, bits)


@given(v=st.integers(1, 12), n=st.integers(1, 20), seed=st.integers(0, 10**6), levels=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_rank_is_that_of_a_stable_sort(v, n, seed, levels): # few levels: many ties
    g = torch.Generator().manual_seed(seed)
    scores, codes = torch.randint(0, levels, (n, v), generator=g).double(), torch.randint(0, v, (n,), generator=g)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(code_rank(scores, codes), (order == codes[:, None]).double().argmax(-1))
    assert accuracy_at(scores, codes, v) == 1


def test_accuracy_errors():
    scores, codes = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.long)
    for args, words in (((scores, codes[:, :4]), "shape"), ((scores, codes + 8), "8 to 8"), ((scores, codes, 0), "positive"),
                        ((scores, codes, 1, torch.zeros(2, 5)), "at least one"), ((scores, codes, 1, torch.ones(2, 4)), "mask")):
        with pytest.raises(ValueError, match=words): accuracy_at(*args)


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 39), min_size=0, max_size=4, unique=True))
@settings(max_examples=25, deadline=None)
def test_tally_does_not_depend_on_the_batches(seed, cuts):
    g = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(40, 16, generator=g).log_softmax(-1)
    codes, mask = torch.randint(0, 16, (40,), generator=g), torch.rand(40, generator=g) < .7
    mask[0] = True
    nats = -log_probs.gather(-1, codes[:, None])[:, 0]
    whole = Tally(4).add(nats, mask, log_probs, codes).result()
    edges = [0, *sorted(cuts), 40]
    parts = Tally(4)
    for a, b in zip(edges, edges[1:]): parts = parts + Tally(4).add(nats[a:b], mask[a:b], log_probs[a:b], codes[a:b])
    assert parts.result() == pytest.approx(whole, rel=1e-9)


def test_tally_shapes_and_errors():
    nats, codes = torch.rand(2, 5), torch.zeros(2, 5, 1, dtype=torch.long)
    result = Tally(8).add(nats, torch.ones(2, 5, 1)).result()
    assert "accuracy" not in result and result["compression_ratio"] == pytest.approx(8 / result["bits_per_sample"])
    assert Tally(8).add(nats, None, torch.zeros(2, 5, 256), codes).result()["accuracy"] == 1
    assert Tally(16, tokens_per_sample=2).add(nats).result()["bits_per_sample"] == pytest.approx(2 * nats.mean().item() / math.log(2))
    with pytest.raises(ValueError, match="at least one token"): Tally(8).add(nats, torch.zeros(2, 5)).result()
    with pytest.raises(ValueError, match="same bits"): Tally(8) + Tally(16)
    with pytest.raises(ValueError, match="1 to 24"): Tally(0)


def test_order0_entropy():
    assert order0_entropy(np.arange(65536), 65536) == pytest.approx(16)
    assert order0_entropy(torch.tensor([[0, 1], [2, 3]]), 256) == pytest.approx(2)
    assert order0_entropy(np.zeros((3, 2), int), 256) == 0
    for bad in (np.array([], int), np.array([-1]), np.array([256]), np.array([1.0])):
        with pytest.raises(ValueError, match="codes"): order0_entropy(bad, 256)


@pytest.mark.parametrize("bits", [1, 4, 7, 8, 9, 12, 15, 16, 20, 24])
@pytest.mark.parametrize("shape", [(1, 1), (70000, 1), (3000, 2), (777,)])
def test_flac_is_lossless_and_fair(bits, shape):
    codes = np.random.default_rng(bits).integers(0, 2**bits, shape)
    data = flac_bytes(torch.from_numpy(codes), bits, 44100)
    decoded, rate = soundfile.read(io.BytesIO(data), dtype="int32", always_2d=True)
    assert rate == 44100 and np.array_equal((decoded >> (32 - bits)) + 2 ** (bits - 1), codes.reshape(len(codes), -1))
    container = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}[soundfile.info(io.BytesIO(data)).subtype]
    assert container == (8 if bits <= 8 else 16 if bits <= 16 else 24)
    rate = flac_bits_per_sample(codes, bits, 44100)
    assert rate == 8 * len(data) / codes.size
    if codes.size > 5000 and bits >= 4: assert bits <= rate < bits + .35 # noise: nothing gained, the shift costs nothing


def test_flac_levels_and_stereo():
    t = np.arange(40000) / 44100
    left = np.round(9000 * np.sin(2 * np.pi * 330 * t) + 500 * np.sin(2 * np.pi * 3000 * t)).astype(int) + 32768
    rates = [flac_bits_per_sample(left, 16, 44100, level) for level in (0, 5, 8)]
    assert rates[0] >= rates[1] >= rates[2] and rates[2] < order0_entropy(left, 65536)
    both = np.stack([left, left], 1)
    assert flac_bits_per_sample(both, 16, 44100) < .6 * rates[2] # equal channels are shared
    assert isinstance(rates[0], float)


@pytest.mark.skipif(not shutil.which("flac"), reason="no flac program")
@pytest.mark.parametrize("level", [0, 5, 8])
def test_flac_has_the_size_of_the_flac_program(level):
    t, rng = np.arange(60000) / 44100, np.random.default_rng(0)
    wave = 9000 * np.sin(2 * np.pi * 330 * t)[:, None] * [1, .6] + 40 * rng.standard_normal((60000, 2))
    pcm = np.round(wave).astype("<i2")
    program = subprocess.run(["flac", f"-{level}", "--silent", "--stdout", "--no-padding", "--force-raw-format", "--endian=little",
                              "--sign=signed", "--channels=2", "--bps=16", "--sample-rate=44100", "-"],
                             input=pcm.tobytes(), capture_output=True, check=True)
    ours = len(flac_bytes(pcm.astype(int) + 32768, 16, 44100, level))
    assert abs(ours - len(program.stdout)) < 250


@pytest.mark.parametrize("codes, kw, words", [
    (np.zeros((10, 9), int), {}, "1 to 8 channels"), (np.zeros((2, 3, 4), int), {}, "shape"), (np.full(10, 256), {}, "256"),
    (np.zeros(10), {}, "float64"), (np.zeros(0, int), {}, "at least one"), (np.zeros(10, int), {"level": 9}, "0 to 8"),
    (np.zeros(10, int), {"bits": 25}, "1 to 24"), (np.zeros(10, int), {"bits": 0}, "1 to 24")])
def test_flac_errors(codes, kw, words):
    with pytest.raises(ValueError, match=words): flac_bits_per_sample(codes, kw.pop("bits", 8), 16000, **kw)


def test_snr():
    x = np.random.default_rng(0).standard_normal(1000)
    assert snr_db(x, x) == math.inf and snr_db(0 * x, x) == -math.inf
    assert snr_db(x, x * 1.1) == pytest.approx(20) and snr_db(torch.from_numpy(x), x * .9) == pytest.approx(20)
    with pytest.raises(ValueError, match="shape"): snr_db(x, x[:5])
