"""Runs that are killed, damaged, repeated or shortened give the results of an unbroken run, or a clear error."""
import json
import os
import random
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from made_runs import make_run

from sashimi_wb.audio.windows import WindowDataset
from sashimi_wb.cluster.jobs import share_done
from sashimi_wb.core.entropy import entropy_bits
from sashimi_wb.core.locks import clear_leftovers, holding
from sashimi_wb.core.sources import code_sources
from sashimi_wb.core.system import bundled, read_json, to_json, write_atomic
from sashimi_wb.models.wave_model import WaveModel
from sashimi_wb.studies import run as runs_module
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run import Run, execute
from sashimi_wb.studies.run_table import read_runs
from sashimi_wb.studies.trained_models import find_models, load_model
from sashimi_wb.training import trainer
from sashimi_wb.training.checkpoints import load_tree, read_weights, save_tree, save_weights

pytestmark = pytest.mark.slow

TWO = experiment("smoke", {"steps": (2, 6), "dropout": 0.1})
CLIPS = ("original.flac", "quantized.flac", "continuation.flac")


class Cut(Exception): "A power cut."


def cut(*args, **kwargs): raise Cut


def figures(record):
    "What two equal runs have in common to the last bit."
    return record["results"], record["curve"], [v | {"seconds": 0} for v in record["validation"]], record["baselines"]


def test_equal_test_codes_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SASHIMI_WB_CACHE", str(tmp_path/"cache"))
    measured, measure = [], runs_module.all_baselines
    def counted(files, bits, *more):
        measured.append(bits)
        return measure(files, bits, *more)
    monkeypatch.setattr(runs_module, "all_baselines", counted)
    def found(**changes):
        return runs_module.baselines(Run(experiment("smoke", changes), bundled("data/digits"), tmp_path).data)
    first = found()
    assert {"adaptive", "flac8", "flac8_linear"} <= set(first) and measured == [8]
    assert found(input="raw", encoder=None, lr=.1, seed=3) == first and measured == [8]   # the same codes
    (file,) = (tmp_path/"cache"/"baselines").glob("*.json")
    assert json.loads(file.read_text()) == first
    for changes in ({"bits": 7}, {"quantization": "linear"}, {"target_sr": 5000}, {"test_s": .2}): found(**changes)
    assert measured == [8, 7, 8, 8, 8]
    file.write_text('{"order0": ')                                                       # cut off
    assert found() == first and measured == [8, 7, 8, 8, 8, 8]
    file.write_text(json.dumps({"order0": "few"}))
    assert found() == first and len(measured) == 7
    file.unlink()
    threads = [threading.Thread(target=found) for _ in range(3)]                         # at the same time
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(measured) == 8
    monkeypatch.setattr(runs_module, "code_sources", lambda *names: {"other": "code"})
    assert found() == first and len(measured) == 9
    monkeypatch.setenv("SASHIMI_WB_CACHE", str(file/"no folder"))                        # it cannot be kept
    assert found() == first and len(measured) == 10


def test_equal_training_codes_are_counted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SASHIMI_WB_CACHE", str(tmp_path/"cache"))
    counted, count = [], WindowDataset.histogram
    monkeypatch.setattr(WindowDataset, "histogram", lambda self, n: counted.append(n) or count(self, n))
    def found(**changes):
        run = Run(experiment("smoke", changes), bundled("data/digits"), tmp_path)
        return runs_module.histogram(run.data, 256), count(run.data.train, 256)
    for changes in ({}, {"input": "raw", "encoder": None}, {"predictor": "adaptive"}, {"lr": .1}):
        np.testing.assert_array_equal(*found(**changes))
    assert len(counted) == 1
    deep = {"quantization": "linear", "bits": 16, "head": "bytes"}
    for changes, n in (({"bits": 7}, 2), (deep, 3), (deep | {"bits": 24}, 4), (deep, 4)):
        np.testing.assert_array_equal(*found(**changes))
        assert len(counted) == n


def weights(run):
    return [(run.folder/name).read_bytes() for name in ("model.safetensors", "training/best.safetensors", *CLIPS)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = Run(TWO, runs=tmp_path_factory.mktemp("unbroken"))
    return figures(execute(run, progress=False)), weights(run), run


@pytest.fixture
def broken(tmp_path, monkeypatch):
    "A run that is cut at the n-th call of a function of `runs`, and then carried out again."
    def again(*cuts):
        run = Run(TWO, runs=tmp_path/"runs")
        for name, nth in cuts:
            left, whole = [nth], getattr(runs_module, name)
            def until(*args, left=left, whole=whole, **kwargs):
                left[0] -= 1
                return cut() if left[0] == 0 else whole(*args, **kwargs)
            with monkeypatch.context() as m:
                m.setattr(runs_module, name, until)
                with pytest.raises(Cut): execute(run, progress=False)
        return run
    return again


@pytest.mark.parametrize("cuts", [
    [("score", 2)],
    [("score", 1), ("save_tree", 1), ("save_tree", 2), ("make_clips", 1), ("save_weights", 1)]], ids=str)
def test_cut_between_training_and_record(unbroken, broken, cuts):
    run = broken(*cuts)
    assert not run.done and figures(execute(run, progress=False)) == unbroken[0] and weights(run) == unbroken[1]
    assert [r["steps"] for r in run.record["results"]] == [2, 6]
    assert not list(run.folder.rglob("*.tmp")) + list(run.folder.rglob("*.lock"))


@pytest.mark.parametrize("damage", ["gone", "flipped", "of another run"])
def test_a_score_that_is_lost_after_the_training_went_on(unbroken, broken, damage):
    run = broken(("make_clips", 1))
    path = run.folder/"scores"/"2.ckpt"
    raw, saved = path.read_bytes(), load_tree(path)
    if damage == "gone": path.unlink()
    elif damage == "flipped": path.write_bytes(raw.replace(b"bits_per_sample", b"bits_per_sbmple"))
    else: save_tree(path, saved | {"hash": "0"*16})
    assert figures(execute(run, progress=False)) == unbroken[0] and weights(run) == unbroken[1]


@pytest.mark.parametrize("changes", [{}, {"bits": 16, "head": "dml", "quantization": "linear"},
                                     {"bits": 12, "quantization": "linear"},
                                     {"bits": 16, "head": "bytes", "quantization": "linear"}])
def test_training_starts_at_the_histogram(tmp_path, changes):
    "The first loss is about the order-0 entropy, and far below that of a model of noise."
    run = Run(experiment("smoke", {"steps": (1,), "batch_size": 64, "continuation_s": 0} | changes), runs=tmp_path)
    record = execute(run, progress=False)
    counts = np.atleast_2d(run.data.train.histogram(run.new_model().head.n_codes))
    entropy = sum(map(entropy_bits, counts))                          # of a sample: over its tokens
    first = record["curve"]["bits"][0]*len(counts)
    assert len(counts) == run.experiment.tokens_per_sample
    assert abs(first - entropy) < 0.3 < run.experiment.bits - entropy


def test_weights_of_an_earlier_step_are_refused(unbroken):
    run = unbroken[2]
    before = (run.folder/"training"/"last.ckpt").read_bytes()
    message = r"last.ckpt has 6 steps, and 2 are asked for.*at least 6, choose another folder, or resume=False"
    with pytest.raises(ValueError, match=message):
        trainer.fit(WaveModel(TWO.model_config()), run.data, TWO.train_config(2), run.folder/"training", progress=False)
    assert (run.folder/"training"/"last.ckpt").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "{}", "null", "[]", "\0"*100, '{"hash": null}', "other"])
def test_what_is_no_record_is_not_done(unbroken, tmp_path, content):
    run = Run(TWO, runs=tmp_path)
    write_atomic(run.result_path, json.dumps(unbroken[2].record | {"hash": "0"*16}) if content == "other" else content)
    assert not run.done and share_done(run.folder) == 0
    with pytest.raises(ValueError,
                       match=r"result.json: expected the record of .*made again when the run is carried out"):
        _ = run.record


def test_two_at_once_and_leftovers(unbroken, tmp_path, caplog):
    first, second, records = Run(TWO, runs=tmp_path), Run(TWO, runs=tmp_path), []
    for folder in (first.folder, first.folder/"training"): write_atomic(folder/".last.ckpt.of-4194999.k2.tmp", "half")
    threads = [threading.Thread(target=lambda run=run: records.append(execute(run, progress=False)))
               for run in (first, second)]
    for t in threads: t.start()
    for t in threads: t.join(300)
    assert [figures(r) for r in records] == [unbroken[0]]*2
    assert f"is in use: process {os.getpid()} on " in caplog.text
    assert not [p for p in first.folder.rglob(".*")]


def test_a_lock_says_who_has_it_and_ends_with_its_process(tmp_path):
    program = (f"from sashimi_wb.core.locks import holding\nwith holding({str(tmp_path)!r}, 'run'):\n"
               "    print('mine', flush=True)\n    input()")
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "mine\n"
    message = f"in use: process {other.pid} on .*wait for its end, or stop it there"
    with pytest.raises(ValueError, match=message), holding(tmp_path, "run", wait=False): pass
    stop = threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt), holding(tmp_path, "run", stop=stop): pass
    other.kill()
    other.communicate()
    (tmp_path/".run.json").write_text("{")
    with holding(tmp_path, "run", wait=False): pass
    assert not list(tmp_path.iterdir())


def test_only_the_dead_leave_leftovers(tmp_path):
    names = [".a.json.of-4194999.x1.tmp", ".a.json.x1.tmp", f".a.json.of-{os.getpid()}.x1.tmp", "a.tmp", ".a.json"]
    for name in names: (tmp_path/name).write_text("")
    os.utime(tmp_path/names[2])
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[2:])
    os.utime(tmp_path/names[2], (1, 1))          # before this process was born: of another one that had its number
    clear_leftovers(tmp_path)
    assert not (tmp_path/names[2]).exists()


def test_equal_runs_give_equal_files(unbroken, tmp_path):
    run = Run(TWO, runs=tmp_path)
    execute(run, progress=False)
    assert weights(run) == unbroken[1] and run.record["provenance"]["threads"] == torch.get_num_threads()


def test_the_fingerprint_covers_what_a_run_loads():
    program = ("import sys, sashimi_wb.studies.run, sashimi_wb.training.trainer\n"
               "print(*[m for m in sys.modules if m.startswith('sashimi_wb')])")
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200).stdout.split()
    assert len(loaded) > 30 and not set(loaded) - set(code_sources("studies.run"))


# Damage: whatever is in a file, only an error that names it comes out

def _spoiled(raw, rng, n):
    "Damaged copies of a file: cut, flipped, keys and values of its header changed."
    size = int.from_bytes(raw[:8], "little")
    for _ in range(n):
        kind, made = rng.randrange(4), bytearray(raw)
        if kind == 0: del made[rng.randrange(len(made)):]
        elif kind == 1: made[rng.randrange(8 + size)] ^= 1 << rng.randrange(8)
        elif kind == 2: made[rng.randrange(len(made))] = rng.randrange(256)
        else:
            text = bytes(made[8:8 + size]).decode()
            hits = list(re.finditer(r'\\?"[^"]*"|\d+', text))
            hit = rng.choice(hits)
            text = text[:hit.start()] + rng.choice(["null", "[]", "{}", "-1", "10000000000000", '\\"x\\"', '"x"',
                                                    "true", "1e999", ""]) + text[hit.end():]
            if rng.random() < 0.7:
                # as if it were of an earlier version
                text = re.sub(r'"sha256": ?"\w+",?', "", text).replace(",}", "}")
            made = len(text.encode()).to_bytes(8, "little") + text.encode() + made[8 + size:]
        if bytes(made) != raw: yield bytes(made)


@pytest.fixture(scope="module")
def files(tmp_path_factory, unbroken):
    folder = tmp_path_factory.mktemp("files")
    e = experiment("smoke", {"d_model": 4, "d_state": 4})
    model = WaveModel(e.model_config())
    save_weights(folder/"model.safetensors", model, to_json(e.model_config()),
                 {"experiment": to_json(e), "sample_rate": 4000})
    return folder, {load_model: (folder/"model.safetensors").read_bytes(),
                    load_tree: (unbroken[2].folder/"training"/"last.ckpt").read_bytes(),
                    read_weights: (folder/"model.safetensors").read_bytes()}


@pytest.mark.parametrize("read", [load_model, load_tree, read_weights])
def test_a_damaged_checkpoint_is_named_whatever_it_is(files, read):
    folder, whole = files
    path, refused = folder/"damaged.safetensors", 0
    for raw in _spoiled(whole[read], random.Random(0), 150):
        path.write_bytes(raw)
        try: read(path)
        except (ValueError, FileNotFoundError) as e:
            assert str(e).startswith(str(path)), e
            refused += 1
    assert refused > 100


def test_every_bit_of_a_tensor_counts(files):
    folder, whole = files
    raw, rng, path = whole[read_weights], random.Random(1), folder/"flipped.safetensors"
    for _ in range(20):
        made = bytearray(raw)
        made[rng.randrange(8 + int.from_bytes(raw[:8], "little"), len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(made)
        with pytest.raises(ValueError, match="flipped.safetensors: .*checksum differs.*delete it"): read_weights(path)


def test_the_fit_of_a_damaged_checkpoint(unbroken, tmp_path):
    "A tree that is whole, but not of this run."
    run, path = unbroken[2], tmp_path/"last.ckpt"
    saved = load_tree(run.folder/"training"/"last.ckpt")
    def fit():
        return trainer.fit(WaveModel(TWO.model_config()), run.data, TWO.train_config(8), tmp_path, progress=False)
    own = saved["sashimi_wb"]
    name = next(iter(saved["state_dict"]))
    for wrong in ({"a": 1}, saved | {"sashimi_wb": None}, saved | {"sashimi_wb": own | {"step": "6"}},
                  saved | {"state_dict": {}}, saved | {"optimizer_states": []},
                  saved | {"sashimi_wb": own | {"history": {k: v for k, v in own["history"].items() if k != "tokens"}}},
                  saved | {"state_dict": saved["state_dict"] | {name: torch.zeros(1)}},
                  saved | {"optimizer_states": [{"state": {}, "param_groups": []}]}):
        save_tree(path, wrong)
        with pytest.raises(ValueError, match=r"last.ckpt: expected the checkpoint of .*delete it"): fit()


def test_one_bad_file_never_stops_a_listing(tmp_path):
    good, rng = make_run(tmp_path), random.Random(2)
    text = good.result_path.read_text()
    def swapped(value):
        "One value somewhere in it is another."
        if isinstance(value, dict) and value and (key := rng.choice(list(value))):
            return value | {key: swapped(value[key]) if rng.random() < 0.8 else rng.choice([None, [], "x", -1])}
        if isinstance(value, list) and value: return [*value[:-1], swapped(value[-1])]
        return rng.choice([None, [], {}, "x", True, 10**400])
    wrong = ["", "null", "[" * 10**5, text[:200], "\0"*50, *(json.dumps(swapped(json.loads(text))) for _ in range(60))]
    for i, content in enumerate(wrong): write_atomic(tmp_path/f"bad{i}"/"result.json", content)
    write_atomic(tmp_path/"bad0"/"model.safetensors", "damaged")
    found, notes = read_runs(tmp_path)
    assert good.folder in [r.folder for r in found] and notes
    assert [str(m.path) for m in find_models(tmp_path, tmp_path/"none")] == []
    from sashimi_wb.studies.run_table import runs_table, sort_runs
    assert good.hash[:6] in runs_table(sort_runs(found, "bits_per_sample")).data


@pytest.mark.parametrize("content", ["", "{", "null", '{"a": null}', '{"b": 1}', "[" * 10**5, "1" * 10**4, "\udcff"])
def test_json_is_read_in_one_way(tmp_path, content):
    path = tmp_path/"note.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"note.json: expected a note, got a damaged or foreign file \(.*delete it"):
        read_json(path, "a note", {"a": int})


@pytest.mark.parametrize("changes", [{"head": "dml", "bits": 16, "quantization": "linear"}, {"input": "raw"}])
def test_a_run_beside_a_predictor(tmp_path, monkeypatch, changes):
    """It trains, is cut off after its first score, resumes, and its model is loaded with its configuration."""
    beside = experiment("smoke", {"predictor": "adaptive", "steps": (2, 4), "continuation_s": 0, **changes})
    first, other = Run(beside, runs=tmp_path/"a"), Run(beside, runs=tmp_path/"b")
    wanted = execute(first, progress=False)
    test = wanted["results"][-1]["test"]
    assert test["whole"] == pytest.approx(wanted["baselines"]["adaptive"], rel=.02) and test["whole_alone"] > 0
    assert [s["name"] for s in wanted["stages"]][:2] == ["encoder", "prediction"]
    score = runs_module.score
    monkeypatch.setattr(runs_module, "score", lambda *args: cut() if (other.folder/"scores").exists() and
                        list((other.folder/"scores").glob("*.ckpt")) else score(*args))
    with pytest.raises(Cut): execute(other, progress=False)
    monkeypatch.undo()
    assert figures(execute(other, progress=False)) == figures(wanted)
    loaded = load_model(first.folder)
    assert loaded.experiment == beside and loaded.model.config == beside.model_config()
    assert loaded.model.config.predictor == "adaptive" and loaded.model.config.quantization == beside.quantization
