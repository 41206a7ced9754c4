"""Tables of sizes: the same samples for all coders, sane numbers, and what is left out."""
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from sashimi_wb.cli import main
from sashimi_wb.coding import sizes as module
from sashimi_wb.coding.sizes import CODERS, Result, Sound, measure, sizes, wav_bytes, write_sizes
from sashimi_wb.core.system import bundled
from sashimi_wb.studies.trained_models import load_model
from sashimi_wb.training.baselines import LOSSLESS, available

HERE = {name: code for name, code in CODERS.items() if name.lower() not in LOSSLESS or available(name.lower())}


def walk(n: int, c: int, bits: int) -> np.ndarray:
    """Codes (n, c) of so many bits that wander."""
    steps = np.random.Generator(np.random.PCG64(bits)).integers(-2**(bits - 4), 2**(bits - 4) + 1, (n, c))
    return np.cumsum(steps, 0) % 2**bits


@pytest.fixture
def folder(tmp_path):
    """Two files of music, in the folder and below."""
    x, rate = sf.read(bundled("data/music/beethoven_ode_to_joy.flac"), frames=4000, start=60_000, dtype="int16")
    sf.write(tmp_path/"a.wav", x, rate)
    (tmp_path/"below").mkdir()
    sf.write(tmp_path/"below"/"b.flac", x[:3000, 0], rate)
    return tmp_path


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("bits, channels", [(8, 1), (12, 2), (16, 1), (16, 2), (20, 1), (24, 2)])
def test_every_coder_gives_the_samples_back(name, bits, channels):
    sound = Sound(walk(5000, channels, bits), bits, 44_100)
    sound.codes[:2] = [[0], [2**bits - 1]]
    found = measure(sound, HERE[name])
    assert found.lossless and found.encode_s > 0 and found.decode_s > 0
    assert 8*found.size < 1.4*bits*sound.codes.size           # TTA needs 31 bits for 24 of noise


def test_a_loss_is_noticed():
    sound = Sound(walk(100, 1, 16), 16, 8000)
    def wrong(sound):
        codes = sound.codes.copy()
        codes[-1] ^= 1
        return Result(7, lambda: codes)
    assert measure(sound, wrong)[::3] == (7, False)
    assert not measure(sound, lambda sound: Result(7, lambda: sound.codes[:-1])).lossless


@pytest.mark.parametrize("bits, subtype", [(8, "PCM_U8"), (16, "PCM_16"), (20, "PCM_24"), (24, "PCM_24")])
def test_wav_of_a_sound(tmp_path, bits, subtype):
    codes = walk(500, 2, bits)
    (tmp_path/"a.wav").write_bytes(wav_bytes(Sound(codes, bits, 44_100))[0])
    x = sf.read(tmp_path/"a.wav", dtype="int32")[0].astype(np.int64)
    assert sf.info(tmp_path/"a.wav").subtype == subtype
    assert np.array_equal((x >> 32 - bits) + 2**(bits - 1), codes)


def test_table(folder):
    (found,) = sizes([folder])
    rows = found.totals()
    assert [row["coder"] for row in rows] == list(HERE) and not found.left_out
    assert {row["file"] for row in found.files} == {"a.wav", "below/b.flac"} and len(found.files) == 2*len(HERE)
    for row in rows:
        own = [r for r in found.files if r["coder"] == row["coder"]]
        assert row["samples"] == 11_000 == sum(r["samples"] for r in own) and row["lossless"]
        assert row["bytes"] == sum(r["bytes"] for r in own)
        assert row["bits_per_sample"] == 8*row["bytes"]/11_000 and 2 < row["bits_per_sample"] < 16
        assert row["share"] == row["bytes"]/rows[0]["bytes"] and row["encoded_per_s"] > 0 < row["decoded_per_s"]
    text = found.lines()
    assert len(text) == len(rows) + 2 and "2 files, as stored, 11,000 samples" in text[0] and "1.0000" in text[2]
    assert "NOT" not in "".join(text)
    assert "NOT LOSSLESS" in "".join(found._replace(files=[r | {"lossless": False} for r in found.files]).lines())


def test_stretches_add_up(folder, monkeypatch):
    monkeypatch.setattr(module, "STRETCH", 1500)
    (found,) = sizes([folder/"a.wav"])
    assert {row["samples"] for row in found.totals()} == {8000} and all(row["lossless"] for row in found.files)


def test_what_is_left_out_is_left_out_for_all(folder, monkeypatch):
    x = np.zeros((300, 2))
    sf.write(folder/"float.wav", x, 8000, subtype="FLOAT")
    sf.write(folder/"deep.wav", x, 8000, subtype="PCM_32")
    sf.write(folder/"three.wav", np.zeros((300, 3)), 8000)
    sf.write(folder/"lossy.ogg", x, 8000)
    sf.write(folder/"c.aiff", x, 8000)
    (folder/"damaged.flac").write_bytes((folder/"below"/"b.flac").read_bytes()[:1000])
    (found,) = sizes([folder])
    assert {row["file"] for row in found.files} == {"a.wav", "below/b.flac", "c.aiff"}
    why = {"float.wav": "not integers", "deep.wav": "32 bits", "three.wav": "3 channels", "lossy.ogg": "not integers",
           "damaged.flac": "truncated"}
    assert found.left_out.keys() == why.keys() and all(words in found.left_out[name] for name, words in why.items())
    assert "left out: three.wav: it has 3 channels" in "\n".join(found.lines())
    def refuse(sound):
        if sound.codes.shape[1] == 2: raise ValueError("not today")
        return Result(9, lambda: sound.codes)
    monkeypatch.setitem(CODERS, "FLAC 8", refuse)          # only while a file is coded
    (found,) = sizes([folder/"a.wav", folder/"below"/"b.flac"])
    assert found.left_out == {str(folder/"a.wav"): "FLAC 8: not today"}
    assert {row["file"] for row in found.files} == {str(folder/"below"/"b.flac")}
    with pytest.raises(ValueError, match="no file that all coders take .*not today"): sizes([folder/"a.wav"])


def test_a_missing_coder_has_no_row(folder, monkeypatch, caplog):
    monkeypatch.setitem(LOSSLESS, "tta", LOSSLESS["tta"]._replace(codec="no_such_codec"))
    (found,) = sizes([folder/"a.wav"])
    assert [row["coder"] for row in found.totals()] == [name for name in HERE if name != "TTA"]
    assert "no encoder of TTA" in caplog.text


def test_errors(folder, tmp_path):
    empty = tmp_path/"empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="no audio file .*nowhere"): sizes([folder/"nowhere"])
    with pytest.raises(ValueError, match="is empty"): sizes([empty])
    sf.write(empty/"float.wav", np.zeros(300), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="no file that all coders take .*float.wav: its samples are not integers"):
        sizes([empty])
    (found,) = sizes([folder/"below"])
    with pytest.raises(ValueError, match=".csv or .json"): write_sizes([found], tmp_path/"sizes.xlsx")


def test_command(folder, capsys):
    out = folder/"out"
    assert main(["sizes", str(folder), "--out", f"{out}/sizes.csv"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in HERE) and "one thread" in text
    rows = list(csv.DictReader((out/"sizes.csv").open()))
    assert len(rows) == 3*len(HERE) and rows[-1]["file"] == "all" and rows[-1]["coder"] == "predictor"
    assert main(["sizes", str(folder/"a.wav"), "--out", f"{out}/sizes.json"]) == 0
    capsys.readouterr()
    record = json.loads((out/"sizes.json").read_text())
    assert {row["file"] for row in record["rows"]} == {str(folder/"a.wav"), "all"} and record["left_out"] == {}
    for wrong in ([str(folder/"nowhere")], [str(folder), "--out", "sizes.txt"], [str(folder), "--model", "no such"]):
        assert main(["sizes", *wrong]) == 2
        assert capsys.readouterr().err.startswith("sashimi-wb: ")


@pytest.mark.slow
def test_models_are_compared_on_what_they_read(folder):
    frozen = Path(__file__).with_name("frozen")/"models"
    digits, wide = load_model("digits"), load_model(frozen/"dml.safetensors")
    models = {"digits": digits, "again": digits, "wide": wide}
    speech = bundled("data/digits/eight_en-us-f1.flac")
    mono, stereo = sizes([folder/"a.wav", speech], models)
    assert "8 bit mu-law, mono, 8,000 Hz" in mono.form and "stereo, 16,000 Hz" in stereo.form
    rows = {row["coder"]: row for row in mono.totals()}
    assert list(rows) == [*HERE, "digits", "again"] and all(row["lossless"] for row in rows.values())
    assert rows["FLAC 8"]["samples"] == 8000 + -(-4000*8000//44_100)
    assert rows["digits"]["bytes"] == rows["again"]["bytes"] < 0.9*rows["FLAC 8"]["bytes"]
    assert max(row["bits_per_sample"] for row in rows.values()) < 8
    assert {row["file"] for row in stereo.files} == {str(folder/"a.wav")} and "wide" in stereo.lines()[-2]
    assert "channel" in stereo.left_out[str(speech)]
    sf.write(folder/"lossy.ogg", np.zeros((3000, 2)), 8000)               # its samples are converted
    (found, _) = sizes([folder/"lossy.ogg"], models)
    assert not found.left_out

