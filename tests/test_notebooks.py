"""Every notebook under nbs/ runs with its small defaults, in the runner of nbdev, which obeys `#| eval: false`.

The pages of nbs/explore run in a real browser (tests/browser); without a browser they run here.
"""
import time
from pathlib import Path

import pytest
from browser import missing
from made_processes import fork_server
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from run_notebook import NEEDS, skipped_flags

from sashimi_wb.core.processes import end_tree

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = set(NEEDS)   # tests/synthesis/test_triton_kernels.py runs it where Triton is installed
TIMEOUT_S = 1200   # ends a notebook that hangs; machines differ, so it does not measure speed

pytestmark = [pytest.mark.slow, pytest.mark.notebook]


@pytest.fixture(scope="module")
def server():
    """Starts a process per notebook, so that no notebook depends on what another one patched or seeded.

    Where the system can fork, they are forked from a process that has only imported the package and the libraries that
    most notebooks need, which saves seconds for each. It is no process of `multiprocessing`, whose one server belongs
    to whoever asks for it first, with the modules that were named then."""
    with fork_server("run_notebook:run", "run_notebook:prepare") as server: yield server


def notebooks() -> list[Path]:
    """The notebooks that nbdev would test: those under nbs/, except names with a leading dot or underscore."""
    found = (p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb"))
    return sorted(p for p in found if not any(part[0] in "._" for part in p.parts)
                  and (missing() or p.parent.name != "explore")
                  and p.stem not in ELSEWHERE)


def ended(server, path, output):
    """Run a notebook in a process of its own: its status."""
    process, end = server.start([str(path), str(ROOT), skipped_flags()], output), time.monotonic() + TIMEOUT_S
    while (status := process.poll()) is None:
        if time.monotonic() > end:
            end_tree(process.pid)
            pytest.fail(f"{path} hangs: it did not end within {TIMEOUT_S} s", pytrace=False)
        time.sleep(0.02)
    return status


def test_there_are_notebooks():
    assert len(notebooks()) >= 12


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.relative_to("nbs").with_suffix("").as_posix())
def test_notebook_runs(server, path, tmp_path):
    status = ended(server, ROOT / path, output := tmp_path / "output.txt")
    if status: pytest.fail(f"{path} stopped:\n{output.read_text(errors='replace')[-8000:]}", pytrace=False)


def test_notebooks_begin_with_the_package_imported(server, tmp_path):
    code = "import sys\nassert 'sashimi_wb.explore' in sys.modules"
    write(new_notebook(cells=[new_code_cell(code)]), path := tmp_path / "first_cell.ipynb")
    assert ended(server, path, tmp_path / "output.txt") == 0
