"""The bundled audio: counts, formats, levels, stereo width, size, and that the scores beside it still parse."""
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

DATA = Path(__file__).resolve().parents[2] / "data"


def load(name):
    """A script of data/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


make_corpus, check_corpus = load("make_corpus"), load("check_corpus")


@pytest.fixture(scope="module")
def rows():
    return check_corpus.measure_all()


@pytest.fixture(scope="module")
def music(rows):
    return [r for r in rows if r["file"].startswith("music/")]


@pytest.fixture(scope="module")
def digits(rows):
    return [r for r in rows if r["file"].startswith("digits/")]


def test_counts_match_scores_and_texts(music, digits):
    assert len(music) >= 14
    assert {Path(r["file"]).stem for r in music} == {p.stem for p in (DATA / "scores").glob("*.txt")}
    words, voices = make_corpus.read_texts(DATA / "texts" / "digits.txt")
    assert len(words) == 10 and len(voices) >= 4
    assert {Path(r["file"]).stem for r in digits} == {f"{w}_{v['name']}" for w in words for v in voices}


def test_formats(music, digits):
    assert {(r["format"], r["subtype"], r["rate"], r["channels"]) for r in music} == {("FLAC", "PCM_16", 44100, 2)}
    assert {(r["format"], r["subtype"], r["rate"], r["channels"]) for r in digits} == {("FLAC", "PCM_16", 16000, 1)}
    assert {r["frames"] for r in digits} == {16000}
    assert all(8 <= r["seconds"] <= 12 for r in music)


def test_total_size(rows):
    assert sum(r["bytes"] for r in rows) <= check_corpus.LIMIT_BYTES


def test_levels(music, digits):
    for r in music:
        assert -3 <= r["peak_db"] <= -1 and -26 <= r["rms_db"] <= -12, r
    for r in digits:
        assert -6 <= r["peak_db"] <= -1 and -30 <= r["rms_db"] <= -14, r
    for r in music + digits:
        assert r["clipped"] == 0 and r["offset"] < 0.005, r


def test_silence(music, digits):
    assert max(r["silence_s"] for r in music) < 0.6
    assert max(r["silence_s"] for r in digits) < 0.6


def test_left_and_right_differ(music):
    for r in music:
        assert 0 < r["correlation"] < 0.9, r
        assert -12 < r["side_mid_db"] < 0, r
        assert abs(r["balance_db"]) < 6, r


def test_no_two_files_are_the_same(rows):
    contents = Counter((DATA / r["file"]).read_bytes() for r in rows)
    assert contents.most_common(1)[0][1] == 1


def test_readme_tables_are_current(rows):
    page = (DATA / "README.md").read_text(encoding="utf-8")
    assert check_corpus.renewed(page, "pieces", check_corpus.pieces()) == page
    assert check_corpus.renewed(page, "table", check_corpus.table(rows)) == page


@pytest.mark.parametrize("path", sorted((DATA / "scores").glob("*.txt")), ids=lambda p: p.stem)
def test_scores_parse_and_fill_their_files(path):
    score = make_corpus.read_score(path)
    last = max(float(start) for voice in score.voices for start, *_ in voice.notes) * 60 / score.tempo
    assert score.title and score.composer and score.instruments and score.source
    assert last > score.seconds - 3.5
    midi = make_corpus.midi_bytes(score)
    assert midi[:4] == b"MThd" and midi.count(b"MTrk") == len(score.voices) + 1
    assert midi == make_corpus.midi_bytes(make_corpus.read_score(path))


def test_notation():
    assert [make_corpus.pitch_number(p) for p in ("c4", "a4", "bb4", "f#3", "n51")] == [60, 69, 70, 54, 51]
    voice = make_corpus.Voice("test")
    make_corpus.read_notes(voice, "c4/h~ c4/q r | ( e4,g4/e )x8".split(), bar=4, pickup=0)
    assert voice.length == 8 and len(voice.notes) == 17
    assert float(voice.notes[0][1]) == pytest.approx(2.95)
    with pytest.raises(ValueError, match="expected 4 quarters, got 3"):
        make_corpus.read_notes(make_corpus.Voice("test"), "c4/h. | c4/w".split(), bar=4, pickup=0)
    with pytest.raises(ValueError, match="pitch"):
        make_corpus.pitch_number("h4")


def test_unknown_key_in_a_score_is_named(tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_text("tempoo: 90\n")
    with pytest.raises(ValueError, match="tempoo"):
        make_corpus.read_score(bad)


def test_missing_programs_are_named(monkeypatch):
    monkeypatch.setattr(make_corpus.shutil, "which", lambda command: None)
    monkeypatch.setattr(make_corpus, "SOUNDFONT", Path("/nowhere.sf2"))
    with pytest.raises(SystemExit, match="fluidsynth espeak-ng fluid-soundfont-gm"):
        make_corpus.check_programs()


def test_resampling_keeps_a_tone_and_removes_what_is_above():
    t, new = np.arange(22050) / 22050, np.arange(16000) / 16000
    window = np.sin(np.pi * t) ** 2
    out = make_corpus.resample_one_second(window * np.sin(2 * np.pi * 3000 * t), 22050, 16000)
    assert np.abs(out - np.sin(np.pi * new) ** 2 * np.sin(2 * np.pi * 3000 * new)).max() < 1e-3
    above = make_corpus.resample_one_second(window * np.sin(2 * np.pi * 9000 * t), 22050, 16000)
    assert np.abs(above).max() < 1e-4


def test_write_is_atomic_and_exact(tmp_path):
    codes = np.random.default_rng(0).integers(-32768, 32768, (100_000, 2)).astype(np.int16)
    make_corpus.write_flac(tmp_path / "a.flac", codes, 44100)
    assert [p.name for p in tmp_path.iterdir()] == ["a.flac"]
    assert np.array_equal(sf.read(tmp_path / "a.flac", dtype="int16")[0], codes)
