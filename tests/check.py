"""Run the quick checks: lint, exports, import rule, quick tests, and the notebooks changed since the last commit.

    python tests/check.py            # the whole project
    python tests/check.py ssm        # the tests and notebooks of one folder
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
ALWAYS = ("test_exports.py", "test_house.py")  # exports in step and the import rule, also for one folder


def folders() -> list[str]:
    """The folders of the package."""
    return sorted(p.parent.name for p in (ROOT / "nbs").glob("*/README.md"))


def quick_files(folder: str = "") -> list[str]:
    """Files with quick tests: of one folder, or all. Files that are slow as a whole are not even imported."""
    if folder: files = [*(TESTS / folder).glob("test_*.py"), *(TESTS / name for name in ALWAYS)]
    else: files = [p for p in TESTS.rglob("test_*.py") if p.parent.name != "browser"]
    quick = (p for p in files if "\npytestmark = pytest.mark.slow" not in p.read_text(encoding="utf-8"))
    return [p.relative_to(TESTS).as_posix() for p in sorted(quick) if p.name != "test_notebooks.py"]


def changed_notebooks() -> list[Path]:
    """Notebooks under nbs/ that differ from the last commit, new ones included."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "-z", "--untracked-files=all", "--", "nbs"]
    entries = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    found = {ROOT / e[3:] for e in entries if len(e) > 3 and e[2] == " "}
    return sorted(p for p in found if p.suffix == ".ipynb" and p.exists())


def notebook_tests(notebooks: list[Path]) -> list[str]:
    """The tests that run these notebooks."""
    names = [p.relative_to(ROOT / "nbs").with_suffix("").as_posix() for p in notebooks]
    return [f"test_notebooks.py::test_notebook_runs[{name}]" for name in names]


def main(folder: str = "") -> int:
    """Run the checks; the exit status is that of the first that fails, else 0."""
    if folder and folder not in folders(): sys.exit(f"FOLDER: expected one of {', '.join(folders())}, got {folder!r}")
    notebooks = sorted((ROOT / "nbs" / folder).glob("*.ipynb")) if folder else changed_notebooks()
    chosen = [f"tests/{name}" for name in quick_files(folder) + notebook_tests(notebooks)]
    lint = ["ruff", "check", "--quiet", "."]
    tests = ["pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow or notebook", *chosen]
    for command in (lint, tests):
        if status := subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode: return status
    return 0


if __name__ == "__main__": sys.exit(main(*sys.argv[1:2]))
