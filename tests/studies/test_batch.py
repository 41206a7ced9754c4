"""A run of a batch is the run of the notebook that papermill executes by hand, and a process that ends is noticed."""
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading

import nbformat
import psutil
import pytest
import torch
from made_processes import training, wait

from sashimi_wb.cli import main
from sashimi_wb.cluster import places
from sashimi_wb.cluster.notebooks import NotebookKilled, notebook_processes, run_notebook, shell_command
from sashimi_wb.core.processes import FORKS, ForkServer
from sashimi_wb.core.system import bundled
from sashimi_wb.studies.batch import run_all
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run import Run

pytestmark = pytest.mark.slow

CHANGES = {"dropout": 0.1, "prompt_s": 0.2, "continuation_s": 0.2}


def lasting(record):
    "A record without times, memory and the day of its end."
    return record | {"seconds": 0, "peak_bytes": 0, "validation": [v | {"seconds": 0} for v in record["validation"]],
                     "stages": [stage | {"ms": 0} for stage in record["stages"]],
                     "provenance": record["provenance"] | {"finished": ""}}


def outputs(path):
    "Kinds and formats of all outputs of a notebook, without text of progress bars."
    return [[(o.output_type, sorted(o.get("data", {}))) for o in cell.get("outputs", [])
             if o.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
            for cell in nbformat.read(path, 4).cells]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    "A run by the command that is shown to users."
    folder = tmp_path_factory.mktemp("by hand")
    command = shlex.split(shell_command("train_arm", folder/"notebook.ipynb", CHANGES | {"runs": folder}))
    subprocess.run([sys.executable, "-m", *command], check=True, timeout=600, cwd=bundled(), capture_output=True,
                   env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    return Run(experiment("smoke", CHANGES), runs=folder), folder/"notebook.ipynb"


@pytest.mark.parametrize("fork", sorted({False, FORKS}))
def test_a_run_of_a_batch_is_that_of_papermill_by_hand(by_hand, fork, tmp_path):
    expected, notebook = by_hand
    made = Run(experiment("smoke", CHANGES), runs=tmp_path)
    with notebook_processes(1, fork) as processes:
        run_notebook("train_arm", made.folder/"notebook.ipynb", CHANGES | {"runs": str(tmp_path)}, processes)
    assert lasting(made.record) == lasting(expected.record)
    for name in ("model.safetensors", "continuation.flac", "training/best.safetensors"):
        assert (made.folder/name).read_bytes() == (expected.folder/name).read_bytes()
    assert outputs(made.folder/"notebook.ipynb") == outputs(notebook)


def test_the_command_train_does_what_the_notebook_does(by_hand, tmp_path, capfd):
    """The same run, to the last bit, with bars that show the time left; and the folder has the notebook, too."""
    expected, _ = by_hand
    words = [word for name, value in CHANGES.items() for word in ("-p", f"{name}={value}")]
    assert main(["train", "smoke", *words, "--runs", str(tmp_path)]) == 0
    made = Run(experiment("smoke", CHANGES), runs=tmp_path)
    assert lasting(made.record) == lasting(expected.record)
    for name in ("model.safetensors", "continuation.flac", "training/best.safetensors"):
        assert (made.folder/name).read_bytes() == (expected.folder/name).read_bytes()
    assert "after 4 steps" in (made.folder/"notebook.ipynb").read_text()
    said = capfd.readouterr().err
    assert all(re.search(rf"{what}.*<", said) for what in ("training: 100%", "evaluating", "whole files"))


@pytest.mark.skipif(not FORKS, reason="needs fork")
def test_several_threads_compute_after_a_fork(tmp_path):
    with notebook_processes(2) as processes:
        run_notebook("train_arm", tmp_path/"notebook.ipynb", {"runs": str(tmp_path)}, processes)
        # OpenBLAS keeps a thread from its import on, and starts it again after a fork
        assert psutil.Process(processes.process.pid).num_threads() <= 2
    assert Run(experiment("smoke"), runs=tmp_path).record["provenance"]["threads"] == 2


def test_a_failure_says_why(tmp_path):
    with notebook_processes(1) as processes:
        why = "(?s)train_arm failed; its notebook is .*ValueError: unknown parameter sed; known"
        with pytest.raises(RuntimeError, match=why):
            run_notebook("train_arm", tmp_path/"notebook.ipynb", {"sed": 1, "runs": str(tmp_path)}, processes)
        if FORKS: assert psutil.Process(processes.process.pid).num_threads() == 1     # a fork would lose others
    assert "unknown parameter sed" in (tmp_path/"notebook.ipynb").read_text()


def test_a_killed_run_resumes_once(tmp_path, caplog):
    run, pids = Run(experiment("smoke"), runs=tmp_path), set()
    start = ForkServer.start
    def killed(self, arguments, output):
        process = start(self, arguments, output)
        if not pids: os.kill(process.pid, signal.SIGKILL)
        pids.add(process.pid)
        return process
    with pytest.MonkeyPatch.context() as m:
        m.setattr(ForkServer, "start", killed)
        run_all([run.experiment], runs=tmp_path, progress=False)
    assert run.done and len(pids) == 2 and "was killed by signal 9" in caplog.text
    with notebook_processes(1) as processes, pytest.MonkeyPatch.context() as m:
        pids.clear()
        m.setattr(ForkServer, "start", killed)
        with pytest.raises(NotebookKilled): run_notebook("train_arm", tmp_path/"n.ipynb", {}, processes)


def _children():
    "The processes below this one; other tests may have left multiprocessing's resource tracker."
    return set(psutil.Process().children(recursive=True))


def test_a_stopped_notebook_saves_first(tmp_path):
    stop, errors, before = threading.Event(), [], _children()
    def work():
        parameters = {"steps": 100000, "runs": str(tmp_path)}
        try: run_notebook("train_arm", tmp_path/"n.ipynb", parameters, stop=stop)
        except KeyboardInterrupt as e: errors.append(e)
    thread = threading.Thread(target=work)
    thread.start()
    wait(lambda: list(tmp_path.glob("*/training/last.ckpt")))
    stop.set()
    thread.join(60)
    assert errors and _children() <= before
    text = (tmp_path/"n.ipynb").read_text()
    assert "KeyboardInterrupt" in text and "the same call resumes from" in text


def test_a_notebook_ends_with_the_process_at_the_top(tmp_path):
    parameters = {"steps": 100000, "runs": str(tmp_path)}
    program = ("from sashimi_wb.cluster.notebooks import notebook_processes, run_notebook\n"
               f"run_notebook('train_arm', {str(tmp_path/'n.ipynb')!r}, {parameters!r}, notebook_processes(1))")
    with training(program, tmp_path) as (top, below):
        assert len(below) >= 1 + FORKS
        top.kill()
        top.wait(60)
        assert psutil.wait_procs(below, 15)[1] == []


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_batch_ends_all_runs_and_the_server(tmp_path):
    program = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               "from sashimi_wb.studies.batch import run_all\nfrom sashimi_wb.studies.experiment import experiment\n"
               "run_all([experiment('smoke', {'steps': 100000, 'seed': s}) for s in range(3)], workers=2, "
               f"runs={str(tmp_path)!r}, progress=False)")
    with training(program, tmp_path, 2) as (top, below):
        top.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in top.communicate(timeout=60)[1]
        assert psutil.wait_procs(below, 5)[1] == []
    texts = [p.read_text() for p in tmp_path.glob("*/notebook.ipynb")]
    assert len(texts) == 2 and all("the same call resumes from" in text for text in texts)
    assert not list(tmp_path.rglob("*.lock")) and not list(tmp_path.rglob("*.tmp"))


def test_gpus_get_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert places.run_devices() == places.run_devices("cuda") == ["cuda:0", "cuda:1"]
    assert places.run_devices("cuda:1") == ["cuda:1"] and places.run_devices("cpu") == ["cpu"]
    busy, seen, begun, both = set(), [], itertools.count(), threading.Barrier(2)
    def work(job, processes, device, *_):
        assert device not in busy
        busy.add(device)
        if next(begun) < 2: both.wait(30)   # two at a time
        seen.append(device)
        busy.remove(device)
    monkeypatch.setattr(places, "carry_out", work)
    jobs = [experiment("smoke", {"seed": i}) for i in range(4)]
    with pytest.raises(RuntimeError, match="it left no record"): run_all(jobs, runs=tmp_path, progress=False)
    assert len(seen) == 4 and set(seen) == {"cuda:0", "cuda:1"}
