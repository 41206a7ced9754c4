"""Wrong input of a user, through the top of the library: errors name what was expected, what came and what to do.

Folders, files, windows, sample rates and damaged audio are tested in tests/audio, bits and samples in tests/tokens,
killed runs in tests/training.
"""
import errno
import json
import os
import sys

import numpy as np
import pytest
from made_audio import write
from made_runs import make_run

from sashimi_wb.audio.files import probe, read_frames, read_span
from sashimi_wb.cli import load_model, main, possible
from sashimi_wb.core.system import bundled, write_atomic
from sashimi_wb.pages.sound_picker import own_audio, read_sound
from sashimi_wb.studies.batch import run_all
from sashimi_wb.studies.experiment import Experiment, arm_parameters, experiment
from sashimi_wb.studies.run import Run, execute
from sashimi_wb.studies.study_files import get_study, study_parameters

pytestmark = pytest.mark.slow

SMOKE = experiment("smoke")


@pytest.mark.parametrize("changes, words", [
    ({"bits": 0}, "integer from 1 to 24, got 0"),
    ({"bits": 17}, "integer from 1 to 16, got 17"),
    ({"bits": 12, "head": "bytes"}, "expected 8, 16 or 24, got 12"),
    ({"head": "bytes", "input": "raw", "encoder": "linear_projection"}, "a byte at a time"),
    ({"bits": "8.5"}, "got '8.5' (str)"),
    ({"encoder": "mel"}, "unknown encoder 'mel'; known: embedding"),
    ({"head": "softmax"}, "known: categorical"),
    ({"kernel": "hyena"}, "known: dplr, diag"),
    ({"steps": (5, 3)}, "rising counts"),
    ({"input": "raw", "encoder": "embedding"}, "the encoder embedding takes codes, got input='raw'"),
    ({"tie_weights": True, "input": "raw"}, "cannot be tied to linear_projection"),
    ({"tie_weights": True, "encoder": "sinusoidal"}, "its table is fixed"),
    ({"tie_weights": True, "head": "dml"}, "three rows per mixture part"),
    ({"tie_weights": True, "head": "bytes", "bits": 16}, "a row for every byte and place"),
    ({"sampel_len": 3}, "unknown parameter sampel_len; known: bits"),
])
def test_parameters(changes, words):
    with pytest.raises(ValueError) as e: experiment("smoke", changes)
    assert words in str(e.value)


@pytest.mark.parametrize("changes, words", [
    ({"interleaving_strategy": "zigzag", "channels": "stereo"}, "zigzag"),
    ({"channels": "surround"}, "known"),
    ({"quantization": "vector"}, "known"),
    ({"sample_len": 10**7, "drop_last": True}, "longer than every file"),
    ({"bits": 24, "head": "bytes", "quantization": "mu_law"}, "from 1 to 16, got 24"),
    ({"context_len": -1}, "context_len"),
    ({"dataset": "musdb"}, "known: folder"),
    ({"dataset": "sc09"}, "validation_list.txt"),
])
def test_parameters_of_the_audio(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words): Run(experiment("smoke", changes), runs=tmp_path)


def test_preset_and_study():
    with pytest.raises(ValueError, match="unknown preset 'big'; known: sashimi-musdb18mono"): experiment("big")
    with pytest.raises(ValueError, match="unknown study 'loud'; known: quantized_vs_raw"): get_study("loud")
    with pytest.raises(ValueError, match="seeds: expected an integer from 1"): get_study("bit_depth").given(SMOKE, 0)


def test_notebook_parameters():
    message = ("unknown parameter n_seed; known: preset, n_seeds, audio, runs, workers, predictor, study; "
               "did you mean 'n_seeds'")
    with pytest.raises(ValueError, match=message):
        study_parameters({"preset": "smoke", "n_seed": 2, "_i1": "", "In": []})


def test_the_notebook_of_a_run_takes_every_parameter():
    cells = json.loads(bundled("nbs/experiments/train_arm.ipynb").read_text())["cells"]
    cell, = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    names = [line.split(" = ")[0] for line in "".join(cell["source"]).splitlines()]
    # papermill passes all others as well
    assert names == ["preset", "audio", "runs", "changes", "device", "n_processes"]
    given = {name: None for name in Experiment.__dataclass_fields__}
    defaults = {"preset": "smoke", "audio": "", "runs": "", "changes": {}, "device": "cpu"}
    assert arm_parameters(defaults | given) == (SMOKE, "", "")
    assert arm_parameters(defaults | {"seed": "3"})[0].seed == 3


def test_missing_and_mono_audio(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"): Run(SMOKE, tmp_path/"nowhere", tmp_path)
    with pytest.raises(ValueError, match="stereo"):
        Run(experiment("smoke", {"channels": "stereo"}), bundled("data/digits"), tmp_path)


def test_the_command_line_says_it_in_one_line(capsys):
    assert main(["ablations", "--audio", "/no/such/folder"]) == 2
    assert main(["generate", "/no/such/model.safetensors"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("sashimi-wb: ") for line in lines)


def test_a_foreign_model_file(tmp_path):
    (tmp_path/"model.safetensors").write_bytes(b"\x80\x04 no tensors here")
    with pytest.raises(ValueError, match="safetensors"): load_model(tmp_path/"model.safetensors")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/"file").write_text("")
    run = Run(SMOKE, runs=tmp_path/"file")
    with pytest.raises(OSError, match="cannot write .*: choose another folder"): execute(run, progress=False)


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    path = write_atomic(tmp_path/"result.json", "old")
    def full(handle): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*free some space"): write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_failing_run_is_named_and_the_others_end(tmp_path, monkeypatch):
    import sashimi_wb.cluster.jobs as cluster_jobs
    seen = []
    def fake(name, output, parameters, *_):
        seed = json.loads(parameters["changes"])["seed"]
        seen.append(seed)
        if seed == 0: raise RuntimeError("out of luck")
        make_run(tmp_path, seed=seed, **{k: getattr(SMOKE, k) for k in ("quantization", "prompt_s", "continuation_s")})
    monkeypatch.setattr(cluster_jobs, "run_notebook", fake)
    both = [SMOKE, experiment("smoke", {"seed": 1})]
    damaged = Run(both[1], runs=tmp_path)
    write_atomic(damaged.result_path, json.dumps({"hash": damaged.hash}))           # it is made again
    with pytest.raises(RuntimeError, match="out of luck"): run_all(both, runs=tmp_path, progress=False)
    assert sorted(seen) == [0, 1] and Run(both[1], runs=tmp_path).done


@pytest.mark.parametrize("channels, left_out", [
    ((2, 2, 2), None), ((1, 1, 1), "has one"), ((6, 6, 6), "has 6"), ((2, 6, 2), "b.wav has 6"),
    ((2, 2, 1), "c.wav has one"), ((8, 1, 2), "a.wav has 8")])
def test_ablations_that_need_two_channels_are_left_out_with_a_message(tmp_path, caplog, channels, left_out):
    for name, n in zip("abc", channels): write(tmp_path, f"{name}.wav", 300, n)
    with caplog.at_level("WARNING", "sashimi_wb"): names = possible(str(tmp_path))
    assert names == ["quantized_vs_raw"] + ["mono_vs_stereo"]*(not left_out) + ["bit_depth", "added_to_prediction"]
    assert (left_out in caplog.text) if left_out else not caplog.text
    if left_out:
        with pytest.raises(ValueError,
                           match=r"[abc].wav: channels='left' needs a stereo file, this one has \d channel"):
            Run(get_study("mono_vs_stereo").given(SMOKE).jobs["left"][0][0], tmp_path, tmp_path/"runs")
    wave = read_span(probe(tmp_path/"b.wav"))
    # mono is the mean of all
    np.testing.assert_allclose(wave, read_frames(probe(tmp_path/"b.wav"), 0, 300).mean(1, keepdims=True))


def test_pages_show_the_mean_of_six_channels(tmp_path):
    sound = read_sound(write(tmp_path, "a.wav", 300, 6))
    assert sound.wave.shape == (300, 1) and sound.name == "a.wav (mean of 6 channels)"
    np.testing.assert_allclose(sound.wave, read_span(probe(tmp_path/"a.wav")))


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, as Linux has them")
def test_pages_show_names_that_are_no_unicode(tmp_path):
    write(tmp_path, "a.wav", 300).rename(tmp_path/os.fsdecode(b"caf\xe9.wav"))
    (label, path), = own_audio(tmp_path).items()
    sound = read_sound(path)
    assert label == rf"own: {sound.name}" == r"own: caf\udce9.wav" and sound.wave.shape == (300, 2)
    assert write_atomic(tmp_path/"page.html", path).read_text(encoding="utf-8") == rf"{tmp_path}/caf\udce9.wav"
