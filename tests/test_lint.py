"""ruff over package, notebooks, tests and scripts, with the rules listed in pyproject.toml."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUFF = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]


def test_ruff():
    done = subprocess.run([*RUFF, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path,source,rule", [
    ("sashimi_wb/x.py", "def f(): return np.zeros(3)\n", "F821"),  # a global of the notebook that leaked into an export
    ("sashimi_wb/x.py", "print(1)\n", "T201"),                     # the library logs
    ("sashimi_wb/x.py", "import pickle\npickle.loads(b'')\n", "S301"),
    ("tests/x.py", "import os\n", "F401"),
    ("sashimi_wb/__init__.py", f"x = {'1'*120}\n", "E501"),
    ("tests/x.py", f"x = {'1'*120}\n", "E501"),
])
def test_ruff_would_notice(path, source, rule):
    done = subprocess.run([*RUFF, "--stdin-filename", str(ROOT / path), "-"], cwd=ROOT, input=source,
                          capture_output=True, text=True)
    assert rule in done.stdout
