"""A notebook in a process of its own. It imports little: every such process imports this first."""
import atexit
import multiprocessing
import os
import sys
from pathlib import Path


def run(path: Path, root: Path, flags: list[str], output: Path) -> None:
    """Run a notebook's cells in this process, which ends with status 0 if they pass; flagged cells are left out."""
    from nbdev.test import test_nb
    with open(output, "wb") as out:
        for stream in (1, 2): os.dup2(out.fileno(), stream)
    os.chdir(root / "nbs")
    multiprocessing.set_start_method(None, force=True)   # the system's own again, for the workers of a notebook
    passed, _ = test_nb(path, skip_flags=flags, basepath=root)
    # a forked process leaves without them, and temporary folders stay
    atexit._run_exitfuncs()
    sys.exit(0 if passed else 1)
