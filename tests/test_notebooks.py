"""Every notebook under nbs/ runs with its small defaults, in the runner of nbdev, which obeys `#| eval: false`.

The pages of nbs/explore run in a real browser (tests/browser); without a browser they run here.
"""
import multiprocessing
from pathlib import Path

import pytest
from browser import missing
from run_notebook import NEEDS, run, skipped_flags

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = set(NEEDS)   # tests/synthesis/test_triton_kernels.py runs it where Triton is installed
# modules that import most of the others, and those of compiled functions
PRELOADED = ("sashimi_wb.explore", "sashimi_wb.training.trainer", "sashimi_wb.coding.compression",
             "sashimi_wb.synthesis.engine", "sashimi_wb.prediction.token_predictor")
TIMEOUT_S = 1200   # ends a notebook that hangs; machines differ, so it does not measure speed

pytestmark = [pytest.mark.slow, pytest.mark.notebook]


def processes() -> multiprocessing.context.BaseContext:
    """Start methods of a process per notebook, so that no notebook depends on what another one patched or seeded.

    Where the system can fork, they are forked from a process that has only imported the package and the libraries that
    most notebooks need, which saves seconds for each."""
    if "forkserver" not in multiprocessing.get_all_start_methods(): return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nbdev.test", "matplotlib.pyplot", *PRELOADED])
    return context


def notebooks() -> list[Path]:
    """The notebooks that nbdev would test: those under nbs/, except names with a leading dot or underscore."""
    found = (p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb"))
    return sorted(p for p in found if not any(part[0] in "._" for part in p.parts)
                  and (missing() or p.parent.name != "explore")
                  and p.stem not in ELSEWHERE)


def test_there_are_notebooks():
    assert len(notebooks()) >= 12


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.relative_to("nbs").with_suffix("").as_posix())
def test_notebook_runs(path, tmp_path):
    process = processes().Process(target=run,
                                  args=(ROOT / path, ROOT, skipped_flags(), output := tmp_path / "output.txt"))
    process.start()
    process.join(TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"{path} hangs: it did not end within {TIMEOUT_S} s", pytrace=False)
    if process.exitcode: pytest.fail(f"{path} stopped:\n{output.read_text(errors='replace')[-8000:]}", pytrace=False)
