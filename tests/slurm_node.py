"""A Slurm cluster of one node on this machine, in a folder of its own: for tests, and to try things by hand.

    python tests/slurm_node.py FOLDER      starts it, says how to use it, and ends it at Ctrl-C or the end of input

It has its own controller, daemon and authentication (munged), on free ports, so it touches no other Slurm. It needs
root and, on Debian, `apt-get install slurm-wlm munge`. There is no accounting."""
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = "slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol"


def missing() -> str:
    """Why no cluster can be started here; empty if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent: return f"no {absent[0]}: apt-get install slurm-wlm munge"
    return "" if hasattr(os, "geteuid") and os.geteuid() == 0 else "a Slurm node is started as root"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class SlurmNode:
    """A cluster with one node and one partition, "main"; use it in a `with` block."""

    def __init__(self, folder: Path, cpus: int = 4):
        self.folder, self.host = Path(folder).absolute(), socket.gethostname().split(".")[0]
        self.conf = self.folder/"slurm.conf"
        # a socket's path may have at most 107 characters, and its folder must be open to all
        self.munge = Path(tempfile.mkdtemp(prefix="munge"))
        for name in ("state", "spool", "log"): (self.folder/name).mkdir(parents=True, exist_ok=True)
        self.munge.chmod(0o755)
        settings = {
            "ClusterName": "one", "SlurmctldHost": f"{self.host}(127.0.0.1)", "SlurmUser": "root",
            "SlurmdUser": "root", "AuthType": "auth/munge", "AuthInfo": f"socket={self.munge}/socket",
            "CredType": "cred/munge", "StateSaveLocation": self.folder/"state", "SlurmdSpoolDir": self.folder/"spool",
            "SlurmctldPidFile": self.folder/"slurmctld.pid", "SlurmdPidFile": self.folder/"slurmd.pid",
            "SlurmctldLogFile": self.folder/"log"/"slurmctld.log", "SlurmdLogFile": self.folder/"log"/"slurmd.log",
            "SlurmctldPort": _free_port(), "SlurmdPort": _free_port(), "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none", "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides", "ReturnToService": 2, "MpiDefault": "none", "JobRequeue": 1,
            "KillWait": 30, "MaxArraySize": 1001, "SlurmdTimeout": 20, "MailProg": "/bin/true",
            "SchedulerParameters": "sched_interval=2,sched_min_interval=100000", "NodeName":
            f"{self.host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN",
            "PartitionName": "main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"}
        self.conf.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))

    def said(self, *words: str) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(words, env=os.environ | {"SLURM_CONF": str(self.conf)}, capture_output=True, text=True)
        assert not done.returncode, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def wait(self, states: str, timeout_s: float = 60) -> None:
        """Wait until the node is in one of these states: "idle mixed"."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with suppress(AssertionError):
                if self.said("sinfo", "--noheader", "--format=%T").rstrip("*~#$@+-") in states.split(): return
            time.sleep(0.3)
        raise TimeoutError(f"the node is not {states}: see {self.folder}/log")

    def set_state(self, state: str) -> None:
        """Drain the node, declare it down, or let it work again ("RESUME")."""
        self.said("scontrol", "update", f"NodeName={self.host}", f"State={state}", "Reason=test")

    def start_node(self) -> None:
        """Start the daemon of the node."""
        subprocess.run(["slurmd", "-f", str(self.conf)], check=True, timeout=60)

    def crash_node(self) -> None:
        """End the daemon and all that runs on the node by SIGKILL, as a power cut would."""
        daemon = psutil.Process(int((self.folder/"slurmd.pid").read_text()))
        steps = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "slurmstepd" and self._is_ours(p)]
        every = [daemon, *(p for step in steps for p in (step, *step.children(recursive=True)))]
        for p in every:
            with suppress(psutil.NoSuchProcess): p.kill()
        psutil.wait_procs(every, 10)

    def _is_ours(self, step) -> bool:
        "Whether a step belongs to this cluster; a step itself has no environment."
        with suppress(psutil.Error):
            return any(p.environ().get("SLURM_CONF") == str(self.conf) for p in step.children())
        return False

    def __enter__(self):
        key = self.munge/"key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        subprocess.run(["munged", "--force", "--num-threads=2", f"--key-file={key}", f"--socket={self.munge}/socket",
                        f"--pid-file={self.munge}/pid", f"--log-file={self.munge}/log",
                        f"--seed-file={self.munge}/seed"], check=True, timeout=60)
        try:
            subprocess.run(["slurmctld", "-f", str(self.conf)], check=True, timeout=60)
            self.start_node()
            self.wait("idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        with suppress(AssertionError, subprocess.SubprocessError): self.said("scancel", "--state=RUNNING,PENDING")
        with suppress(OSError, ValueError, psutil.NoSuchProcess): self.crash_node()
        for path in (self.folder/"slurmctld.pid", self.munge/"pid"):
            with suppress(OSError, ValueError): os.kill(int(path.read_text()), signal.SIGTERM)
        shutil.rmtree(self.munge, ignore_errors=True)


if __name__ == "__main__":
    if why := missing(): sys.exit(why)
    with SlurmNode(Path(sys.argv[1])) as node:
        print(f"export SLURM_CONF={node.conf}", flush=True)
        with suppress(KeyboardInterrupt): sys.stdin.read()
