"""`sashimi-wb generate`: files at a model's rate and depth, written as they come; stopping keeps what was made."""
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from made_audio import noise
from made_models import save_model

from sashimi_wb.cli import generate_file, main
from sashimi_wb.studies.trained_models import load_model
from sashimi_wb.synthesis.generation import generate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.fixture
def prompt(tmp_path):
    soundfile.write(tmp_path / "prompt.wav", noise(6000), 8000)
    return str(tmp_path / "prompt.wav")


@pytest.mark.parametrize("kind, bits, head, subtype", [
    ("wav", 8, "categorical", "PCM_U8"), ("flac", 8, "categorical", "PCM_S8"), ("flac", 12, "dml", "PCM_16"),
    ("wav", 16, "dml", "PCM_16"), ("wav", 24, "bytes", "PCM_24"), ("flac", 24, "bytes", "PCM_24")])
def test_files_hold_what_the_model_generated(tmp_path, kind, bits, head, subtype):
    path = save_model(tmp_path / "model.safetensors", bits=bits, head=head)
    out = generate_file(path, f"{tmp_path}/out.{kind}", 0.02, seed=3, progress=False)
    info = soundfile.info(out)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (4000, 1, subtype, 80)
    said = generate(load_model(path).model, 80, seed=3, progress=False)[0].double().numpy()
    assert np.array_equal(soundfile.read(out, dtype="float64", always_2d=True)[0], said)


def test_stereo_prompt_and_depth(tmp_path, prompt):
    path = save_model(tmp_path / "model.safetensors", channels="stereo", interleaving_strategy="blocking-16")
    assert main(["generate", str(path), "--output", f"{tmp_path}/out.wav", "--seconds", "0.05", "--prompt", prompt,
                 "--prompt-start", "0.1",
                 "--prompt-seconds", "0.1", "--bits", "24", "--top-k", "5", "--top-p", "0.9"]) == 0
    info = soundfile.info(f"{tmp_path}/out.wav")
    assert (info.channels, info.subtype, info.frames) == (2, "PCM_24", 400 + 200)
    trained = load_model(path)
    samples = trained.read_prompt(prompt, 0.1, 0.1)
    assert samples.shape == (400, 2)
    wave = soundfile.read(f"{tmp_path}/out.wav", dtype="float32")[0]
    assert np.abs(wave[:400] - samples.numpy()).max() < 2**-7     # as the model samples it: rounded to 8 bits


def test_mu_law_needs_a_deeper_file(tmp_path):
    path = save_model(tmp_path / "model.safetensors", quantization="mu_law")
    assert soundfile.info(generate_file(path, f"{tmp_path}/out.wav", 0.01, progress=False)).subtype == "PCM_16"


@pytest.mark.parametrize("more, words", [
    (["--output", "out.mp3"], "ends in .flac or .wav"), (["--bits", "12"], "known: 8, 16, 24"),
    (["--seconds", "0"], "above 0, got 0"), (["--temperature", "-1"], "temperature"), (["--top-p", "2"], "top_p"),
    (["--prompt", "nowhere.wav"], "no audio file nowhere.wav"),
    (["--device", "abacus"], "abacus")])
def test_errors_are_one_line(tmp_path, model, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", model, *more]) == 2
    err = capsys.readouterr().err.strip()
    assert words in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_prompt_outside_its_file(tmp_path, model, prompt, capsys):
    assert main(["generate", model, "--output", f"{tmp_path}/out.wav", "--prompt", prompt, "--prompt-start", "9"]) == 2
    assert "within its 0.75 s" in capsys.readouterr().err


def test_an_error_on_the_way_keeps_what_was_made(tmp_path, model, monkeypatch):
    """And what stood under that name before is replaced only by a whole file."""
    out = tmp_path / "out.wav"
    def broken(self, *args):
        yield torch.zeros(64, 1)
        assert not out.exists()
        raise ValueError("not finite at sample 64")
    monkeypatch.setattr("sashimi_wb.studies.trained_models.TrainedModel.stream", broken)
    with pytest.raises(ValueError, match="not finite at sample 64"): generate_file(model, str(out))
    assert soundfile.info(out).frames == 64
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_interrupted(tmp_path, model):
    """Ctrl-C: the file is finished and kept, exit status 130, a line that says how much."""
    # a shell without job control lets its background jobs, and their children, ignore SIGINT
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from sashimi_wb.cli import main; sys.exit(main(sys.argv[1:]))")
    command = [sys.executable, "-c", code, "generate", model, "--output", "long.flac", "--seconds", "100000"]
    said, end = tmp_path / "said.txt", time.monotonic() + 300
    with open(said, "w") as f: process = subprocess.Popen(command, cwd=tmp_path, stderr=f)
    try:
        while not re.search(r"[1-9]k/400M.* x real time", said.read_text()) and time.monotonic() < end:
            time.sleep(0.05)   # 1,000 samples at least
        time.sleep(0.5)
        assert not (tmp_path / "long.flac").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130, said.read_text()
    finally: process.kill()
    kept, err = soundfile.info(tmp_path / "long.flac"), said.read_text()
    assert kept.frames > 0 and f"stopped; {kept.duration:.2f} s of audio are in long.flac" in err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.flac", "said.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, as Linux has them")
def test_names_that_are_no_unicode(tmp_path, capfd):
    """Model, prompt, folder and output; what is said of them goes to any terminal."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    path = save_model(tmp_path / "model.safetensors")
    odd.mkdir()
    path.rename(odd / path.name)
    soundfile.write(tmp_path / "prompt.wav", noise(6000), 8000)
    (tmp_path / "prompt.wav").rename(prompt := odd / os.fsdecode(b"\xff.wav"))
    for kind in ("wav", "flac"):
        out = odd / os.fsdecode(b"out \xfe." + kind.encode())
        assert main(["generate", str(odd / path.name), "--output", str(out), "--seconds", "0.01", "--prompt",
                     str(prompt), "--prompt-seconds", "0.01"]) == 0
        said, err = capfd.readouterr()
        assert rf"caf\udce9/out \udcfe.{kind}" in said and "Traceback" not in err
        with open(out, "rb") as f: assert soundfile.info(f).frames == 80
    assert main(["generate", str(odd / "none.safetensors")]) == 2 and "no checkpoint at" in capfd.readouterr()[1]
    assert sorted(os.fsencode(p.name)
                  for p in odd.iterdir()) == sorted([b"model.safetensors", b"\xff.wav", b"out \xfe.wav",
                                                     b"out \xfe.flac"])
