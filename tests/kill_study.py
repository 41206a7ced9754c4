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
from types import SimpleNamespace

import psutil

BASE = {"steps": [10, 20], "d_model": 4, "d_state": 4, "prompt_s": 0.1, "continuation_s": 0.2, "dropout": 0.1}
ARMS = {"codes": {}, "mixture": {"head": "dml", "bits": 12, "quantization": "linear"}, "raw": {"input": "raw"},
        "beside a predictor": {"predictor": "adaptive", "steps": [10]}, "stereo": {"channels": "stereo"}}


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
    return found + [p.name for p in other.rglob("*") if p.suffix in (".tmp", ".lock")]


def stage(runs: Path) -> str:
    """What the runs of a folder are doing, by the file that was written last in those that are not done."""
    last = []
    for folder in runs.glob("*/"):
        if (folder/"result.json").exists(): continue
        files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
        if files: last.append(max(files, key=lambda p: p.stat().st_mtime))
    if not last: return "imports, and other work between runs"
    path = max(last, key=lambda p: p.stat().st_mtime)
    if path.parent.name == "scores": return "between a score and what follows"
    if path.suffix == ".flac" or path.name == "model.safetensors": return "clips and weights are written"
    if (path.parent/"history.json").exists() and _trained(path): return "scores, or generates"
    return "trains" if "training" in str(path.relative_to(runs)) else "begins a run"


def _trained(path):
    "Whether the last file of a training was written at the end of it."
    steps = len(json.loads((path.parent/"history.json").read_text())["train_nats"])
    return steps in (10, 20)


def temporary(runs: Path) -> list[Path]:
    """Files that are being written."""
    return list(runs.rglob(".*.tmp"))


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


def fork_server(command, **options):
    """In place of `subprocess.Popen` for the process that starts notebooks."""
    (here, to), (back, out) = os.pipe(), os.pipe()
    def serve():
        sys.argv = command[command.index("-c") + 1:]
        return processes._serve()
    server = Forked(serve, (here, out, options["stderr"].fileno()))
    for end in (here, out): os.close(end)
    server.stdin, server.stdout = os.fdopen(to, "w"), os.fdopen(back)
    return server


def start(file: Path, runs: Path, said: Path, forked: bool = False):
    """Carry out the study by its command, in a session of its own and with a cache of its own."""
    command, cache = ["study", str(file), "--runs", str(runs), "--workers", "2"], str(runs/"cache")
    with said.open("ab") as text:
        if not forked:
            code = "import sys; from sashimi_wb.cli import main; sys.exit(main())"
            return subprocess.Popen([sys.executable, "-c", code, *command], stdout=text, stderr=text,
                                    start_new_session=True, env=os.environ | {"SASHIMI_WB_CACHE": cache})
        def work():
            os.environ["SASHIMI_WB_CACHE"] = cache
            processes.subprocess = SimpleNamespace(Popen=fork_server, PIPE=None, TimeoutExpired=TimeoutError)
            return cli.main(command)
        with open(os.devnull) as nothing: return Forked(work, (nothing.fileno(), text.fileno(), text.fileno()))


def kill_at(process, runs: Path, rng: random.Random, typical_s: float) -> str | None:
    """Wait for a moment and kill: at what; None if the study has ended before."""
    how = rng.choice(["time", "time", "write", "write", "stage"])
    begun, earliest = time.monotonic(), rng.uniform(0, 1.1)*typical_s
    names = {"stage": rng.choice(["last.ckpt", "scores/10.ckpt", "scores/20.ckpt", "*.flac", "model.safetensors"])}
    def seen(): return {p for p in runs.rglob(f"*/{names['stage']}")} if how == "stage" else set(temporary(runs))
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
    return "a file is being written" if set(temporary(runs)) - before else doing


def carry_out(runs: Path) -> None:
    """The first run of the study, in this process."""
    from sashimi_wb.studies.experiment import experiment
    from sashimi_wb.studies.run import Run, execute
    execute(Run(experiment("smoke", BASE), runs=runs), progress=False)


def main() -> int:
    """Kill, resume, compare, and say what happened."""
    global batch, cli, processes     # only here, since they take seconds to import
    from sashimi_wb import cli
    from sashimi_wb.core import processes
    from sashimi_wb.studies import batch
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--kills", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--folder", type=Path, help="where the runs stay (default: a temporary folder)")
    args = p.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    file, rng, moments, wrong = write_study(folder), random.Random(args.seed), Counter(), []
    whole = folder/"whole"
    whole.mkdir(exist_ok=True)
    batch.prepare()
    begun = time.time()
    if start(file, whole, folder/"whole.txt", True).wait(): raise SystemExit((folder/"whole.txt").read_text())
    typical_s = time.time() - begun
    expected = sorted(p.parent for p in whole.glob("*/result.json"))
    assert len(expected) == len(ARMS)
    print(f"unbroken: {len(expected)} runs in {typical_s:.0f} s", flush=True)
    studies = 0
    while sum(moments.values()) < args.kills:
        studies += 1
        runs, said = folder/f"broken{studies}", folder/f"broken{studies}.txt"
        runs.mkdir()
        while True:
            n = sum(moments.values())
            process = start(file, runs, said, n % 8 > 0)
            moment = None if n >= args.kills else kill_at(process, runs, rng, typical_s)
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
