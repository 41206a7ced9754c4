"""From files of one's own to a model, its bits, its sound and a data frame, as the README says."""
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
import torch

import sashimi_wb as wb
from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.audio.own_files import audio_parts
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.pages.run_views import repeat_command
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run_table import read_runs
from sashimi_wb.studies.trained_models import TrainedModel, load_model
from sashimi_wb.synthesis.generation import generate
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.training.evaluation import evaluate_whole
from sashimi_wb.training.recipe import TrainConfig
from sashimi_wb.training.trainer import fit

ROOT = Path(__file__).resolve().parents[2]
TINY = {"steps": 2, "d_model": 4, "d_state": 4, "progress": False}


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch): monkeypatch.setenv("SASHIMI_WB_RUNS", str(tmp_path/"runs"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two sounds of 1.5 s at 4 kHz in two channels, which differ."""
    folder, rng, t = tmp_path_factory.mktemp("files"), np.random.default_rng(0), np.arange(6000)/4000
    for i, name in enumerate("ab"):
        wave = [0.2*np.sin(2*np.pi*(200 + 70*i + 31*c)*t) + 0.02*rng.standard_normal(len(t)) for c in range(2)]
        soundfile.write(folder/f"{name}.wav", np.stack(wave, 1), 4000, "PCM_16")
    return folder


def untrained(**changes):
    """A trained model that has not been trained."""
    e = experiment("smoke", {"d_model": 4, "d_state": 4, **changes})
    torch.manual_seed(0)
    return TrainedModel(WaveModel(e.model_config()).eval(), e, e.target_sr)


def ten_lines() -> list[str]:
    """The statements of the README's example, without comments."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", (ROOT/"README.md").read_text("utf-8"), re.S)
                 if "load_audio" in b)
    return [line.split("  #")[0].rstrip() for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_ten_lines_of_the_readme(monkeypatch):
    names, shown = {}, []
    for line in ten_lines():
        small = line.replace('preset="small", steps=120', 'preset="smoke", steps=2, d_model=4, test_s=60')
        try: shown.append(eval(small.replace("seconds=2", "seconds=0.1"), names))    # noqa: S307
        except SyntaxError: exec(small, names)                                        # noqa: S102
    players, bits, clip, rows = shown
    assert players.data.count("<audio") == 6
    assert isinstance(bits, float) and 0 < bits < 12 and 0 < bits.flac < 8 and 0 < bits.adaptive < 8
    assert clip.n_prompt and clip.continuation.seconds == 0.1 and "<audio" in clip._repr_html_()
    assert list(rows["predictor"]) == ["none", "adaptive"] and rows["whole"].iloc[1] == pytest.approx(bits)


def test_the_first_lesson_has_the_same_lines():
    lesson = nbformat.read(ROOT/"nbs"/"first.ipynb", 4)
    code = {line for cell in lesson.cells if cell.cell_type == "code" for line in cell.source.splitlines()}
    assert len(ten_lines()) == 10 and set(ten_lines()) <= code


def test_names_are_found_without_torch():
    code = ("import sys, sashimi_wb as wb\nnames = dir(wb)\n"
            "assert {'load_audio', 'fit', 'frame', 'load_model', 'trainer'} <= set(names), names\n"
            "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules), 'imported too early'\n"
            "for name in wb.FACE: getattr(wb, name)\nassert not {'lightning', 'pandas'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'load_video'; names: load_audio"): getattr(wb, "load_video")


@pytest.mark.parametrize("changes", [{}, {"quantization": "linear", "bits": 16, "head": "dml"}, {"input": "raw"},
                                     {"channels": "stereo", "interleaving_strategy": "blocking-16"}])
def test_bits_are_those_of_the_whole_file(files, changes):
    model = untrained(**changes)
    parts = audio_parts(files/"a.wav", test=files/"b.wav")
    config = model.experiment.data_config("x")
    if model.experiment.input == "raw": config = AudioData(config, parts=parts).changed(input="dequantized").config
    data = AudioData(config, parts=parts)
    data.test.lengths = [6000]                                       # the preset scores half a second
    whole = evaluate_whole(model.model, data, "cpu", ks=())
    found = model.bits(files/"b.wav", progress=False)
    assert found == whole["bits_per_sample"] and found.seconds == 1.5 and found.codes == model.quantizer.name
    assert f"{found:.2f}" == f"{float(found):.2f}" and "b.wav" in repr(found) and "FLAC" in found._repr_html_()


def test_a_model_file_holds_the_quantizer(files, tmp_path):
    model = untrained(quantization="mu_law", bits=8)
    again = load_model(model.save(tmp_path/"it.safetensors"))
    made = again.generate(files/"b.wav", 0.05, prompt_s=0.1, seed=4, temperature=1.0, progress=False)
    prompt = again.read_prompt(files/"b.wav", 0, 0.1)
    assert np.array_equal(made.continuation, generate(again.model, 200, prompt, seed=4, progress=False)[0])
    levels = Quantizer("mu_law", 8).decode(torch.arange(256))
    assert np.isin(np.asarray(made), levels.clamp(-1, 1).numpy()).all()
    assert (again.sample_rate, again.channels, again.layout, again.predictor) == (4000, "mono", "temporal", "none")
    with pytest.raises(ValueError, match="safetensors"): model.save(tmp_path/"it.pt")


@pytest.mark.slow
def test_a_checkpoint_of_the_trainer_is_a_model_too(files, tmp_path):
    parts = audio_parts(files/"a.wav", test=files/"b.wav")
    data = AudioData(DataConfig("x", bits=6, quantization="mu_law", sample_len=64, train_chunk_size=2,
                                val_chunk_size=1), parts=parts)
    model = WaveModel(ModelConfig(bits=6, backbone=SaShiMiConfig(4, 1, kernel=KernelConfig(d_state=4))))
    fit(model, data, TrainConfig(max_steps=2, device="cpu"), tmp_path/"mine", progress=False)
    found = load_model(tmp_path/"mine")
    assert (found.quantizer, found.sample_rate, found.experiment) == (data.quantizer, 4000, None)
    assert 4 < found.bits(files/"b.wav", progress=False) < 9
    assert found.generate(files/"b.wav", 0.02, progress=False).seconds > 0.02
    assert load_model(found.save(tmp_path/"copy.safetensors")).name == found.name == "6 bit mu-law, mono, 4 kHz"


@pytest.mark.slow
def test_a_run_on_own_files_is_a_run(files, tmp_path, monkeypatch):
    sounds = wb.load_audio([files/"a.wav"], test=[files/"b.wav"], bits=6, quantization="mu_law")
    model = wb.fit(sounds, "smoke", **TINY)
    run = model.path.parent.name
    assert model.path.parent.parent == tmp_path/"runs" and model.quantizer == Quantizer("mu_law", 6)
    assert load_model(run[:6]).path == load_model(f"{tmp_path}/runs/{run[:5]}").path == model.path
    assert model.record["own_files"]["test"] == ["b.wav"] and model.provenance["run"] == run
    assert wb.frame([run[:6]]).loc[run[:6], "audio"] == "b" and list(wb.frame().index) == [run[:6]]
    assert "6 bit mu-law" in model._repr_html_() and run in model._repr_html_()
    line = repeat_command(read_runs()[0][0]).removeprefix("import sashimi_wb as wb; ")
    monkeypatch.chdir(files)                                         # the line to copy makes the same run
    assert eval(line, {"wb": wb}).path == model.path                 # noqa: S307
    (model.path.parent/"model.safetensors").unlink()
    with pytest.raises(ValueError, match="not finished"): load_model(run)
    with pytest.raises(ValueError, match="quantization: the sounds decide it"):
        wb.fit(sounds, "smoke", quantization="linear")
    found = wb.ablate("smoke", sounds, here=True, seeds=1, **TINY | {"d_state": [2, 6]})
    assert list(found.frame["d_state"]) == [2, 6] and list(wb.frame()["audio"]) == ["b"]*3
    with pytest.raises(ValueError, match="bits: the sounds decide it"): wb.ablate("smoke", sounds, bits=[8, 16])


def test_parts_of_one_file_do_not_overlap(files):
    parts = audio_parts(files/"a.wav", held_out=0.2)
    assert [f[0].frames for f in parts] == [3600, 1200, 1200]
    config = DataConfig("x", sample_len=100, target_sr=2000, drop_last=False)
    wave = soundfile.read(files/"a.wav")[0]
    wave[3600:] = 0.5                                                # what comes after the training part changes
    soundfile.write(files/"c.wav", wave, 4000, "PCM_16")
    other = audio_parts(files/"c.wav", held_out=0.2)
    ours, theirs = (AudioData(config, parts=p) for p in (parts, other))
    assert all(torch.equal(a["y"], b["y"]) for a, b in zip(ours.train, theirs.train))
    third = AudioData(config, parts=audio_parts(files/"c.wav"))
    assert len({data.fingerprint() for data in (ours, theirs, third)}) == 3
