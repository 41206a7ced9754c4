"""Run a notebook in its own process. This module imports little, since every such process imports it first."""
import atexit
import multiprocessing
import os
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {"07_triton_kernels": "triton"}   # name of a notebook -> the package without which it cannot run


def skipped_flags() -> list[str]:
    """Flags, such as `#| slow`, whose cells are not run."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["tst_flags"].split()


def run(path: Path, root: Path, flags: list[str], output: Path) -> None:
    """Run the cells of a notebook, except flagged ones, and end this process with status 0 if they pass."""
    from nbdev.test import test_nb
    with open(output, "wb") as out:
        for stream in (1, 2): os.dup2(out.fileno(), stream)
    os.chdir(root / "nbs")
    runs = tempfile.TemporaryDirectory()                 # a notebook leaves no run in the clone
    os.environ["SASHIMI_WB_RUNS"] = runs.name
    multiprocessing.set_start_method(None, force=True)   # the default again, for workers that the notebook starts
    passed, _ = test_nb(path, skip_flags=flags, basepath=root)
    # a forked process would end without these functions, which remove temporary folders
    atexit._run_exitfuncs()
    sys.exit(0 if passed else 1)
