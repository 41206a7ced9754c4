"""Run a notebook in its own process: what tests/test_notebooks.py calls in processes that it has forked."""
import atexit
import os
import sys
import tempfile
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {"07_triton_kernels": "triton"}   # name of a notebook -> the package without which it cannot run


def skipped_flags() -> list[str]:
    """Flags, such as `#| slow`, whose cells are not run."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["tst_flags"].split()


# modules that import most of the others, and those of compiled functions
PRELOADED = ("sashimi_wb.explore", "sashimi_wb.training.trainer", "sashimi_wb.coding.compression",
             "sashimi_wb.synthesis.engine", "sashimi_wb.prediction.token_predictor")


def prepare() -> None:
    """Import what most notebooks need, once, before processes are forked."""
    for name in ("nbdev.test", "matplotlib.pyplot", *PRELOADED): import_module(name)


def run(path: str, root: str, flags: list[str]) -> None:
    """Run the cells of a notebook, except flagged ones, and end this process with status 0 if they pass."""
    from nbdev.test import test_nb
    os.chdir(Path(root, "nbs"))
    runs = tempfile.TemporaryDirectory()                 # a notebook leaves no run in the clone
    os.environ["SASHIMI_WB_RUNS"] = runs.name
    passed, _ = test_nb(Path(path), skip_flags=flags, basepath=Path(root))
    # a forked process would end without these functions, which remove temporary folders
    atexit._run_exitfuncs()
    sys.exit(0 if passed else 1)
