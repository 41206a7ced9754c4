"""The quick checks: lint, exports in step, the import rule, tests that are not slow, and the notebooks changed since the last commit.

    python tests/check.py            # everything quick
    python tests/check.py ssm        # the tests and notebooks of one folder
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def changed_notebooks() -> list[Path]:
    """Notebooks that differ from the last commit, new ones included; executed copies in runs/ aside."""
    words = ["git", "-C", str(ROOT), "status", "--porcelain", "-z", "--untracked-files=all", "--", "nbs"]
    entries = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    found = {ROOT / e[3:] for e in entries if len(e) > 3 and e[2] == " "}
    return sorted(p for p in found if p.suffix == ".ipynb" and p.exists())


def tests_of(notebooks: list[Path]) -> list[str]:
    """The tests that run these notebooks."""
    return [f"tests/test_notebooks.py::test_notebook_runs[{p.relative_to(ROOT / 'nbs').with_suffix('').as_posix()}]"
            for p in notebooks]


def main(folder: str = "") -> int:
    """Run the checks; the exit status is that of the first that fails, else 0."""
    python, known = sys.executable, sorted(p.name for p in (ROOT / "tests").iterdir() if list(p.glob("test_*.py")))
    if folder and folder not in known: sys.exit(f"FOLDER: expected one of {', '.join(known)}, got {folder!r}")
    notebooks = sorted((ROOT / "nbs" / folder).glob("*.ipynb")) if folder else changed_notebooks()
    quick = ["-m", "not slow", f"tests/{folder}"] if folder else ["-m", "not slow", "--ignore", "tests/browser",
                                                                  "tests"]
    steps = [["ruff", "check", "--quiet", "."], ["pytest", "-n", "2", "--dist", "worksteal", *quick]]
    if folder: steps.insert(1, ["pytest", "tests/test_house.py"])
    if notebooks: steps.append(["pytest", "-n", "2", *tests_of(notebooks)])
    for step in steps:
        if status := subprocess.run([python, "-m", *step], cwd=ROOT).returncode: return status
    return 0


if __name__ == "__main__": sys.exit(main(*sys.argv[1:2]))
