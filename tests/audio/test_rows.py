"""Rows of the predictor on disk: slices of the whole file's rows, for every layout, token and padding; damage, room."""
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from made_audio import write

from sashimi_wb.audio import rows as rows_page
from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.index import index_audio
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.audio.rows import first_row, in_token_order
from sashimi_wb.audio.windows import WindowDataset
from sashimi_wb.core.system import from_json, to_json
from sashimi_wb.prediction.adaptive import PACKED, ROW, AdaptivePredictor
from sashimi_wb.prediction.bins import byte_intervals
from sashimi_wb.training.evaluation import whole_files


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SASHIMI_WB_CACHE", str(tmp_path/"cache"))
    return tmp_path/"cache"/"rows"


@pytest.fixture
def corpus(tmp_path, own_cache):
    for i, (name, frames) in enumerate({"a.wav": 1500, "b.flac": 1234, "c.wav": 900, "d.wav": 1100}.items()):
        write(tmp_path/"audio", name, frames, seed=i)
    return tmp_path/"audio"


def predicted(corpus, **options):
    return DataConfig(str(corpus), **{"predictor": "adaptive", "sample_len": 256, "drop_last": False, **options})


def by_sample(config, codes):
    "Rows (t c row) of a whole file, from the predictor itself."
    block = config.block
    rows = AdaptivePredictor(config.quantizer, config.n_channels, block).rows(codes)
    order = [t*config.n_channels + k for start in range(0, len(codes), block) for k in range(config.n_channels)
             for t in range(start, min(start + block, len(codes)))]
    found = np.empty_like(rows)
    found[order] = rows
    return found.reshape(*codes.shape, ROW)


LAYOUTS = [dict(channels="left"), dict(bits=12, quantization="mu_law", input="raw", target_sr=8000),
           dict(bits=16, channels="stereo", tokens="bytes", pad_len=7, context_len=100),
           dict(channels="stereo", interleaving_strategy="blocking-64", pad_len=64, context_len=128),
           dict(channels="stereo", interleaving_strategy="blocking", pad_len=50), dict(bits=24, tokens="bytes")]


@pytest.mark.parametrize("options", LAYOUTS)
def test_windows_are_slices_of_the_file(corpus, options):
    config = predicted(corpus, **options)
    windows, plain = WindowDataset(index_audio(corpus), config), WindowDataset(index_audio(corpus)[:1], config)
    files = [np.concatenate([windows.codes(i) for i in range(a, b)]) for a, b in zip([0, *windows.ends], windows.ends)]
    whole = [by_sample(config, codes) for codes in files]
    numbers = {f.name: k for k, f in enumerate(windows.files)}
    assert plain[0]["rows"].shape == windows[0]["rows"].shape
    for i in range(len(windows)):
        item, (info, start, n) = windows[i], windows.span(i)
        assert item["rows"].dtype == torch.float64 and len(item["rows"]) == len(item["y"])
        padded = np.tile(first_row(), (config.pad_len + config.sample_len, config.n_channels, 1))
        padded[config.pad_len:config.pad_len + n] = whole[numbers[info.name]][start:start + n]
        expected = in_token_order(padded, config.interleaving_strategy)
        expected = expected.repeat_interleave(config.tokens_per_sample, 1)[0]
        assert torch.equal(item["rows"][:, :ROW], expected)
        if config.tokens == "bytes":
            assert torch.equal(item["rows"][:, ROW:], byte_intervals(item["y"][None], config.bits)[0])


@pytest.mark.parametrize("options", [o for o in LAYOUTS if o.get("channels") == "stereo"])
def test_whole_files_have_the_rows_of_the_stream(corpus, options):
    data = AudioData(predicted(corpus, train_percentage=.5, **options))
    codes = next(data.test_codes())
    expected = AdaptivePredictor(data.quantizer, 2, data.config.block).rows(codes)
    found = torch.cat([batch["rows"][0] for batch, _ in whole_files(data, window=300)])
    assert np.array_equal(found[::data.config.tokens_per_sample, :ROW].numpy(), expected)


def test_computed_once_and_in_pieces(corpus, own_cache, monkeypatch):
    config = predicted(corpus, channels="stereo", bits=16)
    windows = WindowDataset(index_audio(corpus), config)
    windows.prepare()
    files = {p: p.stat().st_mtime_ns for p in own_cache.rglob("*.rows")}
    assert len(files) == 4 and not [p for p in own_cache.rglob("*") if p.is_file() and p not in files]
    size = sum(p.stat().st_size for p in files)
    assert size == sum(32 + 2*n*PACKED.itemsize + 4*-(-n//1024) for n in windows.lengths)
    before = windows[3]["rows"]
    shutil.rmtree(own_cache)
    monkeypatch.setattr(rows_page, "PIECE", 100)            # divides the checked stretches of 1,024 samples
    again = WindowDataset(index_audio(corpus), config)
    again.prepare()
    assert torch.equal(again[3]["rows"], before)
    made = sorted(p.name for p in own_cache.rglob("*.rows"))
    assert made == sorted(p.name for p in files)
    monkeypatch.setattr(rows_page.RowCache, "_make", None)  # nothing is computed any more
    WindowDataset(index_audio(corpus), config).prepare()
    assert torch.equal(WindowDataset(index_audio(corpus), config)[3]["rows"], before)


def test_an_epoch_prepares_the_files_that_it_reads(corpus, own_cache):
    config = predicted(corpus, train_percentage=.9, batch_size=1, train_chunk_size=1)
    data, done = AudioData(config), set()
    for epoch in range(3):
        loader = data.train_loader(epoch)
        done |= {data.train.span(i)[0].name for batch in loader.batch_sampler for i in batch}
        assert len(list(own_cache.rglob("*.rows"))) == len(done)
        for item in loader: assert item["rows"].shape[1] == item["y"].shape[1]
        assert len(list(own_cache.rglob("*.rows"))) == len(done)
    data.train.prepare()
    assert len(list(own_cache.rglob("*.rows"))) == len(data.train.files)


def test_every_choice_has_its_own_rows(corpus, own_cache):
    files = index_audio(corpus)
    stereo = dict(channels="stereo")
    for n, options in enumerate([{}, dict(bits=16), dict(quantization="mu_law"), dict(target_sr=8000),
                                 dict(channels="left"), stereo, dict(**stereo, interleaving_strategy="blocking-32")]):
        WindowDataset(files[:1], predicted(corpus, **options)).prepare()
        assert len(list(own_cache.rglob("*.rows"))) == n + 1
    for same in (dict(input="raw"), dict(pad_len=3), dict(sample_len=100), dict(bits=16, tokens="bytes")):
        WindowDataset(files[:1], predicted(corpus, **same)).prepare()
    WindowDataset(files[:1], predicted(corpus), seconds=.05).prepare()
    assert len(list(own_cache.rglob("*.rows"))) == n + 2
    write(corpus, "a.wav", 1500, seed=9)
    WindowDataset(index_audio(corpus)[:1], predicted(corpus)).prepare()
    assert len(list(own_cache.rglob("*.rows"))) == n + 3


def test_damage_is_mended(corpus, own_cache, caplog):
    windows = WindowDataset(index_audio(corpus)[:1], predicted(corpus))
    windows.prepare()
    path, = own_cache.rglob("*.rows")
    intact, expected = path.read_bytes(), windows[2]["rows"]
    for damaged in (intact[:30_000] + bytes([intact[30_000] ^ 1]) + intact[30_001:], intact[:-1], intact + b"0", b"",
                    bytes(32) + intact[32:], intact[:-1] + b"\0"):
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING): found = [windows[i]["rows"] for i in range(len(windows))]
        assert torch.equal(found[2], expected) and path.read_bytes() == intact
    assert "computed again" in caplog.text


def test_no_room(corpus, own_cache, monkeypatch):
    windows = WindowDataset(index_audio(corpus), predicted(corpus))
    usage = shutil.disk_usage(corpus)._replace(free=10_000)
    monkeypatch.setattr(rows_page.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="rows of 4 files take .* GB in .*rows, where .* SASHIMI_WB_CACHE"):
        windows.prepare()
    assert not list(own_cache.rglob("*.rows"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_cache_that_cannot_be_written(corpus, own_cache):
    own_cache.parent.mkdir()
    own_cache.parent.chmod(0o500)
    with pytest.raises(OSError, match="cannot write"): WindowDataset(index_audio(corpus), predicted(corpus)).prepare()


def test_an_error_stops_all(corpus, own_cache, monkeypatch):
    windows = WindowDataset(index_audio(corpus), predicted(corpus))
    def broken(*args): raise ValueError("c.wav: damaged")
    monkeypatch.setattr(rows_page, "read_span", broken)
    with pytest.raises(ValueError, match="c.wav: damaged"): windows.prepare()
    assert not [p for p in own_cache.rglob("*") if p.is_file()]


def test_workers_read_the_same(corpus):
    batches = [[b["rows"] for b in AudioData(predicted(corpus, batch_size=3, train_percentage=.5,
                                                       num_workers=n)).train_loader(epoch=1)] for n in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_histogram_needs_no_rows(corpus, own_cache):
    WindowDataset(index_audio(corpus), predicted(corpus)).histogram(256)
    assert not own_cache.exists()


@pytest.mark.parametrize("wrong", [
    dict(scaling="clip_minmax"), dict(predictor="linear"), dict(interleaving_strategy="blocking-100"),
    dict(interleaving_strategy="blocking-64", context_len=32), dict(interleaving_strategy="blocking-64", pad_len=32),
    dict(interleaving_strategy="blocking", context_len=128)])
def test_bad_configurations(corpus, wrong):
    with pytest.raises(ValueError): predicted(corpus, channels="stereo", **wrong)


def test_mono_takes_any_layout(corpus):
    config = predicted(corpus, interleaving_strategy="blocking-100", context_len=7, pad_len=3)
    assert config.block == 1 and from_json(DataConfig, to_json(config)) == config
    assert from_json(DataConfig, {k: v for k, v in to_json(config).items() if k != "predictor"}).predictor == "none"
