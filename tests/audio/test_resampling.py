"""sashimi_wb.audio.resampling: torchaudio's values; spans are slices of the whole; bounded time and memory."""
import math
import tracemalloc

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_audio import noise, write

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.files import check_rate, probe, read_span
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.audio.resampling import _MAX_TAPS, Resampler, _DirectWeights, _PhaseTable, resampler
from sashimi_wb.core.system import import_torchaudio

rates = st.one_of(st.integers(1, 200), st.sampled_from((4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000)))


def resampler_with(method, rate, target):
    r = Resampler(rate, target)
    if r.method: r.method = method(r.p, r.q)
    return r


@pytest.mark.slow
@given(rates, rates, st.integers(1, 900), st.integers(0, 2**31))
@settings(max_examples=25)
def test_both_methods_agree_with_torchaudio(rate, target, n, seed):
    g = math.gcd(rate, target)
    assume(n*target/rate < 20_000 and rate*target//g**2 < 10**5)  # quick for torchaudio
    wave = np.random.default_rng(seed).uniform(-1, 1, (n, 2))
    want = import_torchaudio().functional.resample(torch.from_numpy(wave.T), rate, target).T.numpy()
    for method in (_PhaseTable, _DirectWeights):
        if 2*6*rate/target > 10**5: continue
        got = resampler_with(method, rate, target)(wave)
        assert got.shape == want.shape == (resampler(rate, target).length(n), 2)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


ODD = ((44_099, 16_000), (44_100, 44_099), (96_001, 44_100), (16_000, 44_099), (1, 997), (999_983, 8_000), (7, 11),
       (44_100, 16_000), (44_100, 8_000), (44_100, 4_000), (48_000, 44_100))


@pytest.mark.parametrize("rate, target", ODD)
def test_any_span_is_a_slice_of_the_whole_bit_for_bit(tmp_path, rate, target):
    """At both ends and across the borders of blocks; also for 24-bit files, whose samples are float64."""
    sf.write(tmp_path/"x.wav", noise(40_000 if rate > target else 3_001), rate, subtype="PCM_24")
    info = probe(tmp_path/"x.wav")
    whole = read_span(info, channels="stereo", target_sr=target)
    assert len(whole) == info.frames_at(target) and whole.dtype == np.float64
    rng, block = np.random.default_rng(0), resampler(rate, target).method.block
    starts = [0, 1, len(whole) - 1, block - 1, block, *rng.integers(0, len(whole), 8)]
    for start in (int(s) for s in starts if s < len(whole)):
        n = int(rng.integers(1, min(3_000, len(whole) - start) + 1))
        for channels, count in (("stereo", 2), ("left", 1)):
            span = read_span(info, start, n, channels, target)
            assert span.tobytes() == whole[start:start + n, :count].tobytes()
    assert read_span(info, len(whole), 0, target_sr=target).shape == (0, 1)
    with pytest.raises(ValueError, match=f"x.wav: expected a span within its {len(whole)} samples"):
        read_span(info, len(whole) - 1, 2, target_sr=target)


def test_far_into_a_long_file_positions_are_exact():
    """A tone is still exact after 30 hours: positions are integers, and floats would have lost their fraction."""
    rate, target, start = 44_099, 16_001, 30*3600*16_001
    def tone(first, n): return np.sin(2*np.pi*440*((first + np.arange(n)) % 44_099)/rate)[:, None]
    got = resampler(rate, target).span(tone, 2**62, start, 3_000)[:, 0]
    np.testing.assert_allclose(got, np.sin(2*np.pi*440*((start + np.arange(3_000)) % target)/target), atol=2e-3)
    longer = resampler(rate, target).span(tone, 2**62, start - start % target, start % target + 3_000)
    assert np.array_equal(got, longer[-3_000:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("rate", (1, 997, 44_099, 10**6 + 3, 10**7))
@pytest.mark.parametrize("target", (1, 31, 16_000, 44_099, 10**7))
def test_windows_at_every_pair_of_rates_take_little_memory_or_are_refused(rate, target):
    if 2*6*rate > 0.99*_MAX_TAPS*target:
        reason = f"at least .* Hz for audio of {rate:,} Hz, got {target:,} Hz; choose a higher target_sr"
        with pytest.raises(ValueError, match=reason): Resampler(rate, target)
        return
    if 2*6*rate/target > 10**6: return          # too slow for a test: a second per output
    def read(first, n): return np.broadcast_to(1.0, (n, 1))
    import_torchaudio()                         # its memory is not measured
    tracemalloc.start()
    out = Resampler(rate, target).span(read, 2**60, 2**40, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(out, 1, atol=0.02)  # constant, except for the filter's ripple
    assert peak < 300e6


@pytest.mark.parametrize("rate, target", ((44_099, 16_000), (10**6 + 3, 8_000), (1, 44_100)))
def test_whole_files_of_awkward_rates(tmp_path, rate, target):
    path = write(tmp_path, "x.wav", 5_000 if rate > 1 else 20, 1, rate)
    wave = read_span(probe(path), target_sr=target)
    assert wave.shape == (probe(path).frames_at(target), 1) and np.isfinite(wave).all() and wave.any()


def test_refusals_name_file_and_rates(tmp_path):
    for i in range(3): write(tmp_path, f"{i}.wav", 200, 1, 10_000_000)
    info = probe(tmp_path/"0.wav")
    reason = "0.wav: expected a sample rate of at least 29 Hz for audio of 10,000,000 Hz, got 3 Hz"
    with pytest.raises(ValueError, match=reason): check_rate(info, 3)
    with pytest.raises(ValueError, match=reason): read_span(info, 0, 1, target_sr=3)
    with pytest.raises(ValueError, match=r"\d.wav: expected a sample rate of at least 29 Hz"):
        AudioData(DataConfig(tmp_path, target_sr=3, sample_len=1))
    slow = probe(write(tmp_path, "slow.wav", 20_000, 1, 1))
    with pytest.raises(ValueError, match="slow.wav: expected a span of at most 536,870,912 samples, "
                                         "got 882,000,000 at 44,100 Hz of a file of 1 Hz"):
        read_span(slow, target_sr=44_100)
    assert read_span(slow, 800_000_000, 100, target_sr=44_100).shape == (100, 1)


def test_long_spans_are_read_in_parts(tmp_path):
    counts = []
    r = resampler(48_000, 16_000)
    wave = np.zeros((3_000_000, 1), np.float32)
    def read(first, n):
        counts.append(n)
        return wave[first:first + n]
    r.span(read, len(wave), 0, r.length(len(wave)))
    assert len(counts) >= 3 and max(counts) < 1_100_000
