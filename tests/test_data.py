"""sashimi_wb.files and sashimi_wb.data: reading, resampling, splits, windows, chunked epochs, bad input."""
import itertools
import logging
import os
import pickle

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.core import from_json, import_torchaudio, to_json
from sashimi_wb.data import AudioData, ChunkSampler, DataConfig, WindowDataset, split_files
from sashimi_wb.files import AudioInfo, find_audio, index_audio, read_span
from sashimi_wb.interleave import deinterleave


def noise(frames, channels=2, seed=0, peak=0.5):
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(size=(frames, channels)), axis=0)
    return peak*(smooth/np.abs(smooth).max()) if frames else smooth


def write(folder, name, frames=4000, channels=2, rate=16_000, seed=0, **options):
    path = folder/name
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, noise(frames, channels, seed), rate, **options)
    return path


@pytest.fixture
def corpus(tmp_path):
    for i, (name, frames) in enumerate((("b.wav", 4000), ("a/x.flac", 3100), ("a/y.wav", 2500), ("c.ogg", 5000), ("d.flac", 2048), ("e.wav", 900))):
        write(tmp_path, name, frames, seed=i)
    return tmp_path


# ---- files

def test_find_audio_is_sorted_and_sees_any_depth(corpus):
    write(corpus, "Z.WAV"), write(corpus, "._hidden.wav"), (corpus/"readme.txt").write_text("x")
    assert [p.relative_to(corpus).as_posix() for p in find_audio(corpus)] == ["Z.WAV", "a/x.flac", "a/y.wav", "b.wav", "c.ogg", "d.flac", "e.wav"]


def test_folders_without_audio(tmp_path):
    (tmp_path/"none").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder .*missing.*give a folder"): index_audio(tmp_path/"missing")
    with pytest.raises(ValueError, match="is empty: put .wav"): index_audio(tmp_path/"none")
    (tmp_path/"none"/"a.mid").write_text("x")
    with pytest.raises(ValueError, match="no audio in .*expected .wav, .flac, .ogg, .mp3.*1 others \\(.mid\\)"): index_audio(tmp_path/"none")
    with pytest.raises(ValueError, match="give the folder it is in"): index_audio(tmp_path/"none"/"a.mid")
    with pytest.raises(FileNotFoundError): AudioData(DataConfig(str(tmp_path/"missing")))


@pytest.mark.parametrize("suffix", ("wav", "flac", "mp3"))
@pytest.mark.parametrize("share", (0.5, 0.97))
def test_truncated_files_are_named(tmp_path, suffix, share):
    for i in range(3): write(tmp_path, f"good{i}.wav")
    cut = write(tmp_path, f"cut.{suffix}", 30_000)
    cut.write_bytes(cut.read_bytes()[:int(cut.stat().st_size*share)])
    with pytest.raises(ValueError, match=f"1 of 4 files.*cut.{suffix}.*truncated.*skip_bad=True"): index_audio(tmp_path, decode_s=0)
    assert [i.name for i in index_audio(tmp_path, skip_bad=True, decode_s=0)] == ["good0.wav", "good1.wav", "good2.wav"]


@pytest.mark.parametrize("suffix", ("wav", "flac", "ogg", "mp3"))
@pytest.mark.parametrize("content", (b"", b"hello world "*40))
def test_files_that_are_no_audio(tmp_path, suffix, content, caplog):
    write(tmp_path, "good.wav"), (tmp_path/f"bad.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.{suffix}"): index_audio(tmp_path)
    with caplog.at_level(logging.WARNING, "sashimi_wb"): assert [i.name for i in index_audio(tmp_path, skip_bad=True)] == ["good.wav"]
    assert f"bad.{suffix}" in caplog.text
    os.remove(tmp_path/"good.wav")
    with pytest.raises(ValueError, match="1 of 1 files"): index_audio(tmp_path, skip_bad=True)


@pytest.mark.parametrize("suffix", ("flac", "ogg", "mp3"))
def test_damage_in_the_middle(tmp_path, suffix):
    for i in range(3): write(tmp_path, f"good{i}.wav", 30_000)
    hurt = write(tmp_path, f"hurt.{suffix}", 60_000)
    whole = hurt.read_bytes()
    hurt.write_bytes(whole[:len(whole)//2] + b"\0"*400 + whole[len(whole)//2 + 400:])
    with pytest.raises(ValueError, match=f"hurt.{suffix}.*damaged"): index_audio(tmp_path)
    data = AudioData(DataConfig(str(tmp_path), sample_len=500, skip_bad=True))
    assert len(data.files) == 3
    for _ in itertools.chain(data.train_loader(), data.val_loader(), data.test_loader()): pass


def test_damage_met_while_reading_is_named(tmp_path):
    hurt = write(tmp_path, "hurt.flac", 60_000)
    whole = hurt.read_bytes()
    hurt.write_bytes(whole[:len(whole)//2] + b"\0"*400 + whole[len(whole)//2 + 400:])
    info, = index_audio(tmp_path, decode_s=0)
    with pytest.raises(ValueError, match="hurt.flac: damaged"):
        for start in range(0, 60_000, 1000): read_span(info, start, 1000)


def test_streamed_wav_with_open_length_is_accepted(tmp_path):
    path = write(tmp_path, "stream.wav", 500)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"data") + 4
    whole[at:at + 4] = b"\xff"*4
    path.write_bytes(whole)
    assert index_audio(tmp_path)[0].frames == 500


@pytest.mark.parametrize("value", (1.5, float("nan"), float("inf")))
def test_out_of_range_float_files_are_named(tmp_path, value):
    wave = np.zeros((70_000, 2))
    wave[66_001, 1] = value
    sf.write(tmp_path/"hot.wav", wave, 16_000, subtype="FLOAT")
    write(tmp_path, "good.wav")
    with pytest.raises(ValueError, match="sample 66001, channel 1 of hot.wav: expected a number in \\[-1, 1\\]"): index_audio(tmp_path)
    assert len(index_audio(tmp_path, skip_bad=True)) == 1
    info = index_audio(tmp_path, decode_s=0)[1]
    with pytest.raises(ValueError, match="sample 66001, channel 1 of hot.wav"): read_span(info, 66_000, 10)


@pytest.mark.parametrize("suffix", ("ogg", "mp3"))
def test_overshoot_of_lossy_decoders_is_clamped(tmp_path, suffix):
    t = np.arange(30_000)
    sf.write(tmp_path/f"loud.{suffix}", np.sign(np.sin(t/30))[:, None]*0.999, 16_000)
    wave = read_span(index_audio(tmp_path)[0])
    assert sf.read(tmp_path/f"loud.{suffix}")[0].max() > 1 and np.abs(wave).max() == 1


@pytest.mark.parametrize("suffix,subtype,bits", [(s, f"PCM_{b}", b) for s, depths in (("wav", (16, 24, 32)), ("flac", (16, 24))) for b in depths])
def test_integers_stay_exact(tmp_path, suffix, subtype, bits):
    rng = np.random.default_rng(0)
    k = rng.integers(-2**(bits - 1), 2**(bits - 1), (999, 2))
    k[:2] = -2**(bits - 1), 2**(bits - 1) - 1
    sf.write(tmp_path/f"x.{suffix}", (k << (32 - bits)).astype(np.int32), 16_000, subtype=subtype)
    wave = read_span(index_audio(tmp_path)[0], channels="stereo")
    assert np.array_equal(wave.astype(np.float64)*2**(bits - 1), k)


def test_channels(corpus):
    info = index_audio(corpus)[0]
    stereo, left, right, mono = (read_span(info, 100, 700, c) for c in ("stereo", "left", "right", "mono"))
    assert stereo.shape == (700, 2) and left.shape == right.shape == mono.shape == (700, 1)
    assert np.array_equal(stereo, np.hstack([left, right])) and np.array_equal(mono, (left + right)/2)
    with pytest.raises(ValueError, match="expected a span within"): read_span(info, 3000, 200)
    with pytest.raises(ValueError, match="unknown channels 'side'; known"): read_span(info, 0, 2, "side")


@pytest.mark.parametrize("channels", ("stereo", "left", "right"))
def test_mono_file_asked_for_as_stereo(tmp_path, channels):
    for i in range(3): write(tmp_path, f"{i}.wav", channels=2 if i else 1)
    with pytest.raises(ValueError, match=f"0.wav: channels='{channels}' needs a stereo file, this one has 1 channel \\(mono\\); use"):
        AudioData(DataConfig(str(tmp_path), sample_len=100, channels=channels))
    AudioData(DataConfig(str(tmp_path), sample_len=100))


@pytest.mark.parametrize("rate,target", ((44_100, 16_000), (16_000, 44_100), (48_000, 44_100), (22_050, 44_100), (16_000, 8_000), (8_000, 11_025)))
def test_any_resampled_span_is_a_slice_of_the_whole(tmp_path, rate, target):
    write(tmp_path, "x.wav", 9_001, rate=rate)
    info, = index_audio(tmp_path)
    whole = read_span(info, channels="stereo", target_sr=target)
    source = torch.from_numpy(read_span(info, channels="stereo").T.astype(np.float64))
    direct = import_torchaudio().functional.resample(source, rate, target).clamp(-1, 1).T.numpy()
    assert len(whole) == info.frames_at(target) == len(direct)
    np.testing.assert_allclose(whole, direct, atol=1e-6)
    rng = np.random.default_rng(0)
    for start in (0, 1, len(whole) - 1, *rng.integers(0, len(whole), 20)):
        n = int(rng.integers(1, min(1500, len(whole) - start) + 1))
        np.testing.assert_allclose(read_span(info, int(start), n, "stereo", target), whole[start:start + n], rtol=0, atol=1e-7)


# ---- split

@given(st.integers(3, 60), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_split_is_a_partition_without_empty_parts(n, share, seed):
    files = [AudioInfo(f"/{i}", f"f{i:02}.wav", 10, 8000, 1, "PCM_16") for i in range(n)]
    parts = split_files(files, share, seed)
    assert all(parts) and sorted(f.name for p in parts for f in p) == [f.name for f in files]
    assert split_files(files[::-1], share, seed) == parts
    assert len(parts[2]) - len(parts[1]) in (0, 1)
    assert abs(len(parts[0]) - n*share) <= 2


def test_split_values():
    files = [AudioInfo(f"/{i}", f"f{i:03}.wav", 10, 8000, 1, "PCM_16") for i in range(100)]
    a, b = split_files(files), split_files(files, seed=1)
    assert [len(p) for p in a] == [88, 6, 6] and a != b
    with pytest.raises(ValueError, match="at least 3 files.*got 2"): split_files(files[:2])
    for share in (0, 1, 88, "0.88", True, float("nan")):
        with pytest.raises(ValueError, match="share between 0 and 1"): split_files(files, share)


# ---- configuration

@pytest.mark.parametrize("field,value", [
    ("bits", 0), ("bits", 17), ("bits", "8"), ("bits", True), ("quantization", "alaw"), ("scaling", "max"), ("input", "wave"), ("sample_len", 0),
    ("sample_len", 10.0), ("channels", "5.1"), ("interleaving_strategy", "blocking-0"), ("target_sr", 0), ("target_sr", "16000"), ("train_percentage", 88),
    ("drop_last", 1), ("batch_size", 0), ("train_chunk_size", 0), ("val_chunk_size", -1), ("seed", -1), ("num_workers", -1), ("skip_bad", None), ("path", ""), ("path", 3)])
def test_config_errors_name_what_came(field, value):
    with pytest.raises(ValueError) as e: DataConfig(**{"path": "x", field: value})
    assert repr(value) in str(e.value) or "blocking-0" in str(e.value)


def test_config_survives_json(tmp_path):
    config = DataConfig(tmp_path, bits=12, channels="stereo", target_sr=8000)
    assert from_json(DataConfig, to_json(config)) == config and config.path == str(tmp_path)
    assert (config.n_channels, config.n_tokens, config.quantizer.n_codes) == (2, 16_384, 4096)


# ---- windows

@pytest.mark.parametrize("strategy", ("temporal", "blocking-7"))
@pytest.mark.parametrize("quantization,scaling", (("linear", "full_scale"), ("mu_law", "full_scale"), ("linear", "clip_minmax"), ("mu_law", "clip_minmax")))
def test_windows_cover_the_files_and_the_inputs_agree(corpus, strategy, quantization, scaling):
    files = index_audio(corpus)
    for drop_last in (True, False):
        base = dict(path=str(corpus), sample_len=600, channels="stereo", interleaving_strategy=strategy, quantization=quantization, scaling=scaling, drop_last=drop_last)
        sets = {name: WindowDataset(files, DataConfig(**base, input=name)) for name in ("codes", "dequantized", "raw")}
        d = sets["codes"]
        assert len(d) == sum(f.frames//600 if drop_last else -(-f.frames//600) for f in files)
        q, seen = d.quantizer, {}
        for i in range(len(d)):
            info, start, frames = d.span(i)
            seen.setdefault(info.name, []).append((start, frames))
            codes, deq, raw = (sets[n][i] for n in sets)
            assert torch.equal(codes["y"], deq["y"]) and torch.equal(codes["y"], raw["y"]) and torch.equal(codes["mask"], raw["mask"])
            assert codes["y"].shape == codes["x"].shape == codes["mask"].shape == (1200, 1)
            assert codes["y"].dtype == codes["x"].dtype == torch.int64 and raw["x"].dtype == deq["x"].dtype == torch.float32 and codes["mask"].dtype == torch.bool
            assert codes["x"][0] == q.zero_code and deq["x"][0] == 0 and raw["x"][0] == 0
            assert torch.equal(codes["x"][1:], codes["y"][:-1])
            mask = codes["mask"][:-1]
            assert torch.equal(deq["x"][1:][mask], q.decode(codes["x"][1:])[mask])
            by_channel = deinterleave(codes["y"][None], strategy, 2)[0].numpy()
            want = q.encode(torch.from_numpy(read_span(info, start, frames, "stereo"))[None])[0].numpy()
            assert np.array_equal(by_channel[:frames], want) and np.array_equal(d.codes(i), want)
            by_mask = deinterleave(codes["mask"][None], strategy, 2)[0].numpy()
            assert by_mask[:frames].all() and not by_mask[frames:].any() and (by_channel[frames:] == q.zero_code).all()
            if scaling == "full_scale" and i % 5 == 0:
                assert torch.equal(q.encode(raw["x"])[1:], codes["x"][1:])
        for f in files:
            if not drop_last: assert sum(n for _, n in seen[f.name]) == f.frames
            assert [s for s, _ in seen[f.name]] == list(range(0, 600*len(seen[f.name]), 600))


def test_window_indices(corpus):
    d = WindowDataset(index_audio(corpus), DataConfig(str(corpus), sample_len=500))
    assert torch.equal(d[-1]["y"], d[len(d) - 1]["y"])
    for i in (len(d), -len(d) - 1):
        with pytest.raises(IndexError): d[i]
    clone = pickle.loads(pickle.dumps(d))
    assert torch.equal(clone[3]["y"], d[3]["y"])


def test_window_longer_than_every_file(corpus):
    files = index_audio(corpus)
    with pytest.raises(ValueError, match="sample_len=6000 is longer than every file of the corpus; the longest, c.ogg, has 5000 samples at 16000 Hz. Use sample_len=5000"):
        WindowDataset(files, DataConfig(str(corpus), sample_len=6000))
    with pytest.raises(ValueError, match="longer than every file of the (training|validation|test) files"): AudioData(DataConfig(str(corpus), sample_len=6000))
    d = WindowDataset(files, DataConfig(str(corpus), sample_len=6000, drop_last=False))
    assert len(d) == 6 and int(d[5]["mask"].sum()) == 900


def test_differing_sample_rates(tmp_path):
    for i, rate in enumerate((16_000, 16_000, 44_100, 8_000)): write(tmp_path, f"{i}.wav", 4000, rate=rate)
    with pytest.raises(ValueError, match="8000 Hz: 3.wav; 16000 Hz: 0.wav, 1.wav; 44100 Hz: 2.wav. Set target_sr"): AudioData(DataConfig(str(tmp_path), sample_len=100))
    data = AudioData(DataConfig(str(tmp_path), sample_len=500, target_sr=16_000))
    assert data.sample_rate == 16_000 and sum(map(len, (data.train, data.val, data.test))) == 8 + 8 + 2 + 16


# ---- chunked epochs

@given(st.integers(1, 40), st.integers(1, 7), st.one_of(st.none(), st.integers(1, 30)), st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_epochs_are_consecutive_chunks(n, batch, chunk, seed, shuffle):
    s = ChunkSampler(n, batch, chunk, seed, shuffle)
    passes = -(-n//batch)
    line = []
    for e in range(2*passes//s.chunk + 2):
        s.set_epoch(e)
        assert len(list(s)) == len(s) == min(chunk or passes, passes)
        line += list(s)
    for p in range(len(line)//passes):
        items = sum(line[p*passes:(p + 1)*passes], [])
        assert sorted(items) == list(range(n))
        if not shuffle: assert items == list(range(n))
    fresh = ChunkSampler(n, batch, chunk, seed, shuffle)
    fresh.load_state_dict(dict(epoch=1, skip=1))
    assert list(fresh) == line[s.chunk:2*s.chunk][1:] and fresh.state_dict() == dict(epoch=1, skip=1)


def test_passes_differ_and_seeds_differ():
    def epoch(seed, e):
        s = ChunkSampler(50, 5, None, seed)
        s.set_epoch(e)
        return list(s)
    assert epoch(0, 0) != epoch(0, 1) != epoch(1, 1) and epoch(3, 7) == epoch(3, 7)


@pytest.mark.parametrize("shuffle", (True, False))
def test_processes_share_the_batches(shuffle):
    whole = list(ChunkSampler(23, 2, 7, 5, shuffle))
    shares = [list(ChunkSampler(23, 2, 7, 5, shuffle, rank, 2)) for rank in (0, 1)]
    assert shares[0] == whole[:6:2] + ([] if shuffle else [whole[6]]) and shares[1] == whole[1:6:2]


def test_sampler_errors():
    for wrong in (dict(n_items=0), dict(n_items=5, batch_size=0), dict(n_items=5, chunk=0), dict(n_items=5, world=0)):
        with pytest.raises(ValueError, match="expected at least 1, got 0"): ChunkSampler(**wrong)
    with pytest.raises(ValueError, match="at least 0"): ChunkSampler(5).set_epoch(-1)


# ---- the whole

def test_loaders_resume_and_workers_change_nothing(corpus):
    def batches(num_workers=0, epoch=3, skip=0):
        data = AudioData(DataConfig(str(corpus), sample_len=100, batch_size=3, train_chunk_size=4, channels="stereo", num_workers=num_workers, target_sr=11_025))
        return [b["y"] for b in data.train_loader(epoch, skip)]
    plain = batches()
    state = torch.random.get_rng_state()
    assert len(plain) == 4 and all(torch.equal(a, b) for a, b in zip(plain, batches(num_workers=2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain[2:], batches(skip=2), strict=True))
    assert not torch.equal(plain[0], batches(epoch=4)[0])
    assert torch.equal(state, torch.random.get_rng_state())


def test_validation_chunks_and_test_codes(corpus):
    config = DataConfig(str(corpus), sample_len=200, batch_size=2, val_chunk_size=2, train_percentage=0.34, drop_last=False, channels="stereo", interleaving_strategy="blocking")
    data = AudioData(config)
    n = len(data.val_loader(0).batch_sampler) and -(-len(data.val)//2)
    firsts = [next(iter(data.val_loader(e).batch_sampler))[0] for e in range(3)]
    assert firsts == [2*(2*e % n) for e in range(3)]
    codes = list(data.test_codes())
    assert len(codes) == len(data.test) and all(c.dtype == np.int64 and c.shape[1] == 2 for c in codes)
    loaded = [(y, m) for b in data.test_loader() for y, m in zip(b["y"], b["mask"])]
    for c, (y, m) in zip(codes, loaded, strict=True):
        assert int(m.sum()) == c.size and np.array_equal(deinterleave(y[None], "blocking", 2)[0, :len(c)].numpy(), c)
    assert sum(len(c) for c in codes) == sum(data.test.lengths)


def test_fingerprint_follows_contents_and_names(corpus):
    def print_of(): return AudioData(DataConfig(str(corpus), sample_len=100)).fingerprint()
    first = print_of()
    assert len(first) == 64 and print_of() == first
    os.utime(corpus/"b.wav", (0, 0))
    assert print_of() == first
    os.rename(corpus/"b.wav", corpus/"bb.wav")
    assert print_of() != first
    os.rename(corpus/"bb.wav", corpus/"b.wav")
    write(corpus, "b.wav", 4000, seed=99)
    assert print_of() != first


def test_too_few_files(tmp_path):
    write(tmp_path, "a.wav"), write(tmp_path, "b.wav")
    with pytest.raises(ValueError, match="at least 3 files.*got 2 \\(a.wav, b.wav\\)"): AudioData(DataConfig(str(tmp_path), sample_len=100))
