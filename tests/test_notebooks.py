"""Every notebook under nbs/ runs with its small defaults, by nbdev's own runner (`#| eval: false` and flags count).

The pages of nbs/explore run in a real browser where there is one (tests/browser), and here where there is none.
"""
import multiprocessing
from configparser import ConfigParser
from pathlib import Path

import pytest
from browser import missing
from run_notebook import run

ROOT = Path(__file__).resolve().parents[1]
HANGS_S = 1200   # no measure of speed: machines differ


def processes() -> multiprocessing.context.BaseContext:
    """A process for each notebook, so that none leans on what another one patched or seeded; where the system can fork,
    from one that has imported what most need and done nothing else: that takes seconds each time."""
    if "forkserver" not in multiprocessing.get_all_start_methods(): return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "nbdev.test", "matplotlib.pyplot", "lightning.pytorch"])
    return context


def notebooks() -> list[Path]:
    """What nbdev would test: all notebooks under nbs/ but those in a hidden folder or with a leading underscore."""
    found = (p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb"))
    return sorted(p for p in found if not any(part[0] in "._" for part in p.parts)
                  and (missing() or p.parent.name != "explore"))


def skipped_flags() -> list[str]:
    """Flags (`#| slow`) whose cells the ordinary run leaves out."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["tst_flags"].split()


def test_there_are_notebooks():
    assert len(notebooks()) >= 12


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.relative_to("nbs").with_suffix("").as_posix())
def test_notebook_runs(path, tmp_path):
    process = processes().Process(target=run,
                                  args=(ROOT / path, ROOT, skipped_flags(), output := tmp_path / "output.txt"))
    process.start()
    process.join(HANGS_S)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"{path} hangs: nothing after {HANGS_S} s", pytrace=False)
    if process.exitcode: pytest.fail(f"{path} stopped:\n{output.read_text(errors='replace')[-8000:]}", pytrace=False)
