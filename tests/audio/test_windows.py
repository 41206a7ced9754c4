"""Data configuration, windows, loaders, chunked epochs, and the remarks on what the codes lose of the files."""
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_audio import write

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.files import read_span
from sashimi_wb.audio.held import HeldData
from sashimi_wb.audio.index import index_audio
from sashimi_wb.audio.loaders import AudioData, ChunkSampler
from sashimi_wb.audio.windows import WindowDataset
from sashimi_wb.core.system import from_json, to_json
from sashimi_wb.tokens.byte_tokens import from_bytes, silent_input
from sashimi_wb.tokens.layouts import deinterleave, interleave
from sashimi_wb.training.evaluation import whole_files


@pytest.fixture
def corpus(tmp_path):
    files = {"b.wav": 4000, "a/x.flac": 3100, "a/y.wav": 2500, "c.ogg": 5000, "d.flac": 2048, "e.wav": 900}
    for i, (name, frames) in enumerate(files.items()): write(tmp_path, name, frames, seed=i)
    return tmp_path


# ---- bad input

@pytest.mark.parametrize("channels", ("stereo", "left", "right"))
def test_stereo_from_a_mono_file(tmp_path, channels):
    for i in range(3): write(tmp_path, f"{i}.wav", channels=2 if i else 1)
    reason = f"0.wav: channels='{channels}' needs a stereo file, this one has 1 channel \\(mono\\); use"
    with pytest.raises(ValueError, match=reason):
        AudioData(DataConfig(str(tmp_path), sample_len=100, channels=channels))
    AudioData(DataConfig(str(tmp_path), sample_len=100))


# ---- configuration

@pytest.mark.parametrize("field,value", [
    ("bits", 0), ("bits", 25), ("bits", "8"), ("bits", True),
    ("quantization", "alaw"), ("scaling", "max"), ("input", "wave"), ("tokens", "bits"), ("tokens", None),
    ("sample_len", 0), ("sample_len", 10.0), ("channels", "5.1"), ("interleaving_strategy", "blocking-0"),
    ("target_sr", 0), ("target_sr", "16000"), ("train_percentage", 88), ("drop_last", 1), ("skip_bad", None),
    ("batch_size", 0), ("train_chunk_size", 0), ("val_chunk_size", -1), ("seed", -1), ("num_workers", -1),
    ("path", ""), ("path", 3), ("dataset", "timit"), ("dataset", ["folder"]), ("stem", "drums"),
    ("context_len", -1), ("context_len", 8192), ("context_len", 1.0),
    ("pad_len", -1), ("pad_len", "8"), ("pad_len", True),
    ("test_s", 0), ("test_s", -1.0), ("test_s", "1"), ("test_s", True), ("test_s", float("nan")),
    ("test_s", float("inf")), ("quantize_input", 1), ("is_stereo", "yes")])
def test_config_errors_give_the_value(field, value):
    with pytest.raises(ValueError) as e: DataConfig(**{"path": "x", field: value})
    assert repr(value) in str(e.value) or "blocking-0" in str(e.value)


def test_config_survives_json(tmp_path):
    config = DataConfig(tmp_path, bits=12, channels="stereo", target_sr=8000)
    assert from_json(DataConfig, to_json(config)) == config and config.path == str(tmp_path)
    assert (config.n_channels, config.n_tokens, config.quantizer.n_codes) == (2, 16_384, 4096)


@pytest.mark.parametrize("options,match", [
    (dict(quantization="mu_law", bits=17), "1 to 16"), (dict(scaling="clip_minmax", bits=24), "1 to 16"),
    (dict(tokens="bytes", input="raw"), "expected input='codes', got 'raw'"),
    (dict(tokens="bytes", input="dequantized"), "got 'dequantized'"),
    (dict(quantize_input=True, input="raw"), "quantize_input=True contradicts input='raw'"),
    (dict(quantize_input=False, input="dequantized"), "quantize_input=False contradicts input='dequantized'"),
    (dict(is_stereo=True, channels="right"), "is_stereo=True contradicts channels='right'"),
    (dict(is_stereo=False, channels="stereo"), "is_stereo=False contradicts channels='stereo'"),
    (dict(quantize_input=False, tokens="bytes"), "expected input='codes', got 'raw'"),
    (dict(dataset="sc09", stem="vocals"), "unknown stem of sc09 'vocals'"),
    (dict(sample_len=8, context_len=8), "less than sample_len=8, got 8; nothing would be left")])
def test_contradictions(options, match):
    with pytest.raises(ValueError, match=match): DataConfig("x", **options)


def test_aliases_of_input_and_channels():
    assert DataConfig("x", quantize_input=False, is_stereo=True) == DataConfig("x", input="raw", channels="stereo")
    assert DataConfig("x", quantize_input=True, input="dequantized").input == "dequantized"
    assert DataConfig("x", quantize_input=True).input == "codes"
    assert DataConfig("x", is_stereo=False, channels="left").channels == "left"
    assert DataConfig("x", is_stereo=False).channels == "mono"
    assert DataConfig("x", context_len=None, pad_len=None) == DataConfig("x")
    raw = DataConfig("x", quantize_input=False, is_stereo=True, dataset="musdb18hq", stem="bass", tokens="codes",
                     context_len=3, pad_len=2)
    assert replace(raw, input="dequantized").input == "dequantized" and replace(raw, batch_size=2).input == "raw"
    assert from_json(DataConfig, to_json(raw)) == raw
    assert set(to_json(raw)) == set(raw.__dataclass_fields__) - {"quantize_input", "is_stereo"}
    assert pickle.loads(pickle.dumps(raw)) == raw and hash(raw) == hash(replace(raw))


@pytest.mark.parametrize("bits,tokens,n", (
    (8, "codes", 1), (24, "codes", 1), (5, "bytes", 1), (8, "bytes", 1), (9, "bytes", 2), (16, "bytes", 2),
    (17, "bytes", 3), (24, "bytes", 3)))
def test_tokens_of_a_window(bits, tokens, n):
    config = DataConfig("x", bits=bits, tokens=tokens, channels="stereo", sample_len=100, pad_len=7)
    assert config.tokens_per_sample == n and config.n_tokens == 107*2*n


# ---- windows

@pytest.mark.slow
@pytest.mark.parametrize("strategy", ("temporal", "blocking-7"))
@pytest.mark.parametrize("quantization", ("linear", "mu_law"))
@pytest.mark.parametrize("scaling", ("full_scale", "clip_minmax"))
def test_windows_cover_the_files_and_the_inputs_agree(corpus, strategy, quantization, scaling):
    files = index_audio(corpus)
    for drop_last in (True, False):
        base = dict(path=str(corpus), sample_len=600, channels="stereo", interleaving_strategy=strategy,
                    quantization=quantization, scaling=scaling, drop_last=drop_last)
        sets = {name: WindowDataset(files, DataConfig(**base, input=name)) for name in ("codes", "dequantized", "raw")}
        d = sets["codes"]
        assert len(d) == sum(f.frames//600 if drop_last else -(-f.frames//600) for f in files)
        q, seen = d.quantizer, {}
        for i in range(len(d)):
            info, start, frames = d.span(i)
            seen.setdefault(info.name, []).append((start, frames))
            codes, deq, raw = (sets[n][i] for n in sets)
            assert torch.equal(codes["y"], deq["y"]) and torch.equal(codes["y"], raw["y"])
            assert torch.equal(codes["mask"], raw["mask"])
            assert codes["y"].shape == codes["x"].shape == codes["mask"].shape == (1200, 1)
            assert codes["y"].dtype == codes["x"].dtype == torch.int64
            assert raw["x"].dtype == deq["x"].dtype == torch.float32 and codes["mask"].dtype == torch.bool
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


@pytest.fixture(scope="module")
def shelf(tmp_path_factory): return tmp_path_factory.mktemp("shelf")


SUBTYPES = {8: "PCM_U8", 16: "PCM_16", 24: "PCM_24"}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_sample_is_scored_once_and_every_input_is_shifted_by_one(shelf, data):
    """For any lengths, context, padding, layout, channels and tokens, the scored targets are the files in order."""
    draw = data.draw
    depth, channels = draw(st.sampled_from((8, 16, 24))), draw(st.sampled_from(("mono", "left", "right", "stereo")))
    bits = draw(st.sampled_from((depth, depth, 1, 7, 12, 24)))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=2))
    sample_len = draw(st.integers(1, 20))
    context, pad = draw(st.integers(0, sample_len - 1)), draw(st.integers(0, 9))
    strategy = draw(st.sampled_from(("temporal", "blocking", "blocking-1", "blocking-4", "blocking-100")))
    tokens = draw(st.sampled_from(("codes", "bytes")))
    feed = "codes" if tokens == "bytes" else draw(st.sampled_from(("codes", "dequantized", "raw")))
    n_file = 2 if channels in ("stereo", "left", "right") else draw(st.integers(1, 2))
    rng, whole = np.random.default_rng(sum(lengths)), []
    for f in shelf.iterdir(): f.unlink()
    for i, n in enumerate(lengths):
        k = rng.integers(-2**(depth - 1), 2**(depth - 1), (n, n_file))
        sf.write(shelf/f"{i}.wav", (k << (32 - depth)).astype(np.int32), 16_000, subtype=SUBTYPES[depth])
        whole.append(k)
    drop_last = draw(st.booleans()) and max(lengths) >= sample_len
    config = DataConfig(shelf, bits=bits, input=feed, sample_len=sample_len, channels=channels,
                        interleaving_strategy=strategy, drop_last=drop_last,
                        tokens=tokens, context_len=context, pad_len=pad)
    d, q = WindowDataset(index_audio(shelf), config), config.quantizer
    n, c = config.tokens_per_sample, config.n_channels
    back = {f.name: [] for f in d.files}
    for i in range(len(d)):
        x, y, mask = (d[i][key] for key in ("x", "y", "mask"))
        info, start, frames = d.span(i)
        assert x.shape == y.shape == mask.shape == (config.n_tokens, 1) == ((pad + sample_len)*c*n, 1)
        if feed == "codes":
            assert x[0] == (silent_input(bits) if tokens == "bytes" else q.zero_code)
            assert torch.equal(x[1:] % 256 if tokens == "bytes" else x[1:], y[:-1])
            if tokens == "bytes": assert torch.equal(x[:, 0]//256, (torch.arange(len(x)) - 1) % n)
        codes = from_bytes(y[None], bits) if tokens == "bytes" else y[None]
        codes, scored = (deinterleave(t, strategy, c)[0] for t in (codes, mask[None, ::n]))
        assert torch.equal(mask.view(-1, n), mask.view(-1, n)[:, :1].expand(-1, n))  # all tokens of a sample or none
        assert (codes[:pad] == q.zero_code).all() and (codes[pad + frames:] == q.zero_code).all()
        first = context if start else 0
        want = torch.zeros(pad + sample_len, dtype=torch.bool)
        want[pad + first:pad + frames] = True
        assert torch.equal(scored, want[:, None].expand(-1, c))
        wave = torch.from_numpy(read_span(info, start, frames, channels))
        file_codes = q.encode(wave[None])[0]
        assert torch.equal(codes[pad:pad + frames], file_codes)
        if feed != "codes":
            floats = torch.zeros(1, pad + sample_len, c)
            floats[0, pad:pad + frames] = wave if feed == "raw" else q.decode(file_codes)
            assert x[0] == 0.0 and torch.equal(x[1:], interleave(floats, strategy)[0, :-1])
        assert np.array_equal(d.codes(i), codes[want].numpy()) and len(d.wave(i)) == len(d.codes(i))
        back[info.name].append(codes[want].numpy())
    for (name, got), info, k in zip(back.items(), d.files, whole):
        got = np.concatenate(got) if got else np.zeros((0, c), dtype=np.int64)
        file = q.encode(torch.from_numpy(read_span(info, channels=channels))[None])[0].numpy()
        if drop_last: assert len(file) - len(got) < sample_len and np.array_equal(got, file[:len(got)])
        else: assert np.array_equal(got, file)
        if bits == depth and (channels != "mono" or n_file == 1):
            columns = {"left": slice(0, 1), "right": slice(1, 2)}.get(channels, slice(None))
            assert np.array_equal(file, k[:, columns] + 2**(depth - 1))  # the integers of the file, bit for bit


def test_context_costs_windows_not_samples(corpus):
    base = dict(path=str(corpus), sample_len=400, drop_last=False, train_percentage=0.34, channels="stereo",
                batch_size=3)
    plain = AudioData(DataConfig(**base))
    context = AudioData(DataConfig(**base, context_len=300, pad_len=11, tokens="bytes", bits=16))
    assert len(context.test) > 3*len(plain.test)
    for d in (plain, context):
        assert sum(int(b["mask"].sum()) for b in d.test_loader()) == sum(d.test.lengths)*2*d.config.tokens_per_sample
        assert sum(len(c) for c in d.test_codes()) == sum(d.test.lengths)
    assert context.test.context(0) == 0 and context.test.context(1) == 300


def test_window_indices(corpus):
    d = WindowDataset(index_audio(corpus), DataConfig(str(corpus), sample_len=500))
    assert torch.equal(d[-1]["y"], d[len(d) - 1]["y"])
    for i in (len(d), -len(d) - 1):
        with pytest.raises(IndexError): d[i]
    clone = pickle.loads(pickle.dumps(d))
    assert torch.equal(clone[3]["y"], d[3]["y"])


@pytest.mark.parametrize("rate", (8000, 6000))
@pytest.mark.parametrize("longest", (1, 700, 2**17))
@pytest.mark.parametrize("options", ({}, {"context_len": 30}, {"scaling": "clip_minmax", "drop_last": False}))
def test_windows_that_are_read_at_once_are_those_that_are_read_alone(corpus, monkeypatch, options, longest, rate):
    monkeypatch.setattr("sashimi_wb.audio.windows.LONGEST", longest)
    windows = WindowDataset(index_audio(corpus), DataConfig(str(corpus), sample_len=100, target_sr=rate, **options))
    for chosen in (range(len(windows)), range(3, len(windows), 7)):
        read = dict(windows._read_many(chosen))
        assert list(read) == list(chosen) and all(torch.equal(wave, windows._read(i)) for i, wave in read.items())
    alone = [windows.codes(i) for i in range(len(windows))]
    assert np.array_equal(np.concatenate(list(windows.codes_of_files())), np.concatenate(alone))
    assert np.array_equal(windows.histogram(256), np.bincount(np.concatenate(alone).ravel(), minlength=256))


def test_window_longer_than_every_file(corpus):
    files = index_audio(corpus)
    with pytest.raises(ValueError, match="sample_len=6000 is longer than every file of the corpus; the longest, c.ogg, "
                                         "has 5000 samples at 16000 Hz. Use sample_len=5000"):
        WindowDataset(files, DataConfig(str(corpus), sample_len=6000))
    with pytest.raises(ValueError, match="longer than every file of the (training|validation|test) files"):
        AudioData(DataConfig(str(corpus), sample_len=6000))
    d = WindowDataset(files, DataConfig(str(corpus), sample_len=6000, drop_last=False))
    assert len(d) == 6 and int(d[5]["mask"].sum()) == 900


def test_differing_sample_rates(tmp_path):
    for i, rate in enumerate((16_000, 16_000, 44_100, 8_000)): write(tmp_path, f"{i}.wav", 4000, rate=rate)
    with pytest.raises(ValueError, match="8000 Hz: 3.wav; 16000 Hz: 0.wav, 1.wav; 44100 Hz: 2.wav. Set target_sr"):
        AudioData(DataConfig(str(tmp_path), sample_len=100))
    data = AudioData(DataConfig(str(tmp_path), sample_len=500, target_sr=16_000))
    assert data.sample_rate == 16_000 and sum(map(len, (data.train, data.val, data.test))) == 8 + 8 + 2 + 16


# ---- chunked epochs

@given(n=st.integers(1, 40), batch=st.integers(1, 7), chunk=st.one_of(st.none(), st.integers(1, 30)),
       seed=st.integers(0, 3), shuffle=st.booleans())
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


@given(n=st.integers(1, 30), part=st.integers(1, 3), world=st.integers(1, 5), shuffle=st.booleans())
@settings(max_examples=40, deadline=None)
def test_processes_share_every_batch(n, part, world, shuffle):
    whole = list(ChunkSampler(n, part*world, 7, 5, shuffle))
    shares = [list(ChunkSampler(n, part*world, 7, 5, shuffle, rank, world)) for rank in range(world)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole
    for batch, *parts in zip(whole, *shares):
        sizes = list(map(len, parts))
        assert max(sizes) - min(sizes) <= (len(batch) < part*world)   # equal, but for a short last batch


def test_a_process_without_a_window_gets_one_in_which_nothing_counts(corpus):
    config = DataConfig(corpus, sample_len=1000, drop_last=False)
    data = AudioData(config)
    data = data.changed(batch_size=len(data.train) - 1)       # the second batch of a pass has one window
    data.world, loaded = data.config.batch_size, []
    for rank in range(data.world):
        data.rank = rank
        loaded.append(list(data.train_loader())[1])
    assert [b["mask"].any().item() for b in loaded] == [False]*(data.world - 1) + [True]
    held = HeldData(data, "cpu")
    for rank in range(data.world):
        held.rank = rank
        for name, value in list(held.train_loader())[1].items(): assert torch.equal(value, loaded[rank][name])


def test_sampler_errors():
    for wrong in (dict(n_items=0), dict(n_items=5, batch_size=0), dict(n_items=5, chunk=0), dict(n_items=5, world=0)):
        with pytest.raises(ValueError, match="expected an integer of at least 1, got 0"): ChunkSampler(**wrong)
    with pytest.raises(ValueError, match="at least 0"): ChunkSampler(5).set_epoch(-1)
    for batch, world, remedy in ((4, 3, "batch_size=3 or 6, or one of 1, 2, 4 processes"), (2, 4, "batch_size=4, or")):
        with pytest.raises(ValueError, match=f"batch_size={batch} cannot be divided among {world}.*{remedy}"):
            ChunkSampler(9, batch, world=world)


# ---- loaders

def test_loaders_resume_and_workers_change_nothing(corpus):
    def batches(num_workers=0, epoch=3, skip=0):
        data = AudioData(DataConfig(str(corpus), sample_len=100, batch_size=3, train_chunk_size=4, channels="stereo",
                                    num_workers=num_workers, target_sr=11_025))
        return [b["y"] for b in data.train_loader(epoch, skip)]
    plain = batches()
    state = torch.random.get_rng_state()
    assert len(plain) == 4 and all(torch.equal(a, b) for a, b in zip(plain, batches(num_workers=2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain[2:], batches(skip=2), strict=True))
    assert not torch.equal(plain[0], batches(epoch=4)[0])
    assert torch.equal(state, torch.random.get_rng_state())


def test_validation_chunks_and_test_codes(corpus):
    config = DataConfig(str(corpus), sample_len=200, batch_size=2, val_chunk_size=2, train_percentage=0.34,
                        drop_last=False, channels="stereo", interleaving_strategy="blocking")
    data = AudioData(config)
    n = len(data.val_loader(0).batch_sampler) and -(-len(data.val)//2)
    firsts = [next(iter(data.val_loader(e).batch_sampler))[0] for e in range(3)]
    assert firsts == [2*(2*e % n) for e in range(3)]
    codes = list(data.test_codes())
    assert [len(c) for c in codes] == data.test.lengths and all(c.dtype == np.int64 and c.shape[1] == 2 for c in codes)
    loaded = [(y, m) for b in data.test_loader() for y, m in zip(b["y"], b["mask"])]
    assert len(loaded) > len(codes) > 1
    windows = [deinterleave(y[None], "blocking", 2)[0, :int(m.sum())//2].numpy() for y, m in loaded]
    np.testing.assert_array_equal(np.concatenate(windows), np.concatenate(codes))


@pytest.mark.parametrize("strategy", ["temporal", "blocking-16"])
def test_only_the_beginning_of_test_files_is_evaluated(corpus, strategy):
    config = DataConfig(str(corpus), sample_len=64, batch_size=2, train_percentage=0.34, drop_last=False,
                        channels="stereo", interleaving_strategy=strategy)
    whole = AudioData(config)
    # two windows, the second one short
    some = AudioData(replace(config, test_s=100.4/whole.sample_rate))
    assert (some.train.lengths, some.val.lengths) == (whole.train.lengths, whole.val.lengths)
    assert some.test.lengths == [min(n, 100) for n in whole.test.lengths] and max(whole.test.lengths) > 100
    heads = [np.concatenate([whole.test.codes(i) for i in range(len(whole.test)) if whole.test.span(i)[0] == f])
             for f in whole.test.files]
    np.testing.assert_array_equal(np.concatenate(list(some.test_codes())), np.concatenate([h[:100] for h in heads]))
    assert sum(int(batch["mask"].sum()) for batch, _ in whole_files(some, window=64)) == 2*sum(some.test.lengths)
    assert "only the first" in some.remarks()[-1] and not any("only the first" in r for r in whole.remarks())
    assert AudioData(replace(config, test_s=1e6)).test.lengths == whole.test.lengths
    reason = r"sample_len=64 .* of the test files; .* has 50 samples at .* Hz in its first .* s \(test_s\)"
    with pytest.raises(ValueError, match=reason):
        AudioData(replace(config, test_s=50/whole.sample_rate, drop_last=True))


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


def test_fingerprint_follows_parts_and_stem(tmp_path):
    for part in ("train/Some One - Song", "train/Leaf - Summerghost", "test/Any One - Tune"):
        for i, stem in enumerate(("mixture", "drums")): write(tmp_path, f"{part}/{stem}.wav", seed=i)
    base = dict(path=str(tmp_path), sample_len=100)
    prints = [AudioData(DataConfig(**base, **o)).fingerprint()
              for o in (dict(dataset="musdb18hq"), dict(dataset="musdb18hq", stem="drums"), {}, dict(seed=1))]
    assert len(set(prints)) == 4


def fidelity(folder, **options):
    data = AudioData(DataConfig(str(folder), sample_len=100, **options))
    return data.reductions(), data.remarks()


def test_reductions_name_every_reason(tmp_path):
    def folder(name, suffix="wav", **options):
        for i in range(3): write(tmp_path/name, f"{i}.{suffix}", 1000, seed=i, **options)
        return tmp_path/name
    deep, mono = folder("deep", subtype="PCM_24"), folder("mono", channels=1)
    exact = dict(channels="stereo", drop_last=False)
    for channels in ("stereo", "left", "right"):
        assert fidelity(deep, bits=24, channels=channels, drop_last=False) == ([], [])
    assert fidelity(mono, bits=16, drop_last=False) == ([], [])
    assert fidelity(folder("flac", "flac"), bits=16, **exact) == ([], [])
    assert fidelity(folder("eight", subtype="PCM_U8"), bits=8, **exact) == ([], [])
    assert fidelity(deep, bits=16, **exact) == (["3 files of 24 bit coded at 16 bit"], [])
    assert fidelity(deep, bits=24) == (["3 files reduced to the mean of 2 channels"], [])
    assert fidelity(mono, bits=16, target_sr=8000, drop_last=False) == (["3 files resampled from 16000 to 8000 Hz"], [])
    assert fidelity(mono, bits=16, quantization="mu_law",
                   drop_last=False)[0] == ["mu-law: samples are companded before they are rounded"]
    assert fidelity(mono, bits=16, scaling="clip_minmax",
                   drop_last=False)[0][0].startswith("per-clip scaling: every window is stretched")
    assert fidelity(folder("float", subtype="FLOAT"), bits=24,
                   **exact) == (["3 files of floats (FLOAT) rounded to 24 bit"], [])
    assert fidelity(folder("double", subtype="DOUBLE"), bits=8,
                   **exact) == (["3 files of floats (DOUBLE) rounded to 8 bit"], [])
    for suffix, kind in (("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")):
        assert fidelity(folder(suffix, suffix), bits=8,
                       **exact)[0] == [f"3 files of lossy audio ({kind}): the codes are those of the decoded audio"]
    assert fidelity(folder("phone", subtype="ULAW"), bits=8, **exact)[0][0].startswith("3 files of lossy audio (ULAW)")
    write(tmp_path/"deep", "3.wav", rate=8000, subtype="PCM_32"), write(tmp_path/"deep", "4.mp3", 4000, channels=1)
    assert fidelity(tmp_path/"deep", bits=8, target_sr=8000, quantization="mu_law")[0] == [
        "4 files resampled from 16000 to 8000 Hz", "4 files reduced to the mean of 2 channels",
        "3 files of 24 bit coded at 8 bit", "1 file of 32 bit coded at 8 bit",
        "1 file of lossy audio (MPEG_LAYER_III): the codes are those of the decoded audio",
        "mu-law: samples are companded before they are rounded"]


def test_remarks(tmp_path):
    for i in range(3): write(tmp_path, f"{i}.wav", 1050, seed=i)
    constant = "3 files of 16 bit coded at 24 bit: the low 8 bits of every code are constant"
    assert fidelity(tmp_path, bits=24, channels="stereo", tokens="bytes", drop_last=False) == ([], [constant])
    data = AudioData(DataConfig(str(tmp_path), sample_len=100, bits=24, channels="stereo", tokens="bytes"))
    assert all((b["y"][2::3][b["mask"][2::3]] == 0).all() for b in data.test_loader())
    assert data.remarks()[1:] == ["drop_last leaves out 50 of 1,050 samples per channel of the test files"]
    assert fidelity(tmp_path, bits=24)[1][0] == "3 files of 16 bit coded at 24 bit"  # the mean has half steps
    for context in (0, 1, 60, 99):
        data = AudioData(DataConfig(str(tmp_path), sample_len=100, bits=16, channels="left", context_len=context))
        left = 1050 - sum(len(c) for c in data.test_codes())
        assert data.remarks() == ([f"drop_last leaves out {left} of 1,050 samples per channel of the test files"]
                                  if left else [])


def test_too_few_files(tmp_path):
    for name in ("a.wav", "b.wav"): write(tmp_path, name)
    with pytest.raises(ValueError, match="at least 3 files.*got 2 \\(a.wav, b.wav\\)"):
        AudioData(DataConfig(str(tmp_path), sample_len=100))
