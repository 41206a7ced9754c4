"""Quantization: exactness at all bit depths, agreement with torchaudio and the public S4 code, wrong input."""
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.core.system import import_torchaudio
from sashimi_wb.tokens.quantization import (
    QUANTIZATIONS,
    SCALINGS,
    Quantizer,
    check_wave,
    clip_minmax,
    linear_decode,
    linear_encode,
    mu_law_decode,
    mu_law_encode,
)

pytestmark = pytest.mark.portable   # also run as on other machines, by test_machines.py

REFERENCE = Path(__file__).parents[1]/"reference"/"quantize"
BITS = range(1, 17)


def test_every_int16_value_is_exact():
    k = torch.arange(-2**15, 2**15)
    for dtype in (torch.float32, torch.float64):
        codes = linear_encode((k.to(dtype)/2**15)[None, :, None], 16)
        assert torch.equal(codes.flatten(), k + 2**15)
        assert torch.equal((linear_decode(codes, 16)*2**15).to(torch.int64).flatten(), k)


@pytest.mark.slow
def test_every_24_bit_code_is_exact():
    for start in range(0, 2**24, 2**21):
        codes = torch.arange(start, start + 2**21)
        assert torch.equal(linear_encode(linear_decode(codes, 24), 24), codes)


@pytest.mark.parametrize("bits", BITS)
def test_pcm_of_every_depth_is_exact(bits):
    half = 2**(bits - 1)
    k = torch.arange(-half, half)
    codes = linear_encode(k.float()/half, bits)
    assert codes.dtype == torch.int64 and torch.equal(codes, k + half)
    assert torch.equal(linear_decode(codes, bits), k.float()/half)
    assert linear_decode(codes, bits).dtype == torch.float32


@pytest.mark.parametrize("bits", BITS)
def test_linear_error_is_half_a_step_below_the_top(bits):
    wave = torch.linspace(-1, 1, 20_011, dtype=torch.float64)
    step = 2.0**(1 - bits)
    error = (linear_decode(linear_encode(wave, bits), bits) - wave).abs()
    assert error[wave <= 1 - step].max() <= step/2
    assert error.max() <= step


@pytest.mark.parametrize("name", QUANTIZATIONS)
@pytest.mark.parametrize("bits", BITS)
def test_full_scale_codes_are_stable(name, bits):
    q = Quantizer(name, bits)
    codes = torch.arange(2**bits)
    wave = q.decode(codes)
    assert wave.abs().max() <= 1 and bool((wave.diff() > 0).all())
    assert torch.equal(q.encode(wave), codes)
    assert q.encode(torch.zeros(1)).item() == q.zero_code


def assert_nearly(codes, want, share):
    """Codes equal those wanted, except where another float32 logarithm is off by one unit in the last place."""
    other = np.asarray(codes) != np.asarray(want)
    assert other.sum() <= share*other.size and np.abs(np.asarray(codes) - np.asarray(want)).max() <= 1


def assert_within_an_ulp(levels, want, mu):
    """Levels equal those wanted to one unit in the last place of the float32 power 1 + mu |level|."""
    levels, want = np.asarray(levels), np.asarray(want)
    assert levels.dtype == want.dtype == np.float32
    assert (mu*np.abs(levels - want) <= np.spacing(1 + np.float32(mu)*np.abs(want))).all()


@pytest.mark.parametrize("bits", BITS)
def test_mu_law_agrees_with_torchaudio(bits):
    f = import_torchaudio().functional
    generator = torch.Generator().manual_seed(bits)
    wave = torch.cat([torch.rand(20_000, generator=generator)*2 - 1, torch.arange(-2**15, 2**15)/2**15,
                      torch.tensor([1., -1., 0.])])
    assert_nearly(mu_law_encode(wave, bits), f.mu_law_encoding(wave, 2**bits), 1e-3)
    every = torch.arange(2**bits)
    assert_within_an_ulp(mu_law_decode(every, bits), f.mu_law_decoding(every, 2**bits), 2**bits - 1)


@pytest.mark.parametrize("bits", (8, 12, 16))
def test_clip_minmax_agrees_with_the_reference(bits):
    """Bit for bit where only exact operations occur; otherwise to the precision of the public code's functions."""
    waves, want = np.load(REFERENCE/"waveforms.npz"), np.load(REFERENCE/f"quantize_{bits}bit.npz")
    names = [n for n in waves.files if n != "config"]
    assert len(names) == 20
    for name in names:
        wave = torch.from_numpy(waves[name])
        assert np.array_equal(clip_minmax(wave).numpy(), want[f"{name}/minmax01"]), name
        codes = linear_encode(wave, bits, "clip_minmax")
        assert np.array_equal(codes.numpy(), want[f"{name}/linear_q"]), name
        assert np.array_equal(linear_decode(codes, bits, "clip_minmax").numpy(), want[f"{name}/linear_dec"]), name
        assert_nearly(mu_law_encode(wave, bits, "clip_minmax"), want[f"{name}/mulaw_q"], 1e-4)
        levels = mu_law_decode(torch.from_numpy(want[f"{name}/mulaw_q"]), bits, "clip_minmax")
        assert_within_an_ulp(levels, want[f"{name}/mulaw_dec"], 2**bits - 1)
    every = torch.arange(2**bits)
    assert np.array_equal(linear_decode(every, bits, "clip_minmax").numpy(), want["decode_table/linear"])
    assert_within_an_ulp(mu_law_decode(every, bits, "clip_minmax"), want["decode_table/mulaw"], 2**bits - 1)
    assert Quantizer(bits=bits, scaling="clip_minmax").zero_code == int(want["q_zero"])


def found_edges(q):
    """The smallest float32 that is encoded as each code or a higher one, by bisection; clips also hold -1 and 1."""
    def encode(x): return q.encode(torch.stack([x, -torch.ones_like(x), torch.ones_like(x)], 1)[..., None])[:, 0, 0]
    def sample(rank):
        return torch.where(rank < 0, -(-rank).int().view(torch.float32), rank.abs().int().view(torch.float32))
    codes, one = torch.arange(q.n_codes), torch.ones(1).view(torch.int32).item()
    low, high = torch.full_like(codes, -one), torch.full_like(codes, one + 1)
    while bool((low < high).any()):
        middle = (low + high)//2
        reached = encode(sample(middle.clamp(max=one))) >= codes
        low, high = torch.where(reached | (low >= high), low, middle + 1), torch.where(reached, middle, high)
    return sample(low)


# SHA-256 of levels, edges and codes of float64 samples at 1 to 16 bits, as little-endian numbers
PINNED = {
    ("linear", "full_scale"): "1dc77fb53b45b241d6084370b96648b33aba42904391930f168dc3752306e491",
    ("linear", "clip_minmax"): "95e5a5443c4104523d428f80f1b88dafbaf2c3562004f2a4fe480b2975da5f35",
    ("mu_law", "full_scale"): "fdd88e71529dcdeff762d2d229ce7667f55a99694eca2a2f327b9304d36a3183",
    ("mu_law", "clip_minmax"): "802eea31110c2c33425974ed3717af70008489cc0e7ed488737661a23f7c4a3a",
}


@pytest.mark.parametrize("name,scaling", PINNED)
def test_levels_and_edges_are_the_same_bits_everywhere(name, scaling):
    digest = hashlib.sha256()
    fine = ((torch.arange(20_000)*40_503 % 65_537)/32_768.5 - 1).double()[None, :, None]   # exact operations only
    for bits in BITS:
        q = Quantizer(name, bits, scaling)
        for values, kind in ((q.decode(torch.arange(q.n_codes)), "<f4"), (found_edges(q), "<f4"),
                             (q.encode(fine), "<i8")):
            digest.update(values.numpy().astype(kind).tobytes())
    assert digest.hexdigest() == PINNED[name, scaling]


def test_nothing_writes_into_its_argument():
    wave = torch.rand(2, 50, 2)*2 - 1
    for name in QUANTIZATIONS:
        for scaling in SCALINGS:
            q, before = Quantizer(name, 8, scaling), wave.clone()
            codes = q.encode(wave)
            kept = codes.clone()
            q.decode(codes), q.scale(wave)
            assert torch.equal(wave, before) and torch.equal(codes, kept)


@given(st.integers(1, 16), st.sampled_from(list(QUANTIZATIONS)), st.sampled_from(list(SCALINGS)),
       st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_wave_gives_codes_in_range_and_order(bits, name, scaling, samples):
    q, wave = Quantizer(name, bits, scaling), torch.tensor(samples)[None, :, None]
    codes = q.encode(wave)
    assert codes.shape == wave.shape and codes.min() >= 0 and codes.max() < q.n_codes
    order = wave.flatten().argsort()
    assert bool((codes.flatten()[order].diff() >= 0).all())
    assert q.scale(wave).abs().max() <= 1 + 1e-6


@given(st.lists(st.integers(-2**15, 2**15 - 1), min_size=1, max_size=60), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_random_pcm_round_trip(values, channels):
    pcm = torch.tensor(values*channels).view(1, -1, channels)
    codes = linear_encode(pcm/2**15, 16)
    assert torch.equal((linear_decode(codes, 16)*2**15).long(), pcm)


@pytest.mark.parametrize("bits", (0, 25, 32, -1, "8", True, 8.0, None))
def test_wrong_bits(bits):
    for encode, decode, most in ((linear_encode, linear_decode, 24), (mu_law_encode, mu_law_decode, 16)):
        with pytest.raises(ValueError, match=f"bits: expected an integer from 1 to {most}"):
            encode(torch.zeros(3), bits)
        with pytest.raises(ValueError, match=f"bits: expected an integer from 1 to {most}"):
            decode(torch.zeros(3, dtype=torch.long), bits)
    with pytest.raises(ValueError, match="bits: expected"): Quantizer(bits=bits)


@pytest.mark.parametrize("bits", (17, 20, 24))
def test_deep_codes_are_linear_on_the_full_scale_only(bits):
    wave = torch.linspace(-1, 1, 999, dtype=torch.float64)[None, :, None]
    codes = linear_encode(wave, bits)
    assert torch.equal(linear_encode(linear_decode(codes, bits), bits), codes)
    assert (linear_decode(codes, bits).double() - wave)[:, :-1].abs().max() <= 2.0**-bits
    for call in (lambda: mu_law_encode(wave, bits), lambda: linear_encode(wave, bits, "clip_minmax"),
                 lambda: Quantizer("mu_law", bits),
                 lambda: Quantizer("linear", bits, "clip_minmax"), lambda: linear_decode(codes, bits, "clip_minmax")):
        with pytest.raises(ValueError, match="from 1 to 16, got .*use linear quantization on the full scale"): call()


@given(st.lists(st.integers(-2**23, 2**23 - 1), min_size=1, max_size=60),
       st.sampled_from((torch.float32, torch.float64)))
@settings(max_examples=50, deadline=None)
def test_random_24_bit_pcm_round_trip(values, dtype):
    pcm = torch.tensor(values).view(1, -1, 1)
    codes = linear_encode(pcm.to(dtype)/2**23, 24)
    assert torch.equal((linear_decode(codes, 24).double()*2**23).long(), pcm) and torch.equal(codes - 2**23, pcm)


@pytest.mark.parametrize("value", (1.0001, -1.5, float("nan"), float("inf"), -float("inf")))
def test_errors_name_the_wrong_sample(value):
    wave = torch.zeros(2, 9, 2)
    wave[1, 4, 0] = value
    for name in QUANTIZATIONS:
        for scaling in SCALINGS:
            expected = f"clip 1, sample 4, channel 0 of a/b.wav: expected a number in .*got {value:g}"
            with pytest.raises(ValueError, match=expected): Quantizer(name, 8, scaling).encode(wave, "a/b.wav")


def test_other_wrong_input():
    with pytest.raises(ValueError, match="sample 1007, channel 1 of x.wav"):
        check_wave(np.pad(np.full((1, 1), 2.0), ((7, 0), (1, 0))), "x.wav", 1000)
    with pytest.raises(ValueError, match="divide integer PCM"): linear_encode(torch.zeros(3, dtype=torch.int16))
    with pytest.raises(ValueError, match="unknown scaling"): mu_law_decode(torch.zeros(3, dtype=torch.long), 8, "none")
    with pytest.raises(ValueError, match="unknown quantization"): Quantizer("a_law")
    with pytest.raises(ValueError, match="expected integers, got torch.float32"): linear_decode(torch.zeros(3))
    with pytest.raises(ValueError, match="got -1 at \\(1,\\)"): mu_law_decode(torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="expected clips"): linear_encode(torch.zeros(3), 8, "clip_minmax")


def test_only_linear_on_the_full_scale_is_exact_for_pcm():
    assert [(n, s) for n in QUANTIZATIONS for s in SCALINGS
            if Quantizer(n, 8, s).exact_for_pcm] == [("linear", "full_scale")]
    assert "not lossless" in Quantizer(scaling="clip_minmax").label and "not" not in Quantizer().label
