"""Every notebook under nbs/ runs with its small defaults, by nbdev's own runner (`#| eval: false` and flags count).

The pages of nbs/explore run in a real browser where there is one (tests/browser), and here where there is none.
"""
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from browser import missing

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 240

# A process each, so that no notebook leans on what another one imported, patched or seeded.
RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
passed, _ = test_nb(Path(sys.argv[1]), skip_flags=sys.argv[3:], basepath=sys.argv[2])
sys.exit(0 if passed else 1)
"""


def notebooks() -> list[Path]:
    """What nbdev would test: all notebooks under nbs/ but those in a hidden folder or with a leading underscore."""
    found = (p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb"))
    return sorted(p for p in found if not any(part[0] in "._" for part in p.parts) and (missing() or p.parent.name != "explore"))


def skipped_flags() -> list[str]:
    """Flags (`#| slow`) whose cells the ordinary run leaves out."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["tst_flags"].split()


def test_there_are_notebooks():
    assert len(notebooks()) >= 12


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.relative_to("nbs").with_suffix("").as_posix())
def test_notebook_runs(path):
    command = [sys.executable, "-c", RUN, str(ROOT / path), str(ROOT), *skipped_flags()]
    try:
        done = subprocess.run(command, cwd=ROOT / "nbs", capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace")
    except subprocess.TimeoutExpired:
        pytest.fail(f"{path} took more than {TIMEOUT_S} s; its defaults are too large for a test run", pytrace=False)
    if done.returncode: pytest.fail(f"{path} stopped:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}", pytrace=False)
