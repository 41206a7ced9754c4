"""Kill a study again and again, resume it, and compare what it leaves with that of an unbroken one, bit by bit.

    python tests/kill_study.py [--kills 100] [--seed 0] [--folder FOLDER]

Every kill ends the command `sashimi-wb study` and all processes below it by SIGKILL, at a moment drawn by chance: after
a time, at a write, or when a run reaches a stage. Studies are begun anew until there were enough kills; each is carried
on to its end. The exit status is 1 if anything differs.

Most of the time of such a short study is imports. So only every eighth command is started as a user does; the others
are forked from this process, which has imported what they need, and so is the process that starts their notebooks.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

BASE = {"steps": [6, 12], "d_model": 4, "d_state": 4, "prompt_s": 0.1, "continuation_s": 0.2, "dropout": 0.1}
ARMS = {"codes": {}, "mixture": {"head": "dml", "bits": 12, "quantization": "linear", "channels": "stereo"},
        "beside a predictor": {"predictor": "adaptive", "steps": [6]}}


def write_study(folder: Path) -> Path:
    """A study of a few tiny runs, as a file."""
    def toml(value): return json.dumps(value) if not isinstance(value, dict) else \
        "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    arms = [f"{json.dumps(name)} = {toml(BASE | changes)}" for name, changes in ARMS.items()]
    text = 'question = "Does a kill change a result?"\nbase = "smoke"\nseeds = 1\n\n[arms]\n' + "\n".join(arms) + "\n"
    path = folder/"kills.toml"
    path.write_text(text)
    return path


def lasting(record: dict) -> dict:
    """A record without times, peak memory and the day of its end."""
    return record | {"seconds": 0, "peak_bytes": 0, "validation": [v | {"seconds": 0} for v in record["validation"]],
                     "stages": [stage | {"ms": 0} for stage in record["stages"]],
                     "provenance": record["provenance"] | {"finished": ""}}


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two folders of one run: record, weights, clips; and what a killed process has left."""
    records = [lasting(json.loads((folder/"result.json").read_text())) for folder in (one, other)]
    found = [f"result.json: {k}" for k in {**records[0], **records[1]} if records[0].get(k) != records[1].get(k)]
    files = [{p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.suffix in (".flac", ".safetensors")}
             for folder in (one, other)]
    found += sorted(name for name in files[0].keys() ^ files[1].keys() if not name.startswith("training-"))
    found += [k for k in files[0].keys() & files[1].keys() if files[0][k].read_bytes() != files[1][k].read_bytes()]
    if (notebook := other/"notebook.ipynb").exists():
        ended = json.loads(notebook.read_text())["metadata"]["papermill"].get("end_time")
        found += [] if ended else ["notebook.ipynb: not executed to its end"]
    return found + [p.name for p in other.rglob("*") if p.suffix in (".tmp", ".lock")]


def written(runs: Path) -> dict[Path, float]:
    """The files in the folders of runs, and when each was changed."""
    found = {}
    for folder, _, names in os.walk(runs):
        for path in (Path(folder)/name for name in names):
            with suppress(FileNotFoundError): found[path] = path.stat().st_mtime
    return found


def stage(runs: Path) -> str:
    """What the runs of a folder are doing, by the file that was written last in those that are not done."""
    files = {p: t for p, t in written(runs).items() if not p.name.startswith(".") and p.parent != runs and
             not (runs/p.relative_to(runs).parts[0]/"result.json").exists()}
    if not files: return "imports, and other work between runs"
    path = max(files, key=files.get)
    if path.parent.name == "scores": return "between a score and what follows"
    if path.suffix == ".flac" or path.name == "model.safetensors": return "clips and weights are written"
    if "training" not in path.relative_to(runs).as_posix(): return "begins a run"
    history = path.parent/"history.json"
    steps = len(json.loads(history.read_text())["train_nats"]) if history.exists() else 0
    return "scores, or generates" if steps in BASE["steps"] else "trains"


def temporary(runs: Path) -> set[Path]:
    """Files that are being written."""
    return {path for path in written(runs) if path.suffix == ".tmp"}


def kill(process) -> None:
    """Kill a process and all below it, at once."""
    below = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    for p in below:
        with suppress(psutil.NoSuchProcess): p.kill()
    process.wait()
    psutil.wait_procs(below, 10)


class Forked:
    """A process that is forked from this one and calls a function, with what is needed of `subprocess.Popen`."""
    def __init__(self, work, streams):
        self.returncode, self.pid = None, os.fork()
        if self.pid: return
        status = 1
        try:
            os.setsid()
            for number, stream in enumerate(streams): os.dup2(stream, number)
            os.closerange(3, 256)
            sys.stdin, sys.stdout, sys.stderr = (open(n, mode, 1, closefd=False) for n, mode in enumerate("rww"))
            status = work()
        except BaseException as e: print(repr(e), file=sys.stderr, flush=True)
        finally:
            sys.stdout.flush()
            os._exit(status or 0)

    def poll(self):
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def wait(self, timeout=None):
        while self.poll() is None: time.sleep(0.01)
        return self.returncode


def fork_server(self, *arguments, **options):
    """In place of `ForkServer.__init__`: the process that starts notebooks is forked now, from the main thread."""
    begin_server(self, *arguments, **options)
    (here, to), (back, out), self.errors = os.pipe(), os.pipe(), tempfile.TemporaryFile()
    def serve():
        sys.argv = ["serve", str(parent), self.function, self.prepare]
        return processes._serve()
    parent = os.getpid()
    self.process = Forked(serve, (here, out, self.errors.fileno()))
    for end in (here, out): os.close(end)
    self.process.stdin, self.process.stdout = os.fdopen(to, "w"), os.fdopen(back)


def start(file: Path, runs: Path, said: Path, forked: bool = False):
    """Carry out the study by its command, in a session of its own and with a cache of its own."""
    command, cache = ["study", str(file), "--runs", str(runs), "--workers", "2"], f"{runs}-cache"
    with said.open("ab") as text:
        if not forked:
            code = "import sys; from sashimi_wb.cli import main; sys.exit(main())"
            return subprocess.Popen([sys.executable, "-c", code, *command], stdout=text, stderr=text,
                                    start_new_session=True, env=os.environ | {"SASHIMI_WB_CACHE": cache})
        def work():
            os.environ["SASHIMI_WB_CACHE"] = cache
            processes.ForkServer.__init__ = fork_server
            return cli.main(command)
        with open(os.devnull) as nothing: return Forked(work, (nothing.fileno(), text.fileno(), text.fileno()))


def kill_at(process, runs: Path, rng: random.Random, most_s: float) -> str | None:
    """Wait for a moment and kill: at what; None if the study has ended before."""
    how = rng.choice(["time", "time", "write", "write", "stage"])
    begun, earliest = time.monotonic(), rng.uniform(0, most_s)
    name = rng.choice(["last.ckpt", "6.ckpt", "12.ckpt", "quantized.flac", "continuation.flac", "model.safetensors"])
    def seen():
        return {x for x in written(runs).items() if x[0].name == name} if how == "stage" else temporary(runs)
    before, delay = seen(), rng.uniform(0, 0.3) if how == "stage" else 0
    while process.poll() is None:
        late = time.monotonic() - begun
        if how == "time" and late > earliest: break
        if how == "write" and late > earliest/2 and seen() - before: break
        if how == "stage" and seen() - before:
            time.sleep(delay)
            break
        time.sleep(0.02 if how == "time" else 0.001)
    if process.poll() is not None: return None
    doing = stage(runs)
    kill(process)
    return "a file is being written" if how != "stage" and temporary(runs) - before else doing


def prepare() -> None:
    """Import what `carry_out` needs, once, before processes are forked."""
    import sashimi_wb.studies.run
    import sashimi_wb.training.trainer  # noqa: F401


def carry_out(runs: str | Path) -> None:
    """The first run of the study, in this process."""
    from sashimi_wb.studies.experiment import experiment
    from sashimi_wb.studies.run import Run, execute
    execute(Run(experiment("smoke", BASE), runs=Path(runs)), progress=False)


def main() -> int:
    """Kill, resume, compare, and say what happened."""
    # one thread, set before torch is imported: a process cannot be forked from one that has computed with several
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"
    global batch, begin_server, cli, processes     # only here, since they take seconds to import
    from sashimi_wb import cli
    from sashimi_wb.core import processes
    from sashimi_wb.studies import batch
    begin_server = processes.ForkServer.__init__
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--kills", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--most", type=float, help="seconds before a kill, at most (default: those of half a study)")
    p.add_argument("--folder", type=Path, help="where the runs stay (default: a temporary folder)")
    args = p.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    file, rng, moments, wrong = write_study(folder), random.Random(args.seed), Counter(), []
    whole = folder/"whole"
    whole.mkdir(exist_ok=True)
    batch.prepare()
    begun = time.time()
    if len(list(whole.glob("*/result.json"))) < len(ARMS) and start(file, whole, folder/"whole.txt", True).wait():
        raise SystemExit((folder/"whole.txt").read_text())
    whole_s = time.time() - begun
    most_s = args.most or whole_s/2
    expected = sorted(p.parent for p in whole.glob("*/result.json"))
    assert len(expected) == len(ARMS)
    print(f"unbroken: {len(expected)} runs in {whole_s:.0f} s", flush=True)
    studies = 0
    while sum(moments.values()) < args.kills:
        studies += 1
        runs, said = folder/f"broken{studies}", folder/f"broken{studies}.txt"
        runs.mkdir()
        while True:
            n = sum(moments.values())
            process = start(file, runs, said, n % 8 > 0)
            moment = None if n >= args.kills else kill_at(process, runs, rng, most_s)
            if moment is None: break
            moments[moment] += 1
            print(f"{sum(moments.values())} kills, {time.time() - begun:.0f} s, {moment}", flush=True)
        if process.wait():
            wrong.append(f"{said}: exit status {process.returncode}: {said.read_text()[-2000:]}")
            break
        for one in expected: wrong += [f"{runs/one.name}: {what}" for what in differences(one, runs/one.name)]
        print(f"study {studies} ended after {sum(moments.values())} kills; different: {wrong or 'nothing'}", flush=True)
    print(f"{sum(moments.values())} kills of {studies} studies of {len(expected)} runs in {time.time() - begun:.0f} s:")
    for moment, n in moments.most_common(): print(f"{n:5}  {moment}")
    print("different:", *(wrong or ["nothing"]), sep="\n  ")
    return bool(wrong)


if __name__ == "__main__": sys.exit(main())
