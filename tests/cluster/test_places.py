"""Runs by executors of other processes, by code that was frozen, and a study that is cancelled from another process."""
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import psutil
import pytest
from made_processes import training, wait

from sashimi_wb.cluster import places, status
from sashimi_wb.cluster.jobs import Job, new_submission, run_state, submissions
from sashimi_wb.cluster.status import cancel, retry, status_lines, study_states
from sashimi_wb.core.processes import end_tree
from sashimi_wb.core.sources import ORIGIN
from sashimi_wb.core.system import bundled, package_folder
from sashimi_wb.studies.batch import run_all
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run import Run, code_fingerprint

pytestmark = pytest.mark.slow

TINY = {"continuation_s": 0.0, "test_s": 0.1}
GOOD, BAD = experiment("smoke", TINY), experiment("smoke", TINY | {"lr": 1e30})     # the second one diverges
AUDIO = bundled("data/digits")


def test_processes_of_an_executor_carry_out_runs_and_name_the_one_that_fails(tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(RuntimeError, match="(?s)^run (?:(?!run ).)*failed: train_arm failed.*training diverged"):
            run_all({GOOD: "good", BAD: "bad"}, AUDIO, tmp_path, progress=False, on=pool, study="pair", question="?")
    run = Run(GOOD, AUDIO, tmp_path)
    assert run.record["code"] == code_fingerprint() and not (run.folder/"attempt.json").exists()
    state, = study_states(tmp_path)
    assert (state.submission.place, state.counts) == ("ProcessPoolExecutor", {"failed": 1, "done": 1})
    line, _, row = status_lines(tmp_path, "pair")
    assert line.startswith("pair: 1 failed, 1 done (ProcessPoolExecutor, ") and "training diverged" in row
    with pytest.raises(ValueError, match="pair was carried out by a ProcessPoolExecutor"): retry("pair", tmp_path)


def test_a_worker_of_dask_carries_out_a_run(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        made = run_all([GOOD], AUDIO, tmp_path, progress=False, on=client.get_executor())
    assert made[GOOD].done


PROGRAM = """
import sys
from sashimi_wb.cluster import slurm
from sashimi_wb.cluster.jobs import new_submission
from sashimi_wb.cluster.places import Place
from sashimi_wb.cluster.profile import Profile
from sashimi_wb.cluster.snapshot import snapshot
from sashimi_wb.studies.batch import described
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run import Run, code_fingerprint
audio, runs, changes = sys.argv[1:3] + [eval(sys.argv[3])]
run = Run(experiment("smoke", changes), audio, runs)
job = described(run, Place("slurm", profile=Profile(cpus=1)), run.folder.parent, str(snapshot(runs)), "only", "one")
made = new_submission([job], place="slurm")
print(code_fingerprint(), run.hash, flush=True)
input()                                    # here the code is edited
slurm.submit(made, made.all_jobs(), Profile(), cluster="local")
sys.stdin.read()                           # it watches its jobs
"""


def test_a_job_has_the_code_that_it_was_submitted_with(tmp_path):
    pytest.importorskip("submitit", reason="needs submitit")
    copy, runs = tmp_path/"clone", tmp_path/"runs"
    shutil.copytree(package_folder(), copy/"sashimi_wb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(bundled("nbs/experiments"), copy/"nbs"/"experiments")
    env = os.environ | {"PYTHONPATH": str(copy), ORIGIN: str(package_folder())}   # nothing is compiled for the copy
    top = subprocess.Popen([sys.executable, "-P", "-c", PROGRAM, AUDIO, runs, repr(TINY)], text=True, cwd=copy,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    try:
        fingerprint, name = top.stdout.readline().split()
        edited = copy/"sashimi_wb"/"studies"/"run.py"
        with edited.open("a", encoding="utf-8") as file: file.write("\nraise RuntimeError('half edited')\n")
        top.stdin.write("\n")
        top.stdin.flush()
        wait((runs/name/"result.json").exists)
    finally:
        top.stdin.close()
        end_tree(top.pid)
    record = json.loads((runs/name/"result.json").read_text())
    assert record["code"] == fingerprint and "half edited" in edited.read_text(encoding="utf-8")


def test_a_local_study_is_cancelled_from_another_process(tmp_path, monkeypatch):
    program = ("import sys\nfrom sashimi_wb.studies.batch import run_all\n"
               "from sashimi_wb.studies.experiment import experiment\n"
               "jobs = {experiment('smoke', {'steps': 100000, 'seed': s}): 'long' for s in range(2)}\n"
               f"run_all(jobs, {str(AUDIO)!r}, {str(tmp_path)!r}, 1, progress=False, study='long')")
    with training(program, tmp_path) as (top, below):
        state, = study_states(tmp_path)
        assert state.counts == {"running": 1, "waiting": 1} and "process" in status_lines(tmp_path)[2]
        assert cancel("long", tmp_path) == 2
        assert "KeyboardInterrupt: long was cancelled" in top.communicate(timeout=120)[1]
        assert psutil.wait_procs(below, 10)[1] == []
    assert study_states(tmp_path)[0].counts == {"stopped": 2}
    text = next(tmp_path.glob("*/notebook.ipynb")).read_text()
    assert "the same call resumes from" in text                      # it saved before it ended
    asked = []
    monkeypatch.setattr(status, "run_jobs", lambda jobs, place, *_: asked.append((place, jobs)))
    retry("long", tmp_path)
    place, jobs = asked[0]
    assert (place, [job.arm for job in jobs]) == (places.Place("local", 1), ["long", "long"])
    assert {job.run for job in jobs} == {job.run for job in state.submission.all_jobs()}


def test_a_submission_that_still_waits_is_not_forgotten_nor_repeated(tmp_path, monkeypatch):
    """Two jobs wait in the queue of a cluster, and the study is submitted again with a third one."""
    jobs, asked = [Job(f"ab1{i}", str(tmp_path), {}, study="width") for i in range(3)], []
    first = new_submission(jobs[:2], place="slurm", numbers={"ab10": "7_0", "ab11": "7_1"})
    monkeypatch.setattr(places.slurm, "queue", lambda _: {"7_0": ("PENDING", "Resources"), "7_1": ("RUNNING", "None")})
    monkeypatch.setattr(places.slurm, "submit", lambda made, some, profile: asked.append(some) or made)
    places.run_jobs(jobs, places.Place("slurm", profile="", wait=False))
    assert [[job.run for job in some] for some in asked] == [["ab12"]]
    second, old = submissions(tmp_path, "width")
    assert old == first and [run_state(job, second, {"7_0": ("PENDING", "Resources")}).state
                             for job in second.all_jobs()] == ["waiting", "failed", "stopped"]
    first.cancel()
    assert run_state(second.all_jobs()[0], second, {}).why == "cancelled"


def test_slurm_without_its_programs_or_without_submitit_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    job = Job("ab12", str(tmp_path), {}, study="width")
    with pytest.raises(ValueError, match="no command sbatch: expected a machine from which"):
        places.run_jobs([job], places.Place("slurm"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"needs the package submitit: pip install 'sashimi_wb\[cluster\]'"):
        places.run_jobs([job], places.Place("slurm"))
    assert not submissions(tmp_path)                  # nothing was submitted
