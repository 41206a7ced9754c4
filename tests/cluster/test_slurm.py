"""On a real Slurm of one node: a study with a run that fails beside others; requeued, out of time, after a crash of the
node; cancelled and retried. Skipped where Slurm is not installed. The code is edited while the jobs wait.

The tests share one cluster and follow each other; each waits for what it needs."""
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import made_processes
import pytest
from slurm_node import SlurmNode, missing

from sashimi_wb.cli import main
from sashimi_wb.cluster import slurm
from sashimi_wb.cluster.jobs import submissions
from sashimi_wb.cluster.status import cancel, retry, status_lines, study_states
from sashimi_wb.core.sources import ORIGIN
from sashimi_wb.core.system import bundled, package_folder
from sashimi_wb.studies.run import code_fingerprint
from sashimi_wb.studies.study_results import run_study

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "Slurm is here")]

LONG = 400      # steps of the run that is interrupted
STUDY = """
question = "Does the order of the windows matter?"
base = "smoke"
audio = {audio!r}
seeds = 2
one_run = ["dies", "long"]
shared = {{continuation_s = 0.0, test_s = 0.1, train_chunk_size = 20}}
[arms]
short = {{}}
dies = {{lr = 1e30}}
long = {{steps = {steps}, prompt_s = 0.03}}
"""
PROFILE = """
partition = "main"
time = 10
cpus = 1
memory_gb = 0.2
parallel = 3
setup = ["export SETUP_WAS_RUN=yes"]
"""


wait = partial(made_processes.wait, wait_s=600, every_s=0.5, passing=(FileNotFoundError, json.JSONDecodeError))


class Cluster:
    """A node, and a study that was submitted to it from a copy of the package that was edited afterwards."""

    def __init__(self, node, folder):
        self.node, self.runs, self.profile, self.study = node, folder/"runs", folder/"tiny.toml", folder/"order.toml"
        self.profile.write_text(PROFILE)
        self.study.write_text(STUDY.format(audio=str(bundled("data/digits")), steps=LONG))
        copy = folder/"clone"
        shutil.copytree(package_folder(), copy/"sashimi_wb", ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("nbs/experiments", "data/digits"): shutil.copytree(bundled(part), copy/part)
        node.set_state("DRAIN")
        program = "import sys; from sashimi_wb.cli import main; sys.exit(main())"
        words = ["study", self.study, "--on", "slurm", "--profile", self.profile, "--no-wait", "--runs", self.runs]
        done = subprocess.run([sys.executable, "-P", "-c", program, *map(str, words)], cwd=copy, capture_output=True,
                              env=os.environ | {"PYTHONPATH": str(copy), ORIGIN: str(package_folder())}, text=True)
        assert not done.returncode, done.stderr
        self.said = done.stdout
        with (copy/"sashimi_wb"/"studies"/"run.py").open("a") as file: file.write("\nraise RuntimeError('edited')\n")
        node.set_state("RESUME")

    def states(self):
        """Arm and seed -> state of a run."""
        state, = study_states(self.runs, "order")
        return {(s.job.arm, s.job.seed): s for s in state.runs}


def resumed(node, number, until):
    """Wait for a job that Slurm has requeued, or is about to; let it begin in seconds instead of in two minutes.

    Not at once: Slurm drops a job that begins within the second of its end (its credential is revoked)."""
    told = -60.0
    def looked():
        nonlocal told
        if time.monotonic() > told + 10:     # it may be requeued again
            with suppress(AssertionError):
                node.said("scontrol", "update", f"JobId={number}", "StartTime=now+3")
                told = time.monotonic()
        return until()
    wait(looked)


def saved(folder):
    """Steps that a run has saved, and how often it was resumed."""
    history = json.loads((folder/"training"/"history.json").read_text())
    return len(history["train_nats"]), history["restarts"]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with SlurmNode(tmp_path_factory.mktemp("node")) as node, pytest.MonkeyPatch.context() as m:
        m.setenv("SLURM_CONF", str(node.conf))
        yield node


@pytest.fixture(scope="module")
def cluster(node, tmp_path_factory): return Cluster(node, tmp_path_factory.mktemp("slurm"))


def test_the_study_was_submitted_as_an_array(cluster):
    assert cluster.said.startswith("order: 4 waiting (slurm, submitted ")
    made, = submissions(cluster.runs)
    numbers = sorted(made.numbers.values())
    assert len({n.split("_")[0] for n in numbers}) == 1 and [n.split("_")[1] for n in numbers] == ["0", "1", "2", "3"]


def test_a_run_goes_on_after_all_that_interrupts_it(cluster):
    """`scontrol requeue`, a crash of the node, and the signal before the end of its time."""
    node, long = cluster.node, wait(lambda: (s := cluster.states()["long", 0]).state == "running" and s)
    folder, number = long.job.folder, long.where
    wait(lambda: saved(folder)[0] > 0)
    node.said("scontrol", "requeue", number)
    resumed(node, number, lambda: saved(folder)[1] == 1)
    node.crash_node()
    node.set_state("DOWN")                       # Slurm would notice after SlurmdTimeout
    node.start_node()
    node.wait("idle")
    time.sleep(5)                                # the node has heard that the job of before is to end
    resumed(node, number, lambda: saved(folder)[1] == 2)
    node.said("scancel", "--signal=USR2", number)
    resumed(node, number, lambda: long.job.done)
    record = json.loads((folder/"result.json").read_text())
    assert record["results"][-1]["steps"] == LONG and saved(folder)[1] == 3


def test_the_run_that_fails_is_named_and_the_others_are_done(cluster):
    wait(lambda: not {s.state for s in cluster.states().values()} & {"running", "waiting"})
    states = {name: s.state for name, s in cluster.states().items()}
    assert states == {("short", 0): "done", ("short", 1): "done", ("long", 0): "done", ("dies", 0): "failed"}
    assert "training diverged" in "\n".join(status_lines(cluster.runs, "order"))
    with pytest.raises(RuntimeError, match="(?s)run .* failed: train_arm failed.*training diverged"):
        retry_or_raise(cluster)


def retry_or_raise(cluster):
    "Carry out the study once more, waiting: only what failed is submitted."
    try: run_study(cluster.study, cluster.runs, progress=False, on="slurm", profile=str(cluster.profile))
    finally: assert len(submissions(cluster.runs, "order")[0].numbers) == 1


def test_the_code_is_that_of_the_submission(cluster):
    made = submissions(cluster.runs, "order")[0]
    for job in made.all_jobs():
        if not job.done: continue
        assert json.loads((job.folder/"result.json").read_text())["code"] == code_fingerprint()
    assert not list(Path(cluster.runs).rglob(".*.lock"))


def test_a_job_that_is_out_of_time_goes_on(node, tmp_path):
    """Until it is cancelled, and again after a retry. The limit is two minutes, and the run would take hours."""
    study, profile, runs = tmp_path/"endless.toml", tmp_path/"minutes.toml", tmp_path/"runs"
    study.write_text('base = "smoke"\naudio = "digits"\nseeds = 1\nshared = {steps = 100000, train_chunk_size = 20}\n'
                     'arms = {only = {}}\n')
    profile.write_text(PROFILE.replace("time = 10", "time = 2"))
    words = ["study", study, "--on", "slurm", "--profile", profile, "--no-wait", "--runs", runs]
    assert main([str(word) for word in words]) == 0
    made, = submissions(runs, "endless")
    (job,), (number,) = made.all_jobs(), made.numbers.values()
    wait(lambda: saved(job.folder)[0])
    resumed(node, number, lambda: saved(job.folder)[1] == 1)     # nobody but Slurm has requeued it
    assert cancel("endless", runs) == 1
    wait(lambda: slurm.queue([made]) == {})
    assert study_states(runs, "endless")[0].counts == {"stopped": 1}
    steps, restarts = saved(job.folder)
    assert retry("endless", runs, wait=False, progress=False) == {}
    number, = submissions(runs, "endless")[0].numbers.values()
    resumed(node, number, lambda: saved(job.folder)[1] > restarts and saved(job.folder)[0] > steps)
    assert cancel("endless", runs) == 1
    wait(lambda: not slurm.queue(submissions(runs)))
