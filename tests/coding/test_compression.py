"""Files to smaller files and back: every container, every fault, and frozen files that must be read for ever."""
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from fuzz_coded import coded_files, outcome, repaired, wav

from sashimi_wb.cli import main
from sashimi_wb.coding import compression
from sashimi_wb.coding.file_format import CodedFileError, Segment, read_header, records
from sashimi_wb.coding.segments import METHODS, PredictorCoder, SampleCoder
from sashimi_wb.compression import compress, decompress
from sashimi_wb.core.system import bundled

FROZEN = Path(__file__).parent / "frozen"


def walk(n: int, c: int, bits: int, seed: int = 0) -> np.ndarray:
    """Integers (n, c) of so many bits that wander, from integers only."""
    steps = np.random.Generator(np.random.PCG64(seed)).integers(-2**(bits - 4), 2**(bits - 4) + 1, (n, c))
    return np.cumsum(steps, 0) % 2**bits - 2**(bits - 1)


def little(x: np.ndarray, width: int) -> bytes:
    """Integers as bytes, lowest first; 8 bits unsigned, as in WAV files."""
    x = x + 128 if width == 1 else x
    return np.ascontiguousarray(x, "<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


def music(n: int = 3000) -> np.ndarray:
    """Some music (n, 2) of 16 bits."""
    path = bundled("data/music/beethoven_ode_to_joy.flac")
    return sf.read(path, frames=n, start=60_000, dtype="int16", always_2d=True)[0]


def written(samples, format="WAV", subtype="PCM_16", rate=44_100, endian="FILE") -> bytes:
    """The bytes of a file by libsndfile."""
    f = io.BytesIO()
    sf.write(f, samples, rate, format=format, subtype=subtype, endian=endian)
    return f.getvalue()


def coded(data: bytes, **options) -> bytes:
    """The coded form of a file."""
    f = io.BytesIO()
    compress(io.BytesIO(data), f, **{"workers": 1, **options})
    return f.getvalue()


def decoded(data: bytes, **options) -> bytes:
    """What comes back."""
    f = io.BytesIO()
    decompress(io.BytesIO(data), f, workers=1, **options)
    return f.getvalue()


def methods(data: bytes) -> list[int]:
    """The methods of all segments of a coded file."""
    f = io.BytesIO(data)
    return [r.method for r in records(f, read_header(f)) if isinstance(r, Segment)]


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(SampleCoder, "segment_samples", 2000)


def caf(samples: bytes, length: int | None = None) -> bytes:
    """A CAF file of 16 bits and two channels, lowest byte first."""
    desc = struct.pack(">d4sIIIII", 44_100, b"lpcm", 2, 4, 1, 2, 16)
    n = 4 + len(samples) if length is None else length
    return (b"caff\0\1\0\0" + b"free" + struct.pack(">q", 5) + bytes(5) + b"desc" + struct.pack(">q", 32) + desc
            + b"data" + struct.pack(">q", n) + bytes(4) + samples)


def au(samples: bytes, length: int | None = None) -> bytes:
    """An AU file of 16 bits and two channels, highest byte first, whose header has a comment of seven bytes."""
    n = len(samples) if length is None else length
    head = b".snd" + struct.pack(">5I", 31, n, 3, 44_100, 2) + b"comment"
    return head + np.frombuffer(samples, "<i2").astype(">i2").tobytes()


def rf64(samples: bytes, length: int) -> bytes:
    """A WAV file of 16 bits and two channels whose length is in the chunk ds64, with a chunk behind the samples."""
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, 0, length, 0, 0)
    data = wav(samples, 2, 2, ds64, LIST)
    return b"RF64" + data[4:].replace(b"data" + struct.pack("<I", len(samples)), b"data\xff\xff\xff\xff")


LIST = b"LIST\7\0\0\0abcdefg\0"
x16, x24 = little(walk(500, 2, 12), 2), little(walk(400, 3, 20), 3)
FILES = {
    **{f"wav, {8*w} bit, {c} channels": wav(little(walk(300, c, min(8*w, 24)) << (8 if w == 4 else 0), w), w, c)
       for w in (1, 2, 3, 4) for c in (1, 2, 6)},
    "64 channels": wav(little(walk(20, 64, 12), 2), 2, 64), "65 channels": wav(bytes(1300), 2, 65),
    "chunks around": wav(x16, 2, 2, LIST, LIST*3), "an odd chunk without padding": wav(x16, 2, 2, LIST[:-1], b"x"),
    "odd samples": wav(x16[:-1], 2, 2), "cut": wav(x16, 2, 2)[:-333], "cut in the header": wav(x16, 2, 2)[:30],
    "length 0": wav(x16, 2, 2)[:40] + bytes(4) + x16, "length unknown": wav(x16, 2, 2)[:40] + b"\xff"*4 + x16,
    "length too short": wav(x16, 2, 2)[:40] + b"\x10\0\0\0" + x16, "no samples": wav(b"", 2, 2), "empty": b"",
    "12 bits in 16": wav(little(walk(500, 2, 12) << 4, 2), 2, 2),
    "24 bits in 32": wav(little(walk(500, 1, 24) << 8, 4), 4, 1), "silence": wav(bytes(9000), 3, 1),
    "32 bits": wav(little(walk(500, 1, 24)*255, 4), 4, 1), "noise": wav(np.random.default_rng(0).bytes(9000), 2, 2),
    "text": b"RIFF, but not really a wave file", "a byte": b"R",
    "float": written(music(500)/2**15, subtype="FLOAT"), "mu-law": written(music(500), subtype="ULAW"),
    "aifc float": written(music(500)/2**15, "AIFF", "FLOAT"), "ogg": written(music(500), "OGG", "VORBIS"),
    "damaged flac": written(music(500), "FLAC")[:-50] + bytes(50), "cut flac": written(music(500), "FLAC")[:-50],
    **{f"{f} {s} {e}": written(music(500), f, s, endian=e)
       for f, s, e in (("WAVEX", "PCM_24", "FILE"), ("RF64", "PCM_16", "FILE"), ("WAV", "PCM_16", "BIG"),
                       ("AIFF", "PCM_S8", "FILE"), ("AIFF", "PCM_16", "FILE"), ("AIFF", "PCM_16", "LITTLE"),
                       ("AIFF", "PCM_24", "FILE"), ("AIFF", "PCM_32", "FILE"), ("W64", "PCM_U8", "FILE"),
                       ("W64", "PCM_16", "FILE"), ("W64", "PCM_24", "FILE"), ("W64", "PCM_32", "FILE"),
                       ("CAF", "PCM_S8", "FILE"), ("CAF", "PCM_16", "FILE"), ("CAF", "PCM_24", "LITTLE"),
                       ("AU", "PCM_S8", "FILE"), ("AU", "PCM_16", "FILE"), ("AU", "PCM_24", "FILE"))},
    **{f"{f} float": written(music(500)/2**15, f, "FLOAT") for f in ("W64", "CAF", "AU")},
    "W64 cut": written(music(500), "W64")[:-333], "W64 and more": written(music(500), "W64") + b"more",
    "CAF of unknown length": caf(x16, -1), "CAF with a chunk behind": caf(x16) + b"info\0\0\0\0\0\0\0\3abc",
    "CAF cut in its header": caf(x16)[:50], "AU of unknown length": au(x16, 2**32 - 1), "AU cut": au(x16)[:20],
    "RF64 of given length": rf64(x16, len(x16)), "RF64 of no length": rf64(x16, 0),
    "extensible, one byte too short": wav(x16, 2, 2).replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\xfe\xff"),
}
CODED_BY_PREDICTOR = [n for n in FILES if n.startswith("wav, ") or n in (
    "chunks around", "odd samples", "cut", "length 0", "length unknown", "12 bits in 16", "24 bits in 32", "silence",
    "WAVEX PCM_24 FILE", "RF64 PCM_16 FILE", "WAV PCM_16 BIG", "AIFF PCM_16 FILE", "AIFF PCM_16 LITTLE",
    "AIFF PCM_24 FILE", "AIFF PCM_S8 FILE", "32 bits", "W64 cut", "W64 and more", "CAF of unknown length",
    "CAF with a chunk behind", "AU of unknown length", "RF64 of given length", "RF64 of no length")
    or n.startswith(("W64 PCM", "CAF PCM", "AU PCM"))]


@pytest.mark.parametrize("name", FILES)
def test_the_same_file_comes_back(name, short_segments):
    found = coded(FILES[name], verify=False)
    assert decoded(found) == FILES[name]
    if name in CODED_BY_PREDICTOR: assert METHODS["predictor"] in methods(found)


def changed(data: bytes, rng) -> bytes:
    """A file with one to four changes, most of them in its first bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, n = int(rng.integers(min(len(data), 80 if rng.random() < 0.8 else 10**6) + 1)), int(rng.choice([1, 2, 4]))
        kind = rng.integers(4)
        if kind == 0: data[at:at + n] = rng.bytes(n)
        elif kind == 1: data[at:at + n] = bytes([int(rng.choice([0, 127, 255]))])*n
        elif kind == 2: del data[at:at + n]
        else: data[at:at] = data[max(at - n, 0):at]
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_damaged_originals_come_back_as_they_are(part):
    rng = np.random.default_rng(part)
    kinds = [FILES[n] for n in ("wav, 16 bit, 2 channels", "chunks around", "AIFF PCM_16 FILE", "WAVEX PCM_24 FILE")]
    for i in range(40):
        data = changed(kinds[i % len(kinds)][:1500], rng)
        assert decoded(coded(data, verify=False)) == data


@pytest.mark.parametrize("name", ["noise", "float"])
def test_what_nothing_shrinks_costs_a_thousandth(name):
    rng = np.random.default_rng(1)
    data = {"noise": wav(rng.bytes(200_000), 2, 2), "float": written(rng.uniform(-1, 1, 80_000), subtype="FLOAT")}[name]
    assert len(coded(data, verify=False)) <= 1.001*len(data)


def test_a_single_sample():
    data = written([[0.5]], subtype="PCM_U8")
    assert decoded(coded(data)) == data


@pytest.mark.parametrize("subtype, bits", [("PCM_S8", 8), ("PCM_16", 16), ("PCM_24", 24)])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_gives_its_samples(tmp_path, subtype, bits, channels):
    sf.write(tmp_path / "a.flac", music(700)[:, :channels], 44_100, subtype=subtype)
    found = compress(tmp_path / "a.flac", tmp_path / "a.swb")
    assert found.source_bytes == (tmp_path / "a.flac").stat().st_size
    assert found.original_bytes == 44 + 700*channels*bits//8
    for name, kind in (("b.flac", subtype), ("b.wav", subtype.replace("S8", "U8"))):
        decompress(tmp_path / "a.swb", tmp_path / name)
        info = sf.info(tmp_path / name)
        assert (info.subtype, info.channels, info.samplerate) == (kind, channels, 44_100)
        assert np.array_equal(*(sf.read(tmp_path / n, dtype="int32")[0] for n in ("a.flac", name)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.flac", "a.swb", "b.flac", "b.wav"]


def test_a_flac_behind_an_id3_tag_gives_its_samples(tmp_path):
    tag = b"ID3\4\0\0" + bytes([0, 0, 1, 20]) + b"x"*148
    (tmp_path / "a.flac").write_bytes(tag + written(music(700), "FLAC"))
    compress(tmp_path / "a.flac", tmp_path / "a.swb")
    assert METHODS["predictor"] in methods((tmp_path / "a.swb").read_bytes())
    decompress(tmp_path / "a.swb", tmp_path / "b.wav")
    assert np.array_equal(sf.read(tmp_path / "b.wav", dtype="int16")[0], music(700))


def test_what_comes_back_when_all_32_bits_are_used():
    """The lowest 8 bits are stored, and the others predicted."""
    x = (music(2000).astype(np.int64) << 16) + np.random.default_rng(0).integers(0, 2**16, (2000, 2))
    data = wav(little(x, 4), 4, 2)
    found = coded(data)
    assert methods(found) == [METHODS["stored"], METHODS["predictor"]] and len(found) < 0.9*len(data)
    assert decoded(found) == data


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_memory_does_not_grow_with_the_length(format, tmp_path, monkeypatch):
    """Segments of 128 KiB, kept as they are: 5 MB take no more memory than 1 MB, in coding, proof and decoding."""
    def store(piece, position, *args): return Segment(0, position, len(piece), zlib.crc32(piece), piece)
    monkeypatch.setattr(compression, "encode_piece", store)
    monkeypatch.setattr(SampleCoder, "segment_samples", 2**16)
    peaks = {}
    for seconds in (2, 1, 6, 30):                                     # the first loads what is loaded once
        sf.write(tmp_path / "a", np.tile(music(44_100), (seconds, 1)), 44_100, format=format, subtype="PCM_16")
        for action, source, target in ((compress, "a", "a.swb"), (decompress, "a.swb", "b.wav")):
            tracemalloc.start()
            action(tmp_path / source, tmp_path / target, workers=2, overwrite=True)
            peaks[action, seconds] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for action in (compress, decompress):
        assert peaks[action, 30] < peaks[action, 6] + 2**18 < 2**22, peaks


def test_threads_and_streams_give_the_same_bytes(tmp_path, short_segments):
    data = written(music(9000))
    (tmp_path / "a.wav").write_bytes(data)
    compress(tmp_path / "a.wav", tmp_path / "a.swb", workers=3)
    one = coded(data)
    assert (tmp_path / "a.swb").read_bytes() == one and len(methods(one)) == 10
    decompress(tmp_path / "a.swb", tmp_path / "b.wav", workers=3)
    assert (tmp_path / "b.wav").read_bytes() == data


# ---- faults

@pytest.fixture
def song(tmp_path, short_segments):
    """A WAV file, and its coded form of several segments."""
    (tmp_path / "song.wav").write_bytes(written(music()))
    compress(tmp_path / "song.wav", tmp_path / "song.swb", workers=1)
    return tmp_path / "song.swb"


def flip(data: bytes, at: int) -> bytes:
    """One bit changed."""
    return data[:at] + bytes([data[at] ^ 8]) + data[at + 1:]


@pytest.mark.parametrize("change, why", [
    (lambda b: b"", "not a file of"), (lambda b: b"RIFF" + b[4:], "not a file of"),
    (lambda b: repaired(b[:8] + b"\7" + b[9:]), "version 7 .* update"), (lambda b: flip(b, 20), "header is damaged"),
    (lambda b: b[:40], "truncated: it ends within its header"),
    (lambda b: b[:2000], r"truncated: segment 2 \(seconds 0.00"), (lambda b: b[:-60], "truncated: segment 4"),
    (lambda b: flip(b, 2000), r"damaged: segment 2 \(seconds 0.00 to 0.02\)"),
    (lambda b: b[:-44], "truncated: it holds 4 whole segments"), (lambda b: b[:-3], "truncated: it holds 4"),
    (lambda b: b + b"more", "bytes follow"), (lambda b: repaired(flip(b, len(b) - 20)), "checksum of the original"),
    (lambda b: repaired(flip(b, 2000)), "seconds 0.00 to 0.02"),
    (lambda b: repaired(flip(b, 15)), "cannot hold|missing"),
])
def test_a_damaged_file_is_refused(song, tmp_path, change, why):
    song.write_bytes(change(song.read_bytes()))
    with pytest.raises(CodedFileError, match=why) as e: decompress(song, tmp_path / "back.wav", workers=1)
    assert str(song) in str(e.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["song.swb", "song.wav"]


def test_salvage_gives_the_rest_and_says_what_is_missing(song, tmp_path):
    data, original = song.read_bytes(), (tmp_path / "song.wav").read_bytes()
    second = [i for i in range(len(data)) if data[i:i + 4] == b"SWBs"][2]
    song.write_bytes(flip(data, second + 400))
    found = decompress(song, tmp_path / "back.wav", salvage=True)
    back = (tmp_path / "back.wav").read_bytes()
    assert found.missing == ("seconds 0.02 to 0.05",)
    assert back == original[:4044] + bytes(4000) + original[8044:]
    song.write_bytes(data)
    assert decompress(song, tmp_path / "back.wav", salvage=True, overwrite=True).missing == ()
    song.write_bytes(data[:second])
    assert decompress(song, tmp_path / "back.wav", salvage=True, overwrite=True).missing == ("seconds 0.02 to 0.07",)


def test_the_silence_of_unsigned_samples():
    data = coded(wav(little(walk(3000, 1, 8), 1), 1, 1))
    back = decoded(data[:-400], salvage=True)
    assert len(back) == 3044 and set(back[44:]) == {128}


def test_targets_are_not_replaced_unasked(song, tmp_path):
    wav_file, before = tmp_path / "song.wav", song.read_bytes()
    with pytest.raises(FileExistsError, match="--force"): compress(wav_file, song)
    with pytest.raises(FileExistsError, match="--force"): decompress(song, wav_file)
    with pytest.raises(ValueError, match="source and target"): compress(wav_file, wav_file, overwrite=True)
    with pytest.raises(ValueError, match="no FLAC"): decompress(song, tmp_path / "x.flac")
    with pytest.raises(FileNotFoundError): compress(tmp_path / "none.wav", tmp_path / "none.swb")
    compress(wav_file, song, overwrite=True, workers=1)
    assert song.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["song.swb", "song.wav"]


def test_a_wrong_coder_is_noticed_before_the_file_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "song.wav").write_bytes(written(music(500)))
    monkeypatch.setattr(PredictorCoder, "decode", lambda self, coded, n, on_samples: np.zeros((n, 2), np.int64))
    with pytest.raises(CodedFileError, match="does not decode to the same"):
        compress(tmp_path / "song.wav", tmp_path / "song.swb")
    assert [p.name for p in tmp_path.iterdir()] == ["song.wav"]


def test_a_full_disk(song, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data): raise OSError(28, "No space left on device")
    monkeypatch.setattr(compression, "open_beside", lambda path: Full(path.with_name(f".{path.name}.tmp"), "w+"))
    for action in (lambda: compress(tmp_path / "song.wav", tmp_path / "x.swb"),
                   lambda: decompress(song, tmp_path / "x.wav")):
        with pytest.raises(OSError, match="x.* \\(No space left on device\\).* free some space"): action()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["song.swb", "song.wav"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_half_way(tmp_path, number):
    """Nothing has the final name; unless it is killed, nothing is left at all."""
    sf.write(tmp_path / "song.wav", np.random.default_rng(0).integers(-2000, 2000, 2_000_000).astype(np.int16), 44_100)
    command = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); " \
        "from sashimi_wb.cli import main; sys.exit(main())"     # a shell's background processes ignore SIGINT
    process = subprocess.Popen([sys.executable, "-c", command, "compress", "song.wav", "song.swb"], cwd=tmp_path,
                               stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    while not list(tmp_path.glob(".song.swb*")) and process.poll() is None: time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["song.wav"]
    if number != signal.SIGKILL: assert not list(tmp_path.glob(".song*"))


def test_command(song, tmp_path, capsys):
    back = str(tmp_path / "back.wav")
    assert main(["decompress", str(song), back]) == 0
    assert "every checksum is right" in capsys.readouterr().out
    assert main(["decompress", str(song), back]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["compress", back, str(song), "--force", "--no-verify", "--workers", "1"]) == 0
    assert "% of it" in capsys.readouterr().out
    song.write_bytes(flip(song.read_bytes(), 2000))
    assert main(["decompress", str(song), back, "--force"]) == 2
    assert "damaged: segment 2" in capsys.readouterr().err
    assert main(["decompress", str(song), back, "--force", "--salvage"]) == 0
    assert "1 parts are missing" in capsys.readouterr().out


# ---- fuzzed and frozen files

@pytest.mark.slow
def test_damaged_files_at_random():
    """A small part of `python tests/fuzz_coded.py`."""
    import fuzz_coded
    rows = fuzz_coded.run(300, seed=7)
    assert len(rows) == 300 and not [r for r in rows if r[1].startswith("WRONG") or r[2].startswith("WRONG")]
    assert {"right", "salvaged"} <= {r[2] for r in rows} and "right" in {r[1] for r in rows}


def test_fuzzing_would_notice(monkeypatch):
    original, data = coded_files()[0]
    monkeypatch.setattr(compression, "decode_segment", lambda segment, *args: bytes(segment.n_bytes))
    monkeypatch.setattr(compression.hashlib, "sha256", lambda *args: hashlib.md5())
    assert outcome(data, original, False).startswith("error")
    monkeypatch.undo()
    assert outcome(data, original, False) == "right"
    assert outcome(data, original + b"x", False).startswith("WRONG")


def frozen_originals() -> dict[str, bytes]:
    """The files that the frozen ones were made of: whoever changes what comes back, breaks everyone's files."""
    noise = np.random.Generator(np.random.PCG64(5)).integers(0, 256, 700).astype(np.uint8).tobytes()
    return {"wav16_stereo": wav(little(walk(1500, 2, 14), 2), 2, 2, LIST, LIST),
            "wav8": wav(little(walk(900, 1, 7), 1), 1, 1), "wav24_three": wav(little(walk(400, 3, 22), 3), 3, 3),
            "wav16_ten": wav(little(walk(150, 10, 13), 2), 2, 10), "noise": wav(noise, 1, 1),
            "wav32_padded": wav(little(walk(500, 1, 20) << 12, 4), 4, 1),
            "text": b"neither sound nor anything else that is known. "*20}


@pytest.mark.portable
@pytest.mark.parametrize("name", frozen_originals())
def test_frozen_files(name):
    """Every later version reads them, on every processor; and this version of the format is written with these bytes.

    Made by `coded(original)` with the segment length below. A new version of the format gets new files beside these."""
    said, data = json.loads((FROZEN / "sha256.json").read_text())[name], (FROZEN / f"{name}.swb").read_bytes()
    original = decoded(data)
    assert hashlib.sha256(original).hexdigest() == said
    assert original == frozen_originals()[name]
    usual, SampleCoder.segment_samples = SampleCoder.segment_samples, 2000
    try: assert coded(original, verify=False) == data
    finally: SampleCoder.segment_samples = usual
