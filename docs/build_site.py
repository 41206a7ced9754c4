"""Build the site in docs/_build/html: execute notebooks, convert pages, run Sphinx, check the result.

    python docs/build_site.py                    # everything
    python docs/build_site.py nbs/tokens howto   # the start page, and pages whose files begin so (without docs/)
"""
import hashlib
import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import checked
from executed import execute_all, lacks
from staged import PAGES, ROOT, pages, stage

from sashimi_wb.core.system import write_atomic
from sashimi_wb.show.html import dark_style

DOCS = Path(__file__).resolve().parent
GENERATORS = {"results.py": "results", "reference.py": "api"}   # script -> the folder of the pages that it writes
UNNAMED = {Path(name) for name in ("genindex", "search", "py-modindex")}   # pages that Sphinx makes by itself


def generate(script: str, target: Path, only: list[str]) -> set[str]:
    """Let a script of this folder write pages into a folder, unless no file that it reads has changed since it did.

    The paths of the pages, relative to the parent of the folder."""
    read = [DOCS / script, ROOT / "CONTRIBUTING.md", ROOT / "nbs/results.json", *ROOT.glob("sashimi_wb/**/*.py"),
            *ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("nbs/*/README.md")]
    made = hashlib.sha256(json.dumps(only).encode() + b"".join(p.read_bytes() for p in sorted(read))).hexdigest()
    stamp = target.with_suffix(".made")
    if not (stamp.exists() and stamp.read_text() == made):
        subprocess.run([sys.executable, str(DOCS / script), str(target), *only], check=True, cwd=ROOT)
        write_atomic(stamp, made)
    return {p.relative_to(target.parent).as_posix() for p in target.rglob("*") if p.is_file()}


def write_assets(html: Path, media: dict[str, bytes]) -> None:
    """Put beside the pages: their sounds and pictures, MathJax with its fonts, and the style of figures in the dark."""
    for old in html.glob("_media/*"):
        if f"_media/{old.name}" not in media: old.unlink()
    for name, content in media.items():
        if not (html / name).exists(): write_atomic(html / name, content)
    source = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax"
    target = html / "_static/mathjax"
    if not target.exists():
        shutil.copytree(source / "output/chtml/fonts/woff-v2", target / "output/chtml/fonts/woff-v2")
        shutil.copyfile(source / "tex-chtml.js", target / "tex-chtml.js")
    automatic = f"@media (prefers-color-scheme: dark) {{ {dark_style('body[data-theme=auto]')} }}"
    write_atomic(html / "_static/figures.css", f"{dark_style('body[data-theme=dark]')}\n{automatic}\n")


def build(only: list[str], output: Path = DOCS / "_build") -> list[str]:
    """Build the site, or a part of it, in the folder `output`: what went wrong, one line each."""
    began, source, html = time.perf_counter(), output / "source", output / "html"
    chosen = pages([*only, *(f"docs/{name}" for name in only)])
    failed = execute_all([Path(p) for p in chosen if p.endswith(".ipynb")], output / "executed")
    for path in failed:
        if not (output / "executed" / path).exists(): chosen.pop(path.as_posix())
    for name in chosen:
        if package := lacks(Path(name)): print(f"{name} is not executed: it needs {package}, which is not installed")
    generated = set()
    for script, folder in GENERATORS.items():
        wanted = not only or any(name.startswith(folder) for name in only)
        if wanted: generated |= generate(script, output / "generated" / folder, only)
    links = stage(output, chosen, generated, partial=bool(only))
    documents = {p.relative_to(source).with_suffix("") for p in source.rglob("*") if p.suffix in PAGES}
    written = {p.relative_to(html).with_suffix("") for p in checked.html_pages(html)}
    every = ["-a"] if documents - written or written - documents - UNNAMED else []   # all menus change
    command = [sys.executable, "-m", "sphinx", "-q", "-j", "2", *every, "-c", str(DOCS), str(source), str(html)]
    sphinx = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    write_assets(html, links.media)
    for page in written - documents - UNNAMED: (html / f"{page}.html").unlink()   # Sphinx leaves them
    wrong = [f"{path}: not executed to its end: {error}" for path, error in failed.items()]
    wrong += [f"{link} leads nowhere" for link in sorted(set(links.broken))]
    warnings = [line.replace(f"{source}/", "") for line in sphinx.stderr.splitlines() if line.strip()]
    if only: warnings = [line for line in warnings if "toc.not_included" not in line]
    wrong += warnings + ([f"Sphinx ended with {sphinx.returncode}"] if sphinx.returncode else [])
    wrong += checked.check_files(html)
    print(f"{html / 'index.html'}: {checked.summary(html)}, {time.perf_counter() - began:.0f} s")
    return wrong


def main(only: list[str]) -> int:
    """Build the site, look at it in a browser, and say what is wrong: the exit status."""
    wrong = build(only) + checked.check_changed(DOCS / "_build/html", DOCS / "_build/checked.json")
    for line in wrong: print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
