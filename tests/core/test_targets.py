"""Output paths are checked before any work, failures leave an older file, and commands report errors in one line."""
import io
import json
import logging
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from made_models import save_model
from tqdm.auto import tqdm

from sashimi_wb import cli
from sashimi_wb.audio.index import cache_path
from sashimi_wb.audio.writing import SoundWriter
from sashimi_wb.cli import generate_file, main, run_ablations
from sashimi_wb.coding.compression import compress
from sashimi_wb.core.system import check_target, write_atomic
from sashimi_wb.studies import run as runs
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.report import clips_figure, clips_of, players
from sashimi_wb.studies.run import Run, execute
from sashimi_wb.studies.study_files import get_study

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions, links and limits as on POSIX")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.fixture
def place(tmp_path):
    """A folder with all kinds of paths that a file cannot be written to."""
    for name in ("folder.wav", "closed"): (tmp_path / name).mkdir()
    for name in ("old.wav", "kept.wav"): soundfile.write(tmp_path / name, np.zeros(10), 4000)
    (tmp_path / "kept.wav").chmod(0o444)
    if os.name == "posix":
        (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
        (tmp_path / "dangling.wav").symlink_to(tmp_path / "new" / "there.wav")
        (tmp_path / "link.wav").symlink_to(tmp_path / "old.wav")
        os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "text").write_text("")
    return tmp_path


BAD = [("folder.wav", "it is a folder"), ("folder.wav/", "it is a folder"), ("text/x.wav", "is not a folder"),
       ("kept.wav", "it is read-only"), ("loop.wav", "not a regular file"), ("pipe.wav", "not a regular file"),
       ("x"*252 + ".wav", "at most 255 bytes"), ("ö"*126 + ".wav", "at most 255 bytes"),
       ("deep/"*900 + "x.wav", "in a path of less than"), ("a\0b.wav", "name of a file"),
       ("", "ends in .flac|name of a file"), ("x", "ends in .flac or .wav"), ("x.mp3", "ends in .flac or .wav")]


@POSIX
@pytest.mark.parametrize("name,why", BAD)
def test_a_target_is_refused_before_the_model_is_read(place, capsys, monkeypatch, name, why):
    before = sorted(p.name for p in place.iterdir())
    monkeypatch.setattr(cli, "load_model", lambda path: pytest.fail("the model was read"))
    assert main(["generate", "model.safetensors", "--output", f"{place}/{name}" if name else ""]) == 2
    err = capsys.readouterr().err
    assert re.search(why, err) and err.startswith("sashimi-wb: ") and err.count("\n") == 1
    assert sorted(p.name for p in place.iterdir()) == before


@POSIX
def test_valid_targets(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(place)
    whole = place.resolve()
    for given, want in (("~/x.wav", "x.wav"), ("link.wav", "old.wav"), ("dangling.wav", "new/there.wav"),
                        ("new/deep/x.flac", "new/deep/x.flac"), ("ö"*125 + ".wav", "ö"*125 + ".wav"),
                        ("X.FLAC", "X.FLAC"), ("./closed/../y.wav", "y.wav")):
        assert check_target(given, ("wav", "flac")) == whole / want
    assert not (place / "new").exists() and check_target("text") == whole / "text"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != whole / "closed")
    with pytest.raises(PermissionError, match="folder .*closed is read-only"): check_target("closed/x.wav")


@pytest.mark.slow
@POSIX
def test_a_link_stays_and_its_file_is_replaced(place, model):
    out = generate_file(model, str(place / "link.wav"), 0.01, progress=False)
    assert out.is_symlink() and soundfile.info(place / "old.wav").frames == 40
    generate_file(model, str(place / "dangling.wav"), 0.01, progress=False)
    assert soundfile.info(place / "new" / "there.wav").frames == 40
    generate_file(model, f"{place}/{'ö'*125}.wav", 0.01, progress=False)      # the longest possible name
    assert not [p for p in place.rglob("*.tmp")]


@pytest.mark.parametrize("more,words", [
    (["--seconds", "inf"], "seconds: expected a number above 0, got inf"), (["--seconds", "nan"], "got nan"),
    (["--seconds", "-1"], "got -1.0"),
    (["--seconds", "1e12"], "a flac file .* holds at most"), (["--seconds", "1e308"], "holds at most"),
    (["--seconds", "1e7", "--output", "x.wav"], "a wav file .* holds at most .*or a .flac"),
    (["--temperature", "nan"], "temperature"), (["--temperature", "inf"], "temperature"),
    (["--top-p", "nan"], "top_p"), (["--top-k", "0"], "top_k"), (["--top-k", "-3"], "top_k"),
    (["--seed", "-1"], "seed"), (["--seed", "9"*30], "seed"),
    (["--prompt-start", "nan", "--prompt", "p.wav"], "start of the prompt"),
    (["--prompt-start", "-1", "--prompt", "p.wav"], "start of the prompt"),
    (["--prompt-seconds", "inf", "--prompt", "p.wav"], "seconds of the prompt"),
    (["--prompt-start", "1e308", "--prompt", "p.wav"], "start of the prompt"), (["--bits", "12"], "known: 8, 16, 24")])
def test_numbers_of_generate(tmp_path, model, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    soundfile.write("p.wav", np.zeros(400), 4000)
    assert main(["generate", model, *more]) == 2
    err = capsys.readouterr().err
    assert re.search(words, err) and "Traceback" not in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["p.wav"]


@pytest.mark.parametrize("more,words", [
    (["--workers", "-1"], "workers: expected an integer from 0 to 1,024, got -1"), (["--workers", "99999"], "workers"),
    (["--seeds", "0"], "n_seeds"), (["--seeds", "-2"], "n_seeds"), (["--seeds", "1000000000"], "n_seeds"),
    (["--preset", "smal"], "did you mean 'small'"), (["--preset", ""], "unknown preset")])
def test_numbers_of_ablations_come_before_everything(tmp_path, capsys, more, words):
    assert main(["ablations", "--runs", str(tmp_path / "runs"), *more]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match="n_seeds"): run_ablations(preset="smoke", n_seeds=True, runs=str(tmp_path))


def test_a_study_is_not_a_preset_and_the_other_way_round(tmp_path, capsys):
    for words, other in (("train state_size", "study state_size"), ("study smoke", "train smoke")):
        assert main([*words.split(), "--runs", str(tmp_path/"runs")]) == 2
        assert f"sashimi-wb {other}" in capsys.readouterr().err and not (tmp_path/"runs").exists()


@pytest.mark.parametrize("arguments", [["--nonsense"], [], ["generate"], ["ablations", "--seeds", "two"],
                                       ["generate", "m", "--sekonds", "1"]])
def test_unknown_options(arguments, capsys):
    with pytest.raises(SystemExit) as e: main(arguments)
    assert e.value.code == 2 and "usage: sashimi-wb" in capsys.readouterr().err


WRITERS = {   # every way to write a file under its final name
    "note.txt": lambda path: write_atomic(path, "text"),
    "clip.wav": lambda path: write_clip(path, np.zeros((10, 1), "float32")),
    "song.swb": lambda path: compress(io.BytesIO(b"no sound"), path, overwrite=True),
}


def write_clip(path, wave):
    with SoundWriter(path, 8000) as f: f.write(wave)


@POSIX
@pytest.mark.parametrize("name", WRITERS)
def test_who_may_read_a_file_is_decided_by_the_user(tmp_path, name):
    def mode(path): return path.stat().st_mode & 0o777
    path, before = tmp_path/name, os.umask(0o077)
    try:
        WRITERS[name](path)
        assert mode(path) == 0o600
        os.umask(0o002)
        WRITERS[name](path)
        assert mode(path) == 0o600          # that of the file which it replaces
        path.unlink()
        WRITERS[name](path)
        assert mode(path) == 0o664
    finally: os.umask(before)
    longest = tmp_path/("ö"*120 + path.suffix)
    WRITERS[name](longest)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, longest.name])


@pytest.mark.slow
@POSIX
def test_a_full_disk_leaves_the_old_file(tmp_path, model, capsys):
    """A limit on the size of files makes a write fail in the middle, as on a full disk."""
    import resource
    for kind in ("wav", "flac"):
        out = tmp_path / f"out.{kind}"
        soundfile.write(out, np.zeros(123), 4000)
        old = out.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try: status = main(["generate", model, "--output", str(out), "--seconds", "20"])
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert status == 2 and "cannot write" in capsys.readouterr().err
        assert out.read_bytes() == old and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("error,kept", [(KeyboardInterrupt, 7), (ValueError, 10), (OSError, 10), (None, 7)])
def test_what_becomes_of_an_older_file(tmp_path, error, kept):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(10), 4000)
    def write(n):
        with SoundWriter(path, 4000) as f:
            if n: f.write(np.zeros((n, 1)))
            if error: raise error("on the way")
    for n, frames in ((0, 10), (7, kept)):
        if error:
            with pytest.raises(error, match="on the way"): write(n)
        else: write(n)
        assert soundfile.info(path).frames == frames and [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_a_missing_sample_is_noticed(tmp_path, monkeypatch):
    """A file that is shorter than the samples written to it never replaces the older file."""
    soundfile.write(tmp_path / "a.wav", np.zeros(10), 4000)
    with pytest.raises(OSError, match="not all samples could be written"), SoundWriter(tmp_path / "a.wav", 4000) as f:
        f.write(np.zeros((7, 1)))
        f.frames += 1
    assert soundfile.info(tmp_path / "a.wav").frames == 10


def test_messages_have_lines_of_their_own(tmp_path, model, monkeypatch, capsys):
    """A progress bar that an error leaves open ends before the message; a log line during a bar has its own line."""
    def broken(self, *args):
        bar = tqdm(total=10, file=sys.stderr)
        bar.update(3)
        logging.getLogger("sashimi_wb").warning("something to know")
        yield torch.zeros(64, 1)
        threading.bar = bar                      # keep it after the error
        raise ValueError("not finite at sample 64")
    monkeypatch.setattr("sashimi_wb.studies.trained_models.TrainedModel.stream", broken)
    root = logging.StreamHandler(sys.stderr)
    root.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().addHandler(root)
    try: assert main(["generate", model, "--output", str(tmp_path / "x.wav")]) == 2
    finally: logging.getLogger().removeHandler(root)
    shown = [re.split("\r", line)[-1] for line in capsys.readouterr().err.split("\n")]
    assert "sashimi-wb: not finite at sample 64" in shown and "something to know" in shown
    del threading.bar


@pytest.mark.parametrize("own,shared,want", [
    ("", "", "~/.cache/sashimi_wb"), ("~/mine", "", "~/mine"), ("relative", "", "./relative"),
    ("", "relative", "~/.cache/sashimi_wb"),
    ("", "/somewhere", "/somewhere/sashimi_wb"), ("/a/b", "/somewhere", "/a/b")])
def test_the_cache_folder(tmp_path, monkeypatch, own, shared, want):
    monkeypatch.chdir(tmp_path)
    for name, value in (("HOME", str(tmp_path / "home")), ("SASHIMI_WB_CACHE", own), ("XDG_CACHE_HOME", shared)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os.path, "expanduser", lambda p: re.sub("^~", str(tmp_path / "home"), str(p)))
    want = want.replace("~", str(tmp_path / "home")).replace("./", f"{tmp_path}/")
    assert cache_path().parent == Path(want)


@pytest.mark.slow
def test_a_run_without_a_continuation_keeps_its_record(tmp_path, monkeypatch):
    why = "the model's output is <not> finite"
    def silent(*args, **kw): raise ValueError(why)
    monkeypatch.setattr(runs, "generate", silent)
    run = Run(experiment("smoke", {"steps": 1, "d_model": 4}), runs=tmp_path)
    record = execute(run, progress=False)
    assert run.done and json.loads(run.result_path.read_text())["no_continuation"] == why
    records = {"arm": [record | {"folder": str(run.folder)}]}
    assert sorted(clips_of(records)["arm"]) == ["original", "quantized"] and (run.folder / "model.safetensors").exists()
    shown = players(get_study("quantized_vs_raw"), records).data
    assert "arm has no continuation: the model" in shown and "output is &lt;not&gt; finite" in shown
    assert clips_figure(get_study("quantized_vs_raw"), records)


def test_a_rate_that_no_player_takes_is_refused_before_the_training(tmp_path):
    with pytest.raises(ValueError, match="target_sr.*3,000 to 384,000 Hz.*got 2000"):
        Run(experiment("smoke", {"target_sr": 2000}), runs=tmp_path)
