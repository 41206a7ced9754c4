"""sashimi_wb.audio.containers, ffmpeg and files: every container is read correctly or refused with a reason."""
import io
import os
import struct

import numpy as np
import pytest
import soundfile as sf
from made_audio import decode_stream, noise

from sashimi_wb.audio.files import probe, read_frames


def tone(n=16_000, channels=1, rate=16_000, hz=440):
    t = np.arange(n)/rate
    wave = np.stack([0.5*np.sin(2*np.pi*hz*(1 + 0.5*i)*t) for i in range(channels)], axis=1)
    return (wave + 0.02*np.random.default_rng(n).standard_normal(wave.shape)).clip(-1, 1)


def coded(kind, subtype=None, wave=None, rate=16_000, **options):
    """The bytes of an audio file."""
    if wave is None: wave = tone()
    buffer = io.BytesIO()
    with sf.SoundFile(buffer, "w", rate, wave.shape[1], format=kind, subtype=subtype, **options) as f:
        for a in range(0, len(wave), 8_192): f.write(wave[a:a + 8_192])
    return buffer.getvalue()


def put(folder, name, content):
    path = folder/name
    path.write_bytes(content)
    return path


def whole_of(path, frames):
    """All samples of a file; checks that windows of the file are slices of them."""
    info = probe(path)
    assert info.frames == frames
    whole = read_frames(info, 0, info.frames)
    starts = {0, 1, max(0, frames - 3), *np.random.default_rng(0).integers(0, frames, 12).tolist(),
              *range(max(0, frames - 20_000), frames, 1_777)}
    for start in sorted(starts):
        n = min(700, frames - start)
        assert np.array_equal(read_frames(info, start, n), whole[start:start + n]), (start, n)
    return whole


def refuse(path, why):
    with pytest.raises(ValueError, match=f"{path.name}: .*{why}"): probe(path)


# ---- every window is that slice of the whole file

RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels,options", (
    (1, dict(compression_level=0.99)), (1, {}), (2, dict(bitrate_mode="VARIABLE")), (2, dict(compression_level=0.0))))
def test_windows_of_an_mp3(tmp_path, rate, channels, options):
    wave = tone(40_000, channels, rate)
    path = put(tmp_path, "a.mp3", coded("MP3", wave=wave, rate=rate, **options))
    got = whole_of(path, 40_000)
    by_libsndfile = sf.read(path, always_2d=True)[0].clip(-1, 1)
    np.testing.assert_allclose(got, by_libsndfile, atol=1e-5)


@pytest.mark.parametrize("rate", (8_000, 16_000, 44_100))
@pytest.mark.parametrize("frames", (1, 100, 9_000, 150_000))
def test_windows_of_ogg_vorbis(tmp_path, rate, frames):
    path = put(tmp_path, "a.ogg", coded("OGG", "VORBIS", noise(frames, 1, peak=0.9), rate))
    assert np.array_equal(whole_of(path, frames), sf.read(path, dtype="float32", always_2d=True)[0].clip(-1, 1))


@pytest.mark.parametrize("rate,frames", ((8_000, 30_000), (16_000, 100_000), (24_000, 5), (48_000, 150_000)))
def test_windows_of_ogg_opus(tmp_path, rate, frames):
    t = np.arange(frames)/rate
    path = put(tmp_path, "a.ogg", coded("OGG", "OPUS", (0.4*np.sin(2*np.pi*(200 + 30*t)*t))[:, None], rate))
    by_libsndfile = sf.read(path, dtype="float32", always_2d=True)[0].clip(-1, 1)
    np.testing.assert_allclose(whole_of(path, frames), by_libsndfile, atol=1e-3)


PLAIN = [(kind, subtype) for kind in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST")
         for subtype in sf.available_subtypes(kind)
         if subtype.startswith("PCM") or subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")]


@pytest.mark.parametrize("kind,subtype", PLAIN)
@pytest.mark.parametrize("suffix", ("wav", "mp3"))
def test_every_container_whole_and_cut_under_any_suffix(tmp_path, kind, subtype, suffix):
    b = coded(kind, subtype, tone(5_000, 2))
    path = put(tmp_path, f"a.{suffix}", b)
    info = probe(path)
    want = sf.read(path, dtype="float64" if info.wide else "float32")[0]
    assert np.array_equal(whole_of(path, len(want)), want.clip(-1, 1)) and 0 <= len(want) - 5_000 < 2_048
    for share in (0.999, 0.5, 0.1): refuse(put(tmp_path, "cut.wav", b[:int(len(b)*share)]), "truncated|damaged")


@pytest.mark.parametrize("kind,subtype", (
    ("WAV", "GSM610"), ("WAV", "G721_32"), ("WAV", "NMS_ADPCM_16"), ("W64", "GSM610"), ("AIFF", "DWVW_16"),
    ("AU", "G723_24"), ("CAF", "ALAC_20")))
def test_formats_without_exact_seeking_are_refused_with_a_remedy(tmp_path, kind, subtype):
    refuse(put(tmp_path, "a.wav", coded(kind, subtype, tone(4_000, rate=8_000), 8_000)),
           f"{subtype} in {kind} cannot be read from the middle without errors: convert it.*new.flac")


# ---- headers that are wrong

FORMAT = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
PCM = np.round(tone()*32_767).astype("<i2").tobytes()


def chunk(name, data, size=None, order="<", pad=True):
    return name + struct.pack(order + "I", len(data) if size is None else size) + data + b"\0"*(len(data) % 2*pad)


def riff(*chunks, size=None):
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def test_a_wav_that_is_read_to_its_last_sample(tmp_path):
    """Lengths that are not known, chunks in any order, and a missing byte of padding."""
    data = chunk(b"data", PCM)
    cases = dict(plain=riff(FORMAT, data), ones=riff(FORMAT, chunk(b"data", PCM, 2**32 - 1), size=2**32 - 1),
                 sox=riff(FORMAT, chunk(b"data", PCM, 0x7FFFF000)),
                 junk=riff(chunk(b"JUNK", bytes(27)), FORMAT, chunk(b"fact", struct.pack("<I", 7)), data,
                           chunk(b"LIST", b"INFOabc"), chunk(b"id3 ", b"ID3" + bytes(20))),
                 riff_size=riff(FORMAT, data, size=4), tag=riff(FORMAT, data) + b"TAG" + bytes(125),
                 behind_a_tag=b"ID3\3\0\0\0\0\1\0" + bytes(128) + riff(FORMAT, data))
    for name, content in cases.items():
        assert np.array_equal(whole_of(put(tmp_path, f"{name}.wav", content), 16_000)*32_768,
                              np.frombuffer(PCM, "<i2")[:, None]), name

    bytes_8 = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 16_000, 1, 8)
    for pad in (True, False):
        whole_of(put(tmp_path, "odd.wav", riff(bytes_8, chunk(b"data", PCM[:-1], pad=pad), chunk(b"LIST", b"INFO"))),
                 len(PCM) - 1)


def test_a_wav_whose_length_hides_samples_is_refused(tmp_path):
    for n in (2, 1_000, len(PCM) - 2):
        refuse(put(tmp_path, "a.wav", riff(FORMAT, chunk(b"data", PCM, n))),
               "says that the sound has .* bytes follow that no chunk explains")
    refuse(put(tmp_path, "a.wav", riff(FORMAT, chunk(b"data", PCM), chunk(b"data", PCM))), "several chunks of sound")
    refuse(put(tmp_path, "a.wav", riff(FORMAT, chunk(b"data", PCM, len(PCM) + 2))), "truncated, 2 bytes short")
    refuse(put(tmp_path, "a.wav", riff(FORMAT, chunk(b"data", PCM, 3_000_000_000))), "truncated")
    refuse(put(tmp_path, "a.wav", riff(FORMAT, chunk(b"data", b""))), "holds no samples")
    refuse(put(tmp_path, "a.wav", riff(FORMAT)), "no chunk 'data'")
    refuse(put(tmp_path, "a.wav", riff(FORMAT, chunk(b"data", PCM)) + bytes(500)), "no chunk explains")


def test_a_wav_of_either_byte_order_and_with_a_wrong_format(tmp_path):
    swapped = b"RIFX" + struct.pack(">I", 36 + len(PCM))
    swapped += b"WAVEfmt " + struct.pack(">IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    swapped += chunk(b"data", np.frombuffer(PCM, "<i2").astype(">i2").tobytes(), order=">")
    assert np.array_equal(whole_of(put(tmp_path, "a.wav", swapped), 16_000)*32_768, np.frombuffer(PCM, "<i2")[:, None])
    refuse(put(tmp_path, "a.wav", swapped[:-500]), "truncated, 500 bytes short")
    data = chunk(b"data", PCM)
    no_channels = FORMAT[:10] + struct.pack("<H", 0) + FORMAT[12:]
    no_rate = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 0, 0, 2, 16)
    high_rate = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 2**30, 2**31, 2, 16)
    refuse(put(tmp_path, "a.wav", riff(no_channels, data)), "")
    refuse(put(tmp_path, "a.wav", riff(no_rate, data)), "")
    refuse(put(tmp_path, "a.wav", riff(high_rate, data)), "sample rate from 1 to")


@pytest.mark.parametrize("kind,where,open_length", (
    ("AU", 8, b"\xff"*4), ("CAF", None, b"\xff"*8), ("AIFF", None, None), ("W64", None, None),
    ("RF64", 28, b"\xff"*8), ("NIST", None, None)))
def test_other_containers_with_a_wrong_length(tmp_path, kind, where, open_length):
    b = coded(kind, "PCM_16")
    name, size = {"CAF": (b"data", 8), "AIFF": (b"SSND", 4),
                  "W64": (b"data" + bytes.fromhex("f3acd311"), 8)}.get(kind, (None, 0))
    if kind == "NIST": small = b.replace(b"sample_count -i 16000", b"sample_count -i 00500")
    else:
        at = where or b.index(name) + (16 if kind == "W64" else 4)
        order = "<" if kind in ("W64", "RF64") else ">"
        size = {"AU": 4, "RF64": 8}.get(kind, size)
        small = b[:at] + struct.pack(order + {4: "I", 8: "Q"}[size], 1_000) + b[at + size:]
        if open_length:
            path = put(tmp_path, "open.wav", b[:at] + open_length + b[at + size:])
            if kind == "AU": assert whole_of(path, 16_000).shape == (16_000, 1)
            else: refuse(path, "convert it.*new.flac")  # libsndfile does not read these
    assert small != b
    refuse(put(tmp_path, "a.wav", small), "no chunk explains|contradicts")


# ---- FLAC

FLAC = coded("FLAC", "PCM_16", tone(40_000, 2))


def flac_of(total, b=FLAC): return b[:21] + bytes([b[21] & 0xF0]) + struct.pack(">I", total) + b[26:]


ID3V2 = b"ID3\3\0\0\0\0\x08\0" + bytes(1_024)
ID3V1 = b"TAG" + bytes(125)


@pytest.mark.parametrize("content", (
    FLAC, flac_of(0), ID3V2 + FLAC, ID3V2 + bytes(77) + flac_of(0), FLAC + ID3V1, flac_of(0) + ID3V1,
    FLAC + b"more, of no meaning"*99))
def test_a_flac_between_tags_and_of_unknown_length(tmp_path, content):
    assert np.array_equal(whole_of(put(tmp_path, "a.flac", content), 40_000),
                          sf.read(io.BytesIO(FLAC), dtype="float32")[0])


def test_a_flac_with_a_wrong_length_is_refused(tmp_path):
    refuse(put(tmp_path, "a.flac", flac_of(500)),
           "damaged: its header says 500 frames, the last one found ends at 40000")
    refuse(put(tmp_path, "a.flac", flac_of(50_000)),
           "truncated: its header says 50000 frames, the last one found ends at 40000")
    for share in (0.3, 0.9, 0.999):
        for b in (FLAC, flac_of(0)): refuse(put(tmp_path, "a.flac", b[:int(len(b)*share)]), "truncated")
    refuse(put(tmp_path, "a.flac", FLAC[:42]), "damaged or truncated")
    refuse(put(tmp_path, "a.flac", flac_of(0, FLAC[:30_000] + bytes(400) + FLAC[30_400:])), "damaged")


@pytest.mark.parametrize("bits", (8, 16, 24))
@pytest.mark.parametrize("channels", (1, 3, 8))
@pytest.mark.parametrize("frames", (1, 15, 4_096, 10_000))
def test_short_and_long_flacs(tmp_path, bits, channels, frames):
    whole_of(put(tmp_path, "a.flac", coded("FLAC", f"PCM_{'S'*(bits == 8)}{bits}", tone(frames, channels))), frames)


# ---- Ogg

OGG = coded("OGG", "VORBIS", tone(50_000, 2))


def pages(b):
    """First bytes of the pages of an Ogg file."""
    at = [0]
    while at[-1] < len(b):
        n = b[at[-1] + 26]
        at.append(at[-1] + 27 + n + sum(b[at[-1] + 27:at[-1] + 27 + n]))
    return at[:-1]


@pytest.mark.parametrize("subtype", ("VORBIS", "OPUS"))
def test_ogg_streams_in_sequence(tmp_path, subtype):
    parts = [coded("OGG", subtype, tone(n, 2)) for n in (50_000, 300, 20_000)]
    want = np.concatenate([sf.read(io.BytesIO(b), dtype="float32")[0] for b in parts])
    np.testing.assert_allclose(whole_of(put(tmp_path, "a.ogg", b"".join(parts)), 70_300), want.clip(-1, 1), atol=1e-3)
    refuse(put(tmp_path, "a.ogg", parts[0] + coded("OGG", subtype, tone(5_000, 1))),
           "several streams of different kinds")
    refuse(put(tmp_path, "a.ogg", b"".join(parts)[:-99]), "truncated")


def test_an_ogg_with_damage_anywhere_is_refused(tmp_path):
    rng, at = np.random.default_rng(0), pages(OGG)
    for i in rng.integers(0, len(OGG), 40):
        refuse(put(tmp_path, "a.ogg", OGG[:i] + bytes([OGG[i] ^ 1 << int(rng.integers(8))]) + OGG[i + 1:]),
               "damaged|truncated|another format")
    refuse(put(tmp_path, "a.ogg", OGG[:at[-1]]), "truncated: its last page is missing")
    refuse(put(tmp_path, "a.ogg", OGG[:at[3]] + OGG[at[4]:]), "a page is missing")
    refuse(put(tmp_path, "a.ogg", OGG[:at[3]] + b"between" + OGG[at[3]:]), "no Ogg page at byte")


# ---- MPEG audio

NOISY = tone(60_000, 2, 44_100)
MP3 = coded("MP3", wave=NOISY, rate=44_100, bitrate_mode="VARIABLE")


def frame_starts(b):
    from sashimi_wb.audio.containers import container_of, mpeg_frames
    return [x.at for x in mpeg_frames(io.BytesIO(b), *container_of(io.BytesIO(b), len(b))[1:])]


def test_an_mp3_without_its_table_and_several_in_one_file(tmp_path):
    at = frame_starts(MP3)
    bare, n = MP3[at[1]:], 1_152*(len(at) - 1)
    whole_of(put(tmp_path, "a.mp3", bare), n)
    whole_of(put(tmp_path, "a.mp3", bare + bare), 2*n)
    one = whole_of(put(tmp_path, "a.mp3", MP3), 60_000)
    for between in (b"", ID3V1, ID3V2):
        two = whole_of(put(tmp_path, "a.mp3", MP3 + between + MP3), 120_000)
        np.testing.assert_allclose(two[:60_000], one, atol=1e-5)
        np.testing.assert_allclose(two[60_000:], one, atol=1e-5)
    refuse(put(tmp_path, "a.mp3", MP3 + coded("MP3", wave=tone(9_000, 2), rate=16_000)), "change their sample rate")


def test_an_mp3_that_is_damaged_or_truncated(tmp_path):
    at = frame_starts(MP3)
    refuse(put(tmp_path, "a.mp3", MP3[:at[40]]), "truncated: its Info frame announces")
    refuse(put(tmp_path, "a.mp3", MP3[:at[40] + 9]), "truncated: .* bytes of its last frame are missing")
    for hurt in (MP3[:at[20]] + MP3[at[20] + 1:], MP3[:at[20]] + b"garbage" + MP3[at[20]:],
                 MP3[:at[20]] + bytes(at[21] - at[20] - 5) + MP3[at[21] - 5:]):
        refuse(put(tmp_path, "a.mp3", hurt), "damaged: expected a frame of MPEG audio at byte")
    refuse(put(tmp_path, "a.mp3", b"\xff\xfb\x00\x00" + bytes(999)), "free format")
    whole_of(put(tmp_path, "a.mp3", ID3V2 + bytes(300) + MP3 + bytes(300)), 60_000)


@pytest.mark.parametrize("layer", (1, 2))
def test_layers_one_and_two(tmp_path, layer):
    """Frames of silence, written by hand; their samples are known."""
    # 44.1 kHz, mono, no checksum
    frame = bytes([0xFF, 0xFF if layer == 1 else 0xFD, 0x90 if layer == 1 else 0x80, 0xC0])
    from sashimi_wb.audio.containers import mpeg_header
    size, samples, hz, found = mpeg_header(frame)
    assert (hz, found) == (44_100, layer)
    info = probe(put(tmp_path, "a.mp3", (frame + bytes(size - 4))*50))
    assert (info.frames, info.subtype, info.channels) == (50*samples, f"MPEG_LAYER_{'I'*layer}", 1)
    assert not read_frames(info, 777, 9_000).any()


def test_an_mp3_inside_a_wav(tmp_path):
    head = b"fmt " + struct.pack("<IHHIIHHHHIHHH", 30, 0x55, 2, 44_100, 16_000, 1, 0, 12, 1, 2, 417, 1, 1_393)
    path = put(tmp_path, "a.wav", riff(head, chunk(b"fact", struct.pack("<I", 60_000)), chunk(b"data", MP3)))
    try: sf.info(path)
    except sf.SoundFileError: return refuse(path, "not readable")
    np.testing.assert_allclose(whole_of(path, 60_000), sf.read(io.BytesIO(MP3))[0].clip(-1, 1), atol=1e-5)


# ---- MP4

def mp4(path, wave, codec="aac", rate=44_100, options=None, fmt=None):
    import av
    fmt = fmt or {"aac": "fltp", "alac": "s16p", "flac": "s16"}[codec]
    with av.open(str(path), "w", format="mp4", options=options or {}) as c:
        s = c.add_stream(codec, rate=rate, layout=("mono", "stereo")[wave.shape[1] - 1])
        s.codec_context.format = fmt
        if codec == "aac": s.codec_context.options = {"aac_pns": "0"}
        for a in range(0, len(wave), 1_024):
            part = wave[a:a + 1_024]
            part = part.T if fmt.endswith("p") else part.reshape(1, -1)  # planar or interleaved
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=fmt, layout=s.layout.name)
            frame.sample_rate, frame.pts = rate, a
            c.mux(s.encode(frame))
        c.mux(s.encode(None))
    return path


@pytest.mark.parametrize("codec", ("alac", "flac"))
def test_lossless_codecs_in_an_mp4(tmp_path, codec):
    k = np.round(tone(50_000, 2)*32_767).astype(np.int16)
    info = probe(mp4(tmp_path/"a.mp4", k, codec))
    assert (info.bits, info.lossy, info.frames) == (16, False, 50_000)
    assert np.array_equal(whole_of(tmp_path/"a.mp4", 50_000)*32_768, k)


def test_a_fragmented_mp4_and_one_cut_off(tmp_path):
    wave = tone(100_000, 2).astype(np.float32)
    options = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}
    path = mp4(tmp_path/"a.mp4", wave, options=options)
    info = probe(path)
    assert info.frames >= 100_000
    assert np.array_equal(whole_of(path, info.frames), decode_stream(path).clip(-1, 1)[-info.frames:])
    b = mp4(tmp_path/"b.mp4", wave, options={"movflags": "faststart"}).read_bytes()
    for share in (0.5, 0.99): refuse(put(tmp_path, "cut.mp4", b[:int(len(b)*share)]), "truncated")


# ---- not an audio file

def test_anything_but_a_regular_file_is_refused_at_once(tmp_path):
    (tmp_path/"folder.wav").mkdir()
    refuse(tmp_path/"folder.wav", "got a folder")
    os.mkfifo(tmp_path/"pipe.wav")
    refuse(tmp_path/"pipe.wav", "got a pipe")
    for content in (b"", b"R", b"RIFF", ID3V2, bytes(100_000), b"hello world "*99,
                    b"RIFF\0\0\0\0AVI " + bytes(99)):
        for suffix in ("wav", "flac", "ogg", "mp3", "mp4"): refuse(put(tmp_path, f"a.{suffix}", content), "")


# ---- damage of every kind

@pytest.mark.slow
def test_damaged_files_are_read_correctly_or_refused(tmp_path):
    """A small part of `python tests/fuzz_audio.py`.

    No crash, no hang, bounded memory, no wrong sample; every error names its file."""
    import fuzz_audio
    rows = list(fuzz_audio.run(str(tmp_path), 8*len(fuzz_audio.WHOLE), seed=12))
    assert len(rows) == 8*len(fuzz_audio.WHOLE) and not [r for r in rows if r[3].startswith("WRONG")]
    read = {r[1] for r in rows if r[3] == "read"}
    # undamaged files are read, except those of unsupported formats
    assert set(fuzz_audio.WHOLE) - read <= {"wav gsm610", "wav g721", "caf alac"}


def test_the_fuzzer_detects_crashes_hangs_and_wrong_samples(tmp_path, monkeypatch):
    import fuzz_audio
    monkeypatch.setattr(fuzz_audio, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(fuzz_audio.sys, "executable", str(put(tmp_path, "python", b"""#!/bin/sh
case "$5" in
0) echo '[0, "wav", "nothing", null]'; kill -SEGV $$;;
1) echo '[1, "wav", "nothing", null]'; exec sleep 30;;
*) echo '[2, "wav", "nothing", null]'; echo '[2, "wav", "nothing", "read"]';;
esac
""")))
    os.chmod(tmp_path/"python", 0o755)
    assert [r[3] for r in fuzz_audio.run(str(tmp_path), 3, 0)] == ["WRONG: the process ended with -11", "WRONG: hangs",
                                                                   "read"]
    from sashimi_wb.audio import files
    path = put(tmp_path, "a.wav", riff(FORMAT, chunk(b"data", PCM)))
    assert fuzz_audio.judge(str(path), np.random.default_rng(0)) == "read"
    plain = files.READERS["array"]
    monkeypatch.setitem(files.READERS, "array", lambda info, start, frames: plain(info, max(0, start - 1), frames))
    assert "are not this slice of the whole" in fuzz_audio.judge(str(path), np.random.default_rng(0))
