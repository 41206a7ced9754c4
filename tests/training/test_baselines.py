import io
import math
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.prediction.linear import autocorrelation, levinson
from sashimi_wb.training import baselines
from sashimi_wb.training.baselines import (
    BLOCK,
    LOSSLESS,
    adaptive_bits,
    all_baselines,
    available,
    block_bits,
    flac_bits_per_sample,
    flac_bytes,
    integer_weights,
    lossless_bits_per_sample,
    lossless_file,
    order0_entropy,
    prediction_error,
    rice_bits,
    rice_bits_per_sample,
)

MUSIC = sorted((Path(__file__).parents[2]/"data"/"music").glob("*.flac"))[::5]


def test_order0_entropy():
    assert order0_entropy(np.arange(65536), 65536) == pytest.approx(16)
    assert order0_entropy(torch.tensor([[0, 1], [2, 3]]), 256) == pytest.approx(2)
    assert order0_entropy(np.zeros((3, 2), int), 256) == 0
    for bad in (np.array([], int), np.array([-1]), np.array([256]), np.array([1.0])):
        with pytest.raises(ValueError, match="codes"): order0_entropy(bad, 256)


def test_order0_entropy_of_24_bits_needs_no_table():
    codes = np.random.default_rng(0).integers(0, 2**24, 100_000)
    tracemalloc.start()
    rate = order0_entropy(codes, 2**24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24 and math.log2(100_000) - .01 < rate <= math.log2(100_000)


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
    if codes.size > 5000 and bits >= 4:
        assert bits <= rate < bits + .35  # noise cannot be compressed, and the shift costs nothing


def test_flac_levels_and_stereo():
    t = np.arange(40000) / 44100
    left = np.round(9000 * np.sin(2 * np.pi * 330 * t) + 500 * np.sin(2 * np.pi * 3000 * t)).astype(int) + 32768
    rates = [flac_bits_per_sample(left, 16, 44100, level) for level in (0, 5, 8)]
    assert rates[0] >= rates[1] >= rates[2] and rates[2] < order0_entropy(left, 65536)
    both = np.stack([left, left], 1)
    assert flac_bits_per_sample(both, 16, 44100) < .6 * rates[2]  # equal channels are coded once
    assert isinstance(rates[0], float)


@pytest.mark.skipif(not shutil.which("flac"), reason="no flac program")
@pytest.mark.parametrize("level", [0, 5, 8])
def test_flac_has_the_size_of_the_flac_program(level):
    t, rng = np.arange(60000) / 44100, np.random.default_rng(0)
    wave = 9000 * np.sin(2 * np.pi * 330 * t)[:, None] * [1, .6] + 40 * rng.standard_normal((60000, 2))
    pcm = np.round(wave).astype("<i2")
    command = ["flac", f"-{level}", "--silent", "--stdout", "--no-padding", "--force-raw-format", "--endian=little",
               "--sign=signed", "--channels=2", "--bps=16", "--sample-rate=44100", "-"]
    program = subprocess.run(command, input=pcm.tobytes(), capture_output=True, check=True)
    ours = len(flac_bytes(pcm.astype(int) + 32768, 16, 44100, level))
    assert abs(ours - len(program.stdout)) < 250


@pytest.mark.parametrize("codes, kw, words", [
    (np.zeros((10, 9), int), {}, "1 to 8 channels"), (np.zeros((2, 3, 4), int), {}, "shape"),
    (np.full(10, 256), {}, "256"),
    (np.zeros(10), {}, "float64"), (np.zeros(0, int), {}, "at least one"), (np.zeros(10, int), {"level": 9}, "0 to 8"),
    (np.zeros(10, int), {"bits": 25}, "1 to 24"), (np.zeros(10, int), {"bits": 0}, "1 to 24")])
def test_flac_errors(codes, kw, words):
    with pytest.raises(ValueError, match=words): flac_bits_per_sample(codes, kw.pop("bits", 8), 16000, **kw)


# WavPack, TTA, ALAC

def decoded(file):
    with av.open(io.BytesIO(file)) as source:
        assert len(source.streams) == 1
        frames = [(f.to_ndarray(), f.format, f.layout.nb_channels, f.sample_rate) for f in source.decode(audio=0)]
    (rate,) = {rate for *_, rate in frames}
    blocks = [x.T if kind.is_planar else x.reshape(-1, c) for x, kind, c, _ in frames]
    return np.concatenate(blocks).astype(np.int64), rate


@pytest.mark.parametrize("coder", LOSSLESS)
@pytest.mark.parametrize("bits", [1, 7, 8, 12, 16, 17, 20, 24])
@pytest.mark.parametrize("shape, rate", [((1, 1), 8000), ((3000, 2), 44100), ((9001,), 16000), ((50_000, 2), 8000)])
def test_coders_are_lossless(coder, bits, shape, rate):
    if not available(coder): pytest.skip(f"this ffmpeg has no encoder of {coder}")
    codes = np.random.default_rng(bits).integers(0, 2**bits, shape)
    codes[:len(codes)//2] = codes[:len(codes)//2]//5*4     # another range, and another mean
    file, size = lossless_file(torch.from_numpy(codes), bits, rate, coder)
    samples, found = decoded(file)
    assert found == rate
    if coder == "tta" and len(codes) < 4096: samples = samples[:len(codes)]   # a short block is filled up
    assert np.array_equal((samples >> 8*(bits > 16)) + 2**(bits - 1), codes.reshape(len(codes), -1))
    assert lossless_bits_per_sample(codes, bits, rate, coder) == 8*size/codes.size
    assert 0 < size < len(file) < size + 1500              # the container adds little
    # the upper bits of a stored sample cost nothing
    if codes.size > 50_000 and bits <= 20: assert 8*size/codes.size < bits + 1.2


def test_coders_predict():
    t = np.arange(80_000)/44100
    left = np.round(9000*np.sin(2*np.pi*330*t) + 500*np.sin(2*np.pi*3000*t)).astype(int) + 32768
    left += np.random.default_rng(0).integers(-9, 9, len(left))
    for coder in filter(available, LOSSLESS):
        rate = lossless_bits_per_sample(left, 16, 44100, coder)
        assert rate < 1.3*flac_bits_per_sample(left, 16, 44100)
        assert lossless_bits_per_sample(np.stack([left, left], 1), 16, 44100, coder) < .75*rate   # joint stereo


@pytest.mark.parametrize("codes, kw, words", [
    (np.zeros((10, 3), int), {}, "1 or 2 channels"), (np.full(10, 256), {}, "256"), (np.zeros(10), {}, "float64"),
    (np.zeros(10, int), {"bits": 25}, "1 to 24"), (np.zeros(10, int), {"coder": "mp3"}, "mp3")])
def test_coder_errors(codes, kw, words):
    with pytest.raises(ValueError, match=words):
        lossless_bits_per_sample(codes, kw.get("bits", 8), 16000, kw.get("coder", "wavpack"))


def test_a_missing_coder_is_left_out(monkeypatch):
    codes = np.arange(6000).reshape(-1, 2) % 200
    assert {"tta", "wavpack", "alac"} & set(all_baselines([codes], 8, 16000)) == set(filter(available, LOSSLESS))
    monkeypatch.setitem(LOSSLESS, "tta", LOSSLESS["tta"]._replace(codec="no_such_codec"))
    assert "tta" not in all_baselines([codes], 8, 16000)
    assert not set(LOSSLESS) & set(all_baselines([codes.reshape(-1, 3)], 8, 16000))  # they take two channels at most
    with pytest.raises(ValueError, match="no encoder"):
        lossless_file(codes, 8, 16000, "tta")


# linear prediction and Rice codes

def restored(residual, start, q, shift):
    x = list(start)
    for e in residual[len(start):]: x.append(e + (sum(w*v for w, v in zip(q, x[::-1])) >> shift))
    return x


@pytest.mark.portable
@given(seed=st.integers(0, 10**6), order=st.integers(1, 12), precision=st.integers(5, 15), depth=st.integers(4, 24))
@settings(max_examples=30, deadline=None)
def test_prediction_is_invertible(seed, order, precision, depth):
    rng = np.random.default_rng(seed)
    walk, half = np.cumsum(rng.standard_normal((2, 80))*2.0**(depth - 4), 1), 2**(depth - 1)
    x = np.clip(walk, -half, half - 1).astype(np.int64)
    weights, errors = levinson(autocorrelation(x*np.hanning(80), order))
    assert (np.diff(errors) <= 0).all()
    q, shift = integer_weights(weights[:, -1], precision)
    assert np.abs(q).max() <= 2**(precision - 1) and (shift >= 0).all() and (shift < 16).all()
    e = prediction_error(x, q, shift, np.full(2, order))
    for i in range(2):
        assert restored(e[i].tolist(), x[i, :order].tolist(), q[i].tolist(), int(shift[i])) == x[i].tolist()


def words(e, k): return sum(1 + k + ((2*v if v >= 0 else -2*v - 1) >> k) for v in e)


@pytest.mark.portable
@pytest.mark.parametrize("n, order", [(4096, 0), (4096, 32), (4096, 200), (96, 5), (97, 3), (1, 0)])
def test_rice_bits_are_those_of_the_best_division(n, order):
    e = np.round(np.random.default_rng(n).laplace(size=n)*np.linspace(1, 300, n)).astype(int)
    e[:order] = 0
    best = min(sum(min(words(part[max(0, order - i*len(part)):], k) for k in range(13)) + 5
                   for i, part in enumerate(e.reshape(p, -1))) + 6
               for p in (1, 2, 4, 8, 16, 32, 64) if n % p == 0)
    assert rice_bits(e[None], np.array([order]), 12)[0] == best


def signals():
    rng, t = np.random.default_rng(0), np.arange(2*BLOCK + 777)
    yield "noise", rng.uniform(-1, 1, len(t))
    yield "quiet noise", .01*rng.standard_normal(len(t))
    yield "sine", .6*np.sin(2*np.pi*440*t/44100)
    yield "sine and noise", .6*np.sin(2*np.pi*1310.7*t/44100) + .003*rng.standard_normal(len(t))
    yield "steps", .5*np.sign(np.sin(2*np.pi*50*t/44100))
    yield "note", np.where(t % 9000 > 3000, .7*np.sin(2*np.pi*523*t/44100)*np.exp(-(t % 9000)/3000), 0)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("name, wave", signals(), ids=[name for name, _ in signals()])
def test_rice_rate_beside_flac(name, wave, bits):
    half = 2**(bits - 1)
    mono = np.clip(np.round(wave*half), -half, half - 1).astype(np.int64) + half
    delayed = np.roll(mono, 5)
    for codes in (mono, np.stack([mono, mono], 1), np.stack([mono, delayed], 1)):
        ours, flac = rice_bits_per_sample(codes, bits), flac_bits_per_sample(codes, bits, 44100)
        assert ours <= min(bits + .01, 1.05*flac + .02)                # at most the bits of the samples
        if name in ("noise", "quiet noise") and codes.ndim == 1: assert ours > .9*flac - .1
    assert rice_bits_per_sample(np.stack([mono, mono], 1), bits) < .55*rice_bits_per_sample(mono, bits) + .02


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("channels", [1, 2])
def test_rice_rate_on_music_is_a_little_below_flac(bits, channels):
    for path in MUSIC:
        pcm, _ = soundfile.read(path, frames=32_000, start=44_100, dtype="int16", always_2d=True)
        pcm = pcm.astype(np.int64)[:, :channels]
        codes = (pcm >> 8) + 128 if bits == 8 else (pcm << (bits - 16)) + 2**(bits - 1)
        ours, flac = rice_bits_per_sample(codes, bits), flac_bits_per_sample(codes, bits, 44100)
        assert .95*flac - .05 < ours < 1.005*flac
        if bits == 16:
            assert rice_bits_per_sample(codes*256, 24) == pytest.approx(ours, abs=.03)  # zero bits below cost nothing


@pytest.mark.portable
@pytest.mark.parametrize("shape", [(1,), (2, 1), (3, 2), (65, 2), (4095,), (4097, 1), (4096, 3), (64*4096 + 5,)])
def test_rice_rate_of_any_shape(shape):
    codes = np.random.default_rng(0).integers(0, 256, shape)
    rate = rice_bits_per_sample(torch.from_numpy(codes), 8)
    assert 8*(1 - 1/len(codes)) <= rate + 1e-9 and rate < 8 + 12/len(codes) + .01
    assert rice_bits_per_sample(np.zeros(shape, int), 8) <= 18/min(len(codes), BLOCK) + .02


def test_rice_rate_is_a_sum_over_blocks():
    x = np.round(900*np.sin(np.arange(3*BLOCK)/9)).astype(np.int64)
    each = sum(block_bits(part[None], 16)[0] for part in x.reshape(3, BLOCK))
    assert rice_bits_per_sample(x + 2**15, 16) == pytest.approx(each/len(x))
    for bad in ({"codes": x, "bits": 16}, {"codes": x[:0], "bits": 16}, {"codes": np.zeros((2, 2, 2), int), "bits": 8}):
        with pytest.raises(ValueError, match="codes"): rice_bits_per_sample(**bad)
    with pytest.raises(ValueError, match="1 to 24"): rice_bits_per_sample(x + 2**15, 25)


def test_all_baselines(monkeypatch):
    rng = np.random.default_rng(0)
    codes = np.clip(np.round(128 + 40*np.sin(np.arange(20_000)/11)[:, None]*[1, .9] + rng.standard_normal((20_000, 2))),
                    0, 255).astype(int)
    whole = all_baselines([codes], 8, 16000)
    assert whole == {"order0": order0_entropy(codes, 256), "flac5": flac_bits_per_sample(codes, 8, 16000, 5),
                     "flac8": flac_bits_per_sample(codes, 8, 16000), "lpc_rice": rice_bits_per_sample(codes, 8),
                     "adaptive": adaptive_bits(codes, 8),
                     **{name: lossless_bits_per_sample(codes, 8, 16000, name) for name in filter(available, LOSSLESS)}}
    files = np.split(codes, [5, 7000, 7001])
    each = sum(len(c)/len(codes)*adaptive_bits(c, 8) for c in files)      # prediction begins anew in every file
    assert all_baselines(iter(files), 8, 16000) == pytest.approx(whole | {"adaptive": each})
    seen = []
    monkeypatch.setattr(baselines, "adaptive_bits", lambda codes, bits, how: seen.append((len(codes), bits, how)) or 2)
    assert all_baselines([*files, codes[:0]], 8, 16000, "mu_law") == pytest.approx(whole | {"adaptive": 2})
    assert seen == [(5, 8, "mu_law"), (6995, 8, "mu_law"), (1, 8, "mu_law"), (12_999, 8, "mu_law")]
    monkeypatch.setattr(baselines, "CHUNK", 4096*2)
    in_chunks = all_baselines(np.split(codes, [4096, 8192, 8200]), 8, 16000)
    assert in_chunks["order0"] == pytest.approx(whole["order0"])
    assert in_chunks["lpc_rice"] == pytest.approx(whole["lpc_rice"], rel=.02)
    assert whole["flac8"] < in_chunks["flac8"] < whole["flac8"] + .3
    for bad, words_ in (([], "at least one"), ([codes + 256], "codes")):
        with pytest.raises(ValueError, match=words_): all_baselines(bad, 8, 16000)
