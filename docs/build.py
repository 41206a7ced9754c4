"""Build the site in docs/_build/html: execute notebooks, convert pages, run Sphinx, check the result.

    python docs/build.py                    # everything
    python docs/build.py nbs/tokens howto   # the start page and pages whose paths begin so
"""
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from executed import execute_all
from staged import ROOT, pages, stage

DOCS = Path(__file__).resolve().parent


def copy_mathjax(target: Path) -> None:
    """Copy MathJax and its fonts from the package sphinx-mathjax-offline."""
    source = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax"
    for name in ("tex-chtml.js", "output/chtml/fonts/woff-v2"):
        place = target / "mathjax" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (source / name).is_dir() else shutil.copyfile)(source / name, place)


def generate(script: str, target: Path, only: list[str]) -> list[str]:
    """Let a script of this folder write pages into a folder: their paths relative to the parent of the folder."""
    if not (DOCS / script).exists(): return []
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(DOCS / script), str(target), *only], check=True, cwd=ROOT)
    return [p.relative_to(target.parent).as_posix() for p in target.rglob("*") if p.is_file()]


def build(only: list[str], output: Path = DOCS / "_build") -> int:
    """Build the site, or a part of it, in the folder `output`; returns the number of things that went wrong."""
    began, source, html = time.perf_counter(), output / "source", output / "html"
    chosen = pages(only)
    errors = execute_all([Path(p) for p in chosen if p.endswith(".ipynb")], output / "executed")
    for path in errors:
        if not (output / "executed" / path).exists(): chosen.pop(path.as_posix())
    wanted = not only or any(name.startswith("api") for name in only)
    generated = generate("reference.py", source / "api", only) if wanted else []
    broken = stage(output / "executed", source, chosen, generated, partial=bool(only))
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-j", "2", "-c", str(DOCS), str(source), str(html)])
    copy_mathjax_once(html / "_static")
    for path, error in errors.items(): print(f"not executed: {path}: {error}")
    for link in broken: print(f"link that leads nowhere: {link}")
    print(f"{html / 'index.html'}: {time.perf_counter() - began:.0f} s")
    return len(errors) + len(broken) + done.returncode


def copy_mathjax_once(target: Path) -> None:
    """Copy MathJax unless it is there."""
    if not (target / "mathjax").exists(): copy_mathjax(target)


if __name__ == "__main__": sys.exit(min(build(sys.argv[1:]), 1))
