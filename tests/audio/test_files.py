"""sashimi_wb.audio.folders, files and index: searching, exact reading, seeking, damaged files, and the cache."""
import gc
import hashlib
import itertools
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_audio import decode_stream, write, write_flac32, write_integers, write_stems

from sashimi_wb.audio import folders, index
from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.files import AudioInfo, audio_names, find_audio, probe, read_frames, read_span
from sashimi_wb.audio.folders import walk
from sashimi_wb.audio.index import index_audio
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.core.system import import_torchaudio
from sashimi_wb.tokens.quantization import Quantizer


@pytest.fixture
def corpus(tmp_path):
    files = {"b.wav": 4000, "a/x.flac": 3100, "a/y.wav": 2500, "c.ogg": 5000, "d.flac": 2048, "e.wav": 900}
    for i, (name, frames) in enumerate(files.items()): write(tmp_path, name, frames, seed=i)
    return tmp_path


# ---- files

def test_find_audio_sorts_and_searches_at_any_depth(corpus):
    for name in ("Z.WAV", "._hidden.wav"): write(corpus, name)
    (corpus/"readme.txt").write_text("x")
    found = [p.relative_to(corpus).as_posix() for p in find_audio(corpus)]
    assert found == ["Z.WAV", "a/x.flac", "a/y.wav", "b.wav", "c.ogg", "d.flac", "e.wav"]


def test_links_to_folders_are_followed_and_no_folder_is_searched_twice(tmp_path):
    root = tmp_path/"root"
    for name in ("root/a/x.wav", "root/b/y.wav", "far/away/z.wav", "beside.wav"): write(tmp_path, name)
    links = {"a/up": root, "above": tmp_path, "a/itself": root/"a"/"itself", "a/to_b": "../b", "b/to_a": "../a",
             "0_link": tmp_path/"far"}
    for link, target in links.items(): (root/link).symlink_to(target)
    want = ["0_link/away/z.wav", "a/x.wav", "b/y.wav"]
    assert audio_names(root) == want == [i.name for i in index_audio(root)]
    (tmp_path/"far"/"away"/"home").symlink_to(root)
    (tmp_path/"linked root").symlink_to(root)
    assert audio_names(root) == audio_names(tmp_path/"linked root") == want
    assert walk(root, depth=1)[0] == [] and walk(root, depth=1)[1] == ["0_link", "a", "above", "b"]


@pytest.mark.parametrize("name", (
    ".git", ".Trash-1000", "$RECYCLE.BIN", "$Recycle.Bin", "__MACOSX", "@eaDir", "System Volume Information",
    "lost+found", "#recycle"))
def test_folders_of_the_system_are_ignored(tmp_path, name):
    write(tmp_path, "a.wav")
    write(tmp_path, f"sub/{name}/deep/b.wav")
    write(tmp_path, f"{name}/c.wav")
    write(tmp_path, "#1 hits/@home/$money/d.wav")
    assert audio_names(tmp_path) == ["#1 hits/@home/$money/d.wav", "a.wav"]
    assert audio_names(tmp_path/name) == ["c.wav"]  # the start of a search is never ignored


@pytest.mark.parametrize("error", (PermissionError(13, "Permission denied"), OSError(5, "Input/output error")))
def test_a_folder_that_cannot_be_read_is_an_error(corpus, monkeypatch, error):
    plain = os.scandir
    def scandir(path):
        if str(path).rstrip("/").endswith("/a"): raise error
        return plain(path)
    monkeypatch.setattr(folders.os, "scandir", scandir)
    for call in (audio_names, index_audio, lambda p: index_audio(p, skip_bad=True)):
        with pytest.raises(type(error), match=f"cannot read the folder {corpus}/a.*{error.strerror}.*allow reading it"):
            call(corpus)


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes and sockets")
@pytest.mark.parametrize("what, reason", (
    ("pipe", "expected a regular file, got a pipe"), ("socket", "got a socket"), ("broken link", "missing"),
    ("link to itself", "cannot be opened"), ("link to a pipe", "got a pipe"), ("device", "got a device")))
def test_anything_but_a_regular_file_is_named_and_never_read(tmp_path, what, reason, caplog, monkeypatch):
    for name in ("a.wav", "b.wav"): write(tmp_path, name)
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    if "pipe" in what: os.mkfifo("pipe")
    if what == "pipe": os.rename("pipe", "x.wav")
    elif what == "socket": socket.socket(socket.AF_UNIX).bind("x.wav")
    else:
        targets = {"broken link": "nothing", "link to itself": "x.wav", "link to a pipe": "pipe", "device": "/dev/zero"}
        os.symlink(targets[what], "x.wav")
    with pytest.raises(ValueError, match=f"1 of 3 files.*x.wav.*{reason}.*skip_bad=True"): index_audio(tmp_path)
    with caplog.at_level(logging.WARNING, "sashimi_wb"):
        assert [i.name for i in index_audio(tmp_path, skip_bad=True)] == ["a.wav", "b.wav"]
    assert "left out: x.wav" in caplog.text


def test_a_folder_with_the_name_of_a_file_is_searched(tmp_path):
    for name in ("album.flac/1.flac", "2.wav"): write(tmp_path, name)
    (tmp_path/"empty.wav").mkdir()
    assert audio_names(tmp_path) == ["2.wav", "album.flac/1.flac"]
    with pytest.raises(ValueError, match="empty.wav.*got a folder"): index_audio(tmp_path, names=["2.wav", "empty.wav"])


def test_files_of_other_kinds_are_counted_in_one_line(tmp_path, caplog):
    write(tmp_path, "a.wav")
    for name in ("b.m4a", "c/d.m4a", "e.txt", "f", ".hidden.m4a"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text("x")
    (tmp_path/"disk").symlink_to(tmp_path/"nowhere")
    with caplog.at_level(logging.INFO, "sashimi_wb"):
        for _ in range(2): assert audio_names(tmp_path) == ["a.wav"]
    kinds = ".m4a 2, broken link 1, .txt 1, no suffix 1"
    assert [r.getMessage() for r in caplog.records] == [f"left out of {tmp_path}: 5 files of other kinds ({kinds})"]


ODD_NAMES = [b"caf\xe9.wav", b"new\nline.wav", b"\xf0\x9f\x98\x80.wav", b"\xff\xfe.wav", "\u00e9.wav".encode(),
             "e\u0301.wav".encode(), b"A.wav", b"a.wav", b"\xed\xb3\xa9.wav",
             b"n" * 251 + b".wav", b"tab\t'\"<b>%{x}.wav", b" .wav", b"\xc3\x28/in.wav"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux allows names of any bytes")
def test_names_of_any_bytes_are_supported_everywhere(tmp_path):
    """Order, index, cache, split, windows and fingerprint; the split does not depend on the encoding of the locale."""
    def put(i, name):
        path = tmp_path/os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        write(tmp_path, "plain.wav", 300, seed=i).rename(path)
    for i, name in enumerate(ODD_NAMES): put(i, name)
    found = [os.fsencode(n) for n in audio_names(tmp_path)]
    assert found == sorted(ODD_NAMES)
    data = AudioData(DataConfig(tmp_path, sample_len=50))
    assert [os.fsencode(f.name) for f in data.files] == found and len(data.fingerprint()) == 64
    assert len(data.train[0]["x"]) == 50
    code = ("import os, sys; from sashimi_wb.audio.config import DataConfig; "
            "from sashimi_wb.audio.loaders import AudioData; d = AudioData(DataConfig(sys.argv[1], sample_len=50));"
            "sys.stdout.write(d.fingerprint() + str([os.fsencode(f.name) for f in d.test.files]))")
    ascii_locale = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.run([sys.executable, "-c", code, tmp_path], env=ascii_locale, capture_output=True, text=True,
                             check=True)
    assert process.stdout == data.fingerprint() + str([os.fsencode(f.name) for f in data.test.files])
    odd = tmp_path.parent/os.fsdecode(b"folder \xe9")
    tmp_path.rename(odd)
    assert AudioData(DataConfig(str(odd), sample_len=50)).fingerprint() == data.fingerprint()


def test_folders_without_audio(tmp_path):
    (tmp_path/"none").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder .*missing.*give a folder"): index_audio(tmp_path/"missing")
    with pytest.raises(ValueError, match="is empty: put .wav"): index_audio(tmp_path/"none")
    (tmp_path/"none"/"a.mid").write_text("x")
    with pytest.raises(ValueError, match="no audio in .*expected .wav, .flac, .ogg, .mp3.*1 others \\(.mid\\)"):
        index_audio(tmp_path/"none")
    with pytest.raises(ValueError, match="give the folder it is in"): index_audio(tmp_path/"none"/"a.mid")
    with pytest.raises(FileNotFoundError): AudioData(DataConfig(str(tmp_path/"missing")))


@pytest.mark.parametrize("suffix", ("wav", "flac", "mp3"))
@pytest.mark.parametrize("share", (0.5, 0.97))
def test_truncated_files_are_named(tmp_path, suffix, share):
    for i in range(3): write(tmp_path, f"good{i}.wav")
    cut = write(tmp_path, f"cut.{suffix}", 30_000)
    cut.write_bytes(cut.read_bytes()[:int(cut.stat().st_size*share)])
    with pytest.raises(ValueError, match=f"1 of 4 files.*cut.{suffix}.*truncated.*skip_bad=True"):
        index_audio(tmp_path, decode_s=0)
    assert [i.name for i in index_audio(tmp_path, skip_bad=True, decode_s=0)] == ["good0.wav", "good1.wav", "good2.wav"]


@pytest.mark.parametrize("suffix", ("wav", "flac", "ogg", "mp3"))
@pytest.mark.parametrize("content", (b"", b"hello world "*40))
def test_files_that_are_not_audio(tmp_path, suffix, content, caplog):
    write(tmp_path, "good.wav")
    (tmp_path/f"bad.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.{suffix}"): index_audio(tmp_path)
    with caplog.at_level(logging.WARNING, "sashimi_wb"):
        assert [i.name for i in index_audio(tmp_path, skip_bad=True)] == ["good.wav"]
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


def test_damage_found_while_reading_is_named(tmp_path):
    hurt = write(tmp_path, "hurt.flac", 60_000)
    whole = hurt.read_bytes()
    hurt.write_bytes(whole[:len(whole)//2] + b"\0"*400 + whole[len(whole)//2 + 400:])
    info, = index_audio(tmp_path, decode_s=0)
    with pytest.raises(ValueError, match="hurt.flac: damaged"):
        for start in range(0, 60_000, 1000): read_span(info, start, 1000)


def test_streamed_wav_of_unknown_length_is_accepted(tmp_path):
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
    with pytest.raises(ValueError, match="sample 66001, channel 1 of hot.wav: expected a number in \\[-1, 1\\]"):
        index_audio(tmp_path)
    assert len(index_audio(tmp_path, skip_bad=True)) == 1
    info = index_audio(tmp_path, decode_s=0)[1]
    with pytest.raises(ValueError, match="sample 66001, channel 1 of hot.wav"): read_span(info, 66_000, 10)


@pytest.mark.parametrize("suffix", ("ogg", "mp3"))
def test_overshoot_of_lossy_decoders_is_clamped(tmp_path, suffix):
    t = np.arange(30_000)
    sf.write(tmp_path/f"loud.{suffix}", np.sign(np.sin(t/30))[:, None]*0.999, 16_000)
    wave = read_span(index_audio(tmp_path)[0])
    assert sf.read(tmp_path/f"loud.{suffix}")[0].max() > 1 and np.abs(wave).max() == 1


FORMATS = [(suffix, bits) for suffix in ("wav", "flac") for bits in (8, 16, 24, 32)]


def integers(bits, seed, frames, channels):
    """Random integers of the whole range, with both of its ends; the first half of the frames is a random walk."""
    rng, half = np.random.default_rng(seed), 2**(bits - 1)
    k = rng.integers(-half, half, (frames, channels))
    steps = rng.integers(-half//64, half//64 + 1, (frames//2, channels))
    k[:frames//2] = np.cumsum(steps, axis=0).clip(-half, half - 1)
    k[rng.integers(frames)] = -half
    k[rng.integers(frames)] = half - 1
    return k


def codes_of(wave, bits):
    return Quantizer("linear", bits).encode(torch.from_numpy(wave)[None])[0].numpy() - 2**(bits - 1)


@pytest.mark.parametrize("suffix,bits", FORMATS)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9_000), st.integers(1, 2), st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_integers_are_recovered_bit_for_bit(tmp_path, suffix, bits, seed, frames, channels, data):
    k = integers(bits, seed, frames, channels)
    info = probe(write_integers(tmp_path/f"x.{suffix}", k, bits), "x")
    assert (info.bits, info.frames, info.channels) == (bits, frames, channels)
    wave = read_frames(info, 0, frames)
    assert wave.dtype == (np.float32 if bits <= 16 else np.float64)
    assert np.array_equal(wave.astype(np.float64)*2.0**(bits - 1), k)
    start = data.draw(st.integers(0, frames - 1))
    n = data.draw(st.integers(1, frames - start))
    assert np.array_equal(read_frames(info, start, n), wave[start:start + n])
    for name in ["mono"] if channels == 1 else ["stereo", "left", "right"]:
        side = {"left": np.s_[:, :1], "right": np.s_[:, 1:]}.get(name, np.s_[:])
        assert np.array_equal(read_span(info, start, n, name), wave[start:start + n][side])
    if bits <= 24:
        assert np.array_equal(codes_of(wave, bits), k)
        decoded = Quantizer("linear", bits).decode(torch.from_numpy(k + 2**(bits - 1))).numpy()
        assert np.array_equal(codes_of(decoded, bits), k)


@pytest.mark.parametrize("suffix", ("wav", "flac"))
def test_every_value_of_16_bits(tmp_path, suffix):
    k = np.random.default_rng(0).permutation(np.arange(-2**15, 2**15))[:, None]
    wave = read_span(probe(write_integers(tmp_path/f"x.{suffix}", k, 16)))
    assert np.array_equal(codes_of(wave, 16), k)


@pytest.mark.parametrize("suffix", ("wav", "flac"))
def test_mean_of_24_bit_channels_is_exact(tmp_path, suffix):
    k = integers(24, 0, 3_000, 2)
    mono = read_span(probe(write_integers(tmp_path/f"x.{suffix}", k, 24)))
    assert np.array_equal(mono*2**24, k.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("subtype,dtype", (("FLOAT", np.float32), ("DOUBLE", np.float64)))
def test_floats_are_recovered_bit_for_bit(tmp_path, subtype, dtype):
    wave = np.random.default_rng(0).uniform(-1, 1, (5_000, 2)).astype(dtype)
    wave[:3] = [[1, -1], [0, -0.0], [np.finfo(dtype).tiny, -np.finfo(dtype).tiny]]
    sf.write(tmp_path/"x.wav", wave, 16_000, subtype=subtype)
    info = probe(tmp_path/"x.wav")
    back = read_frames(info, 0, 5_000)
    assert info.bits is None and back.dtype == dtype and np.array_equal(back, wave)
    assert np.array_equal(read_frames(info, 1_234, 99), wave[1_234:1_333])


@pytest.mark.parametrize("subtype", ("PCM_U8", "PCM_24", "PCM_32"))
def test_wav_files_written_by_libsndfile(tmp_path, subtype):
    bits = int(subtype[4:].lstrip("U"))
    k = integers(bits, 1, 2_000, 2)
    sf.write(tmp_path/"x.wav", (k << (32 - bits)).astype(np.int32), 16_000, subtype=subtype)
    assert np.array_equal(read_frames(probe(tmp_path/"x.wav"), 0, 2_000).astype(np.float64)*2.0**(bits - 1), k)


def test_deep_flac_near_its_end_and_damaged(tmp_path):
    k = integers(32, 3, 150_001, 2)
    path = write_flac32(tmp_path/"x.flac", k)
    info = probe(path)
    assert (info.subtype, info.frames) == ("PCM_32", 150_001)
    for start in (0, 1, 65_535, 131_072, 149_000, 150_000):
        n = min(1_000, 150_001 - start)
        assert np.array_equal(read_frames(info, start, n)*2.0**31, k[start:start + n])
    path.write_bytes(path.read_bytes()[:600_000])
    with pytest.raises(ValueError, match="x.flac: (truncated|damaged|not readable)"): probe(path)


# ---- AAC in mp4

@pytest.fixture(scope="module")
def stems(tmp_path_factory):
    t = np.arange(100_000)/44_100
    tone = np.stack([0.4*np.sin(2*np.pi*(300 + 2000*t)*t), 0.3*np.sin(2*np.pi*523*t)], axis=1)
    noise = 0.15*np.random.default_rng(0).standard_normal((100_000, 2)).clip(-3, 3)
    waves = [0.6*tone + 0.05*noise, tone, noise, np.roll(tone, 777, axis=0)[::-1], tone*np.sin(9*t)[:, None]]
    folder = tmp_path_factory.mktemp("stems")
    clear = write_stems(folder/"clear.stem.mp4", waves)
    noisy = write_stems(folder/"noisy.stem.mp4", waves, bit_rate=128_000, noise=True)
    return waves, clear, noisy


@pytest.mark.parametrize("stream", range(5))
def test_any_span_of_a_stem_is_a_slice_of_the_decoded_stream(stems, stream):
    waves, path, _ = stems
    info, whole = probe(path, "clear", stream), decode_stream(path, stream).clip(-1, 1)
    assert info == AudioInfo(str(path), "clear", len(whole), 44_100, 2, "AAC", stream) and info.bits is None
    assert 0 <= info.frames - 100_000 < 1024
    assert np.array_equal(read_frames(info, 0, info.frames), whole)
    rng = np.random.default_rng(stream)
    for start in (0, 1, 1_023, 1_024, 16_383, 16_384, info.frames - 1, *rng.integers(0, info.frames, 12)):
        n = int(min(rng.integers(1, 40_000), info.frames - start))
        assert np.array_equal(read_frames(info, int(start), n), whole[start:start + n])
    if stream in (0, 1, 4):  # the tonal stems, which AAC codes closely: a delay of one sample would exceed the bound
        error = whole[:100_000] - waves[stream]
        assert np.sqrt((error**2).mean()) < 0.05*np.sqrt((waves[stream]**2).mean())


@pytest.mark.parametrize("stream", (0, 2))
def test_noise_packets_give_every_window_the_same_samples(stems, stream):
    info = probe(stems[2], "noisy", stream)
    whole = read_frames(info, 0, info.frames)
    if stream == 2:
        sequential = decode_stream(stems[2], stream).clip(-1, 1)
        assert not np.array_equal(whole, sequential), "the file has no noise packet: the test is too easy"
    for start, n in ((0, 3_000), (5, 16_390), (30_000, 8_192), (49_152, 1), (70_001, 20_000), (0, info.frames)):
        assert np.array_equal(read_frames(info, start, n), whole[start:start + n])


def test_resampled_spans_of_a_stem(stems):
    info = probe(stems[1], "clear", 1)
    whole = read_span(info, target_sr=16_000)
    for start, n in ((0, 100), (7_777, 4_096), (len(whole) - 333, 333)):
        np.testing.assert_allclose(read_span(info, start, n, target_sr=16_000), whole[start:start + n], rtol=0,
                                   atol=1e-7)


def test_an_mp4_that_cannot_be_used(stems, tmp_path):
    waves, path, _ = stems
    with pytest.raises(ValueError, match="an audio stream number 5, it has 5.*0 mixture, 1 drums") as e:
        probe(path, "x.stem.mp4", 5)
    assert "x.stem.mp4" in str(e.value)
    (tmp_path/"cut.mp4").write_bytes(path.read_bytes()[:100_000])
    (tmp_path/"text.mp4").write_text("not a sound"*99)
    for name in ("cut", "text"):
        with pytest.raises(ValueError, match=f"{name}.mp4: not readable as audio"): probe(tmp_path/f"{name}.mp4")
    write_stems(tmp_path/"mono.mp4", [waves[1][:5_000, :1]], 48_000)
    assert probe(tmp_path/"mono.mp4").channels == 1
    assert read_span(probe(tmp_path/"mono.mp4"), 100, 700).shape == (700, 1)
    write_stems(tmp_path/"other.mp4", [waves[1][:5_000]], codec="libmp3lame")
    with pytest.raises(ValueError, match="other.mp4: expected AAC, got mp3"): probe(tmp_path/"other.mp4")
    write(tmp_path, "a.wav")
    with pytest.raises(ValueError, match="a.wav: expected stream=0, got 1"): probe(tmp_path/"a.wav", stream=1)


def test_a_replaced_stem_is_read_again(stems, tmp_path):
    waves = stems[0]
    path = write_stems(tmp_path/"x.stem.mp4", [waves[1][:20_000]])
    first = read_span(probe(path), 0, 9_000)
    os.replace(write_stems(tmp_path/"y.mp4", [waves[2][:20_000]]), path)
    assert not np.array_equal(read_span(probe(path), 0, 9_000), first)
    assert np.array_equal(read_span(probe(path), 0, 9_000, "stereo"), decode_stream(path)[:9_000].clip(-1, 1))


def test_workers_read_stems_as_the_main_process_does(stems, tmp_path):
    for i in range(3): write_stems(tmp_path/f"{i}.stem.mp4", [w[:30_000] for w in stems[0][i:i + 2]])
    def batches(n):
        data = AudioData(DataConfig(str(tmp_path), sample_len=3_000, batch_size=2, num_workers=n, drop_last=False))
        return [b["y"] for b in data.train_loader()]
    plain = batches(0)
    assert len(plain) >= 5 and all(torch.equal(a, b) for a, b in zip(plain, batches(2), strict=True))


# ---- channels and rates

def test_channels(corpus):
    info = index_audio(corpus)[0]
    stereo, left, right, mono = (read_span(info, 100, 700, c) for c in ("stereo", "left", "right", "mono"))
    assert stereo.shape == (700, 2) and left.shape == right.shape == mono.shape == (700, 1)
    assert np.array_equal(stereo, np.hstack([left, right])) and np.array_equal(mono, (left + right)/2)
    with pytest.raises(ValueError, match="expected a span within"): read_span(info, 3000, 200)
    with pytest.raises(ValueError, match="unknown channels 'side'; known"): read_span(info, 0, 2, "side")


@pytest.mark.parametrize("rate,target", (
    (44_100, 16_000), (16_000, 44_100), (48_000, 44_100), (22_050, 44_100), (16_000, 8_000), (8_000, 11_025)))
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
        np.testing.assert_allclose(read_span(info, int(start), n, "stereo", target), whole[start:start + n], rtol=0,
                                   atol=1e-7)


# ---- the index and its cache

@pytest.fixture
def calls(tmp_path_factory, monkeypatch):
    """An empty cache; the recorded calls of `probe` and `decode_all`, as (function, name of the file)."""
    monkeypatch.setenv("SASHIMI_WB_CACHE", str(tmp_path_factory.mktemp("cache")))
    recorded, probe, decode_all = [], index.probe, index.decode_all
    def recording_probe(path, *args):
        recorded.append(("probe", os.path.basename(path)))
        return probe(path, *args)
    def recording_decode(info):
        recorded.append(("decode_all", os.path.basename(info.path)))
        return decode_all(info)
    monkeypatch.setattr(index, "probe", recording_probe)
    monkeypatch.setattr(index, "decode_all", recording_decode)
    return recorded


def index_recorded(calls, *args, **options):
    """The index of a folder, and the names of the files that were probed and decoded for it."""
    time.sleep(0.03)  # files that have just changed are not cached
    calls.clear()
    infos = index_audio(*args, **options)
    probed, decoded = (sorted({name for f, name in calls if f == kind}) for kind in ("probe", "decode_all"))
    return infos, probed, decoded


def test_an_unchanged_folder_is_not_probed_again(corpus, calls):
    first, probed, decoded = index_recorded(calls, corpus)
    assert probed == ["b.wav", "c.ogg", "d.flac", "e.wav", "x.flac", "y.wav"]
    assert decoded == ["c.ogg", "d.flac", "x.flac"]
    index._open_cache.cache_clear()  # as in a new process
    assert index_recorded(calls, corpus) == (first, [], [])
    assert index_recorded(calls, corpus/"a")[1:] == ([], [])
    (corpus.parent/"link").symlink_to(corpus)
    linked = index_recorded(calls, corpus.parent/"link")
    assert linked[1:] == ([], []) and linked[0][0].path == str(corpus.parent/"link"/"a"/"x.flac")
    (corpus/"zz.wav").symlink_to(corpus/"b.wav")
    assert index_recorded(calls, corpus)[1:] == ([], []) and len(index_audio(corpus)) == 7


def test_decoding_is_cached_apart_from_probing(corpus, calls):
    assert index_recorded(calls, corpus, decode_s=0)[2] == []
    assert index_recorded(calls, corpus)[1:] == ([], ["c.ogg", "d.flac", "x.flac"])
    assert index_recorded(calls, corpus)[1:] == ([], [])


def test_changes_are_noticed(corpus, calls):
    index_recorded(calls, corpus)
    write(corpus, "new.wav")
    write(corpus, "b.wav", 4001)
    os.remove(corpus/"e.wav")
    os.rename(corpus/"d.flac", corpus/"dd.flac")
    infos, probed, decoded = index_recorded(calls, corpus)
    assert (probed, decoded) == (["b.wav", "dd.flac", "new.wav"], ["dd.flac"])
    assert [i.name for i in infos] == ["a/x.flac", "a/y.wav", "b.wav", "c.ogg", "dd.flac", "new.wav"]
    assert infos[2].frames == 4001


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path, calls):
    for i in range(3): write(tmp_path, f"{i}.wav", 4000, 2)
    before, first = os.stat(tmp_path/"1.wav"), index_recorded(calls, tmp_path)[0]
    hashes = [index.content_hash(i) for i in first]
    write(tmp_path, "1.wav", 8000, 1, 8_000)
    os.utime(tmp_path/"1.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(tmp_path/"1.wav")
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    infos, probed, _ = index_recorded(calls, tmp_path)
    assert probed == ["1.wav"] and infos[1].channels == 1 and index.content_hash(infos[1]) != hashes[1]
    (tmp_path/"copy").write_bytes((tmp_path/"0.wav").read_bytes())
    shutil.copystat(tmp_path/"2.wav", tmp_path/"copy")
    os.replace(tmp_path/"copy", tmp_path/"2.wav")  # a different inode
    assert index_recorded(calls, tmp_path)[1] == ["2.wav"] and index.content_hash(index_audio(tmp_path)[2]) == hashes[0]


def test_a_file_that_has_just_changed_is_not_cached(tmp_path, calls, monkeypatch):
    write(tmp_path, "a.wav")
    now = os.stat(tmp_path/"a.wav").st_ctime_ns
    monkeypatch.setattr(index.time, "time_ns", lambda: now + 1_000_000)
    index_recorded(calls, tmp_path)
    assert index_recorded(calls, tmp_path)[1] == ["a.wav"]
    monkeypatch.setattr(index.time, "time_ns", lambda: now + 30_000_000)
    index_recorded(calls, tmp_path)
    assert index_recorded(calls, tmp_path)[1] == []


def test_an_interrupted_index_continues(tmp_path, calls, monkeypatch):
    for i in range(20): write(tmp_path, f"{i:02}.wav", 100)
    time.sleep(0.03)
    plain = index.probe
    def stop(path, *rest):
        if str(path).endswith("12.wav"): raise KeyboardInterrupt
        return plain(path, *rest)
    with monkeypatch.context() as m:
        m.setattr(index, "probe", stop)
        with pytest.raises(KeyboardInterrupt): index_audio(tmp_path)
    assert index_recorded(calls, tmp_path)[1] == [f"{i:02}.wav" for i in range(12, 20)]


@pytest.mark.slow
def test_a_killed_index_continues(tmp_path, calls):
    for i in range(30): write(tmp_path, f"{i:02}.wav", 100)
    time.sleep(0.03)
    code = f"""
import os
import sashimi_wb.audio.index as index
plain, index._WRITE_EVERY_S = index.probe, 0
def stop(path, *rest):
    if str(path).endswith("21.wav"): os.kill(os.getpid(), 9)
    return plain(path, *rest)
index.probe = stop
index.index_audio({str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert index_recorded(calls, tmp_path)[1] == [f"{i:02}.wav" for i in range(21, 30)]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ("text", "empty", "middle", "half", "version", "journal"))
def test_a_damaged_cache_is_discarded(corpus, calls, damage, caplog):
    first = index_recorded(calls, corpus)[0]
    path = index.cache_path()
    index._open_cache.cache_clear()
    gc.collect()
    whole = path.read_bytes()
    if damage == "text": path.write_text("no database"*400)
    elif damage == "empty": path.write_bytes(b"")
    elif damage == "middle": path.write_bytes(whole[:100] + b"\x07"*3_000 + whole[3_100:])
    elif damage == "half": path.write_bytes(whole[:len(whole)//2])
    elif damage == "version":
        with sqlite3.connect(path) as db: db.execute("pragma user_version = 99")
    else: path.write_text("no database"), Path(f"{path}-journal").write_bytes(whole)
    with caplog.at_level(logging.WARNING, "sashimi_wb"): infos, probed, _ = index_recorded(calls, corpus)
    assert infos == first and len(probed) == 6
    assert ("discarded" in caplog.text) == (damage != "empty")
    assert index_recorded(calls, corpus)[1] == []


def test_a_flipped_bit_of_the_cache_is_noticed(tmp_path, calls):
    """Bits throughout two rows, one at a time: the file is probed again, and the index never changes."""
    for i in range(2): write(tmp_path, f"{i}.wav", 100 + i)
    first = index_recorded(calls, tmp_path)[0]
    hashes = [index.content_hash(i) for i in first]
    db = sqlite3.connect(index.cache_path(), isolation_level=None)
    rows = db.execute("select path, entry from files order by path").fetchall()
    for k in range(0, 8*len(rows[0][1]), 31):
        path, entry = rows[k % 2]
        hurt = bytearray(entry)
        hurt[k//8] ^= 1 << k % 8
        db.execute("update files set entry = ? where path = ?", (bytes(hurt), path))
        calls.clear()
        assert index_audio(tmp_path) == first and calls == [("probe", f"{k % 2}.wav")]
        assert [index.content_hash(i) for i in first] == hashes


def test_rows_of_another_file_or_type_are_invalid(tmp_path, calls):
    for i in range(2): write(tmp_path, f"{i}.wav", 100 + i)
    first = index_recorded(calls, tmp_path)[0]
    with sqlite3.connect(index.cache_path()) as db:
        (a, mine), (b, other) = db.execute("select path, entry from files order by path").fetchall()
    for entry in (other, b"", b"x", mine[:16], mine[:-1], mine[:16] + b"[]", mine[:16] + b"[1]", mine[:16] + b"7",
                  b"["*90_000, "text", 3, 2.5, None):
        with sqlite3.connect(index.cache_path()) as db:
            db.execute("update files set entry = ? where path = ?", (entry, a))
        calls.clear()
        assert index_audio(tmp_path) == first and calls == [("probe", "0.wav")]


@pytest.mark.parametrize("error", (
    OverflowError("too large"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), sqlite3.InterfaceError("bad type"),
    MemoryError(), sqlite3.OperationalError("database is locked"), sqlite3.OperationalError("database or disk is full"),
    OSError(30, "Read-only file system")))
@pytest.mark.parametrize("when", ("open", "read", "write"))
def test_an_error_of_the_cache_costs_only_time(tmp_path, calls, monkeypatch, error, when):
    for i in range(2): write(tmp_path, f"{i}.wav", 100 + i)
    first = index_recorded(calls, tmp_path)[0]
    index._open_cache.cache_clear()
    statements = []
    class Broken:
        def __init__(self, db): self.db = db
        def execute(self, sql, *args):
            statements.append(sql)
            step = {"pragma": "open", "begin": "write"}.get(sql.split()[0], "read")
            if step == when: raise error
            return self.db.execute(sql, *args)
        def __getattr__(self, name): return getattr(self.db, name)
        def __enter__(self): return self.db.__enter__()
        def __exit__(self, *e): return self.db.__exit__(*e)
    plain = sqlite3.connect
    monkeypatch.setattr(index.sqlite3, "connect", lambda *a, **k: Broken(plain(*a, **k)))
    write(tmp_path, "2.wav", 102)
    time.sleep(0.03)
    for _ in range(2):
        infos = index_audio(tmp_path)
        assert infos[:2] == first and infos[2].frames == 102 and len({index.content_hash(i) for i in infos}) == 3
    assert statements


def test_a_cache_that_is_not_a_file(corpus, calls, monkeypatch, tmp_path_factory):
    for make in (Path.mkdir, os.mkfifo):
        place = tmp_path_factory.mktemp("place")
        make(place/"index.sqlite3")
        monkeypatch.setenv("SASHIMI_WB_CACHE", str(place))
        assert len(index_recorded(calls, corpus)[0]) == 6


def test_a_cache_that_another_process_locks(corpus, calls, monkeypatch):
    first = index_recorded(calls, corpus)[0]
    index._open_cache.cache_clear()
    plain = sqlite3.connect
    monkeypatch.setattr(index.sqlite3, "connect", lambda *a, **k: plain(*a, **k | {"timeout": 0.05}))
    with plain(index.cache_path(), isolation_level=None) as db:
        db.execute("begin exclusive")
        assert index_recorded(calls, corpus)[0] == first
        db.execute("rollback")
    index._open_cache.cache_clear()
    assert index_recorded(calls, corpus)[1] == []


def test_a_cache_that_is_damaged_while_in_use(corpus, calls):
    first = index_recorded(calls, corpus)[0]
    path = index.cache_path()
    path.write_bytes(b"\x07"*path.stat().st_size)  # the connection is open
    assert index_recorded(calls, corpus)[0] == first
    index._open_cache.cache_clear()
    assert index_recorded(calls, corpus)[0] == first and index_recorded(calls, corpus)[1] == []


def test_a_cache_in_a_place_that_cannot_be_written(corpus, calls, monkeypatch, caplog):
    monkeypatch.setenv("SASHIMI_WB_CACHE", str(corpus/"b.wav"/"folder"))
    with caplog.at_level(logging.INFO, "sashimi_wb"): first = index_recorded(calls, corpus)
    assert "no cache of the index" in caplog.text and len(first[0]) == 6
    assert index_recorded(calls, corpus) == first
    assert len(index.content_hash(first[0][0])) == 64


def test_a_read_only_cache(corpus, calls):
    first = index_recorded(calls, corpus)[0]
    index._open_cache.cache_clear()
    cache = index._cache()
    cache.db.execute("pragma query_only = 1")  # permissions do not limit tests that run as root
    assert index_recorded(calls, corpus) == (first, [], [])
    write(corpus, "new.wav")
    assert len(index_recorded(calls, corpus)[0]) == 7 and len(index_recorded(calls, corpus)[0]) == 7


def test_path_of_the_cache(monkeypatch):
    monkeypatch.setenv("SASHIMI_WB_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    monkeypatch.setenv("HOME", "/home/x")
    assert index.cache_path() == Path("/own/index.sqlite3")
    monkeypatch.delenv("SASHIMI_WB_CACHE")
    assert index.cache_path() == Path("/shared/sashimi_wb/index.sqlite3")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert index.cache_path() == Path("/home/x/.cache/sashimi_wb/index.sqlite3")


def test_content_is_hashed_once(corpus, calls, monkeypatch):
    infos = index_recorded(calls, corpus)[0]
    want = [hashlib.sha256(Path(i.path).read_bytes()).hexdigest() for i in infos]
    assert [index.content_hash(i) for i in infos] == want
    monkeypatch.setattr(index.hashlib, "file_digest", None)  # hashing a file again would fail
    index._open_cache.cache_clear()
    assert [index.content_hash(i) for i in infos] == want


@pytest.mark.slow
def test_several_processes_at_once(tmp_path, calls):
    for i in range(40): write(tmp_path, f"{i:02}.flac", 200)
    code = f"""
import sashimi_wb.audio.index as index
index._WRITE_EVERY_S = 0
print(sum(len(index.content_hash(info)) for info in index.index_audio({str(tmp_path)!r})))
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    assert [p.communicate()[0].strip() for p in both] == [str(40*64)]*2
    assert index_recorded(calls, tmp_path)[1:] == ([], [])


def test_lists_of_names_streams_and_unusual_names(corpus, calls, stems):
    names = ["e.wav", "a/x.flac"]
    assert [i.name for i in index_audio(corpus, names=names)] == names
    with pytest.raises(ValueError, match="1 of 3 files.*gone.wav: missing.*skip_bad=True"):
        index_audio(corpus, names=[*names, "gone.wav"])
    assert [i.name for i in index_audio(corpus, names=[*names, "gone.wav"], skip_bad=True)] == names
    folder = stems[1].parent
    for stream in (0, 3, 0, 3):
        infos = index_audio(folder, names=["clear.stem.mp4"], stream=stream)
        assert [(i.subtype, i.stream) for i in infos] == [("AAC", stream)]
        assert np.array_equal(read_frames(infos[0], 0, 999), decode_stream(stems[1], stream)[:999].clip(-1, 1))
    assert [i.name for i in index_audio(folder)] == ["clear.stem.mp4", "noisy.stem.mp4"]
    odd = os.fsdecode(b"na\xefve \xff'%?.wav")
    os.rename(corpus/"b.wav", os.path.join(corpus, odd))
    assert odd in [i.name for i in index_recorded(calls, corpus)[0]] and index_recorded(calls, corpus)[1] == []


def test_a_bad_file_is_probed_until_it_is_repaired(corpus, calls):
    (corpus/"b.wav").write_bytes(b"RIFF....")
    assert len(index_recorded(calls, corpus, skip_bad=True)[0]) == 5
    assert index_recorded(calls, corpus, skip_bad=True)[1] == ["b.wav"]
    write(corpus, "b.wav")
    assert len(index_recorded(calls, corpus)[0]) == 6
