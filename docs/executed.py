"""Execute notebooks, and keep the executed copies, each with a hash of all that decides its outputs."""
import ast
import hashlib
import inspect
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nbformat

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))
from run_notebook import NEEDS, skipped_flags

from sashimi_wb.core.processes import ForkServer, end_tree
from sashimi_wb.core.sources import code_sources
from sashimi_wb.core.system import write_atomic

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 3600   # ends a notebook that hangs; a crowded machine is slow


def directives(source: str) -> set[str]:
    """The directives of a cell, such as "export", "hide" or "eval: false"."""
    return {line[2:].strip() for line in source.splitlines() if line.startswith("#|")}


def lacks(notebook: Path) -> str:
    """The package that a notebook needs and that is not installed here, or an empty text."""
    package = NEEDS.get(notebook.stem, "")
    return package if package and find_spec(package) is None else ""


def execute(source: str, output: str, runs: str) -> None:
    """Execute the cells of a notebook in this process, up to the first error, and save the copy.

    Figures are saved with twice the pixels. Raises: SystemExit with the number of the cell and its error."""
    from matplotlib_inline.backend_inline import configure_inline_support, set_matplotlib_formats
    from traitlets.config import Config

    from sashimi_wb.core.notebooks import NotebookShell
    os.environ["SASHIMI_WB_RUNS"] = runs
    os.chdir(Path(source).parent)
    # cells that are not executed keep the outputs that the notebook was saved with
    notebook, skipped, failed = nbformat.read(source, 4), {"eval: false", *skipped_flags()}, ""
    shell = NotebookShell.instance(config=Config(HistoryManager={"enabled": False}))
    configure_inline_support(shell, "module://matplotlib_inline.backend_inline")
    set_matplotlib_formats("retina")
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip() or directives(cell.source) & skipped: continue
        cell.outputs, cell.execution_count = [], shell.execution_count
        if not shell.run(cell.source, cell.outputs):
            error = next((o for o in cell.outputs[::-1] if o.output_type == "error"), None)
            failed = f"cell {i}: {error.ename}: {error.evalue}" if error else f"cell {i} failed"
            break
    write_atomic(output, nbformat.writes(notebook))
    if failed: sys.exit(failed)


def data_fingerprint() -> str:
    """A hash of the names and sizes of the files under data/, and of the recorded results."""
    files = sorted(p for p in (ROOT / "data").rglob("*") if p.is_file())
    sizes = json.dumps([(p.relative_to(ROOT).as_posix(), p.stat().st_size) for p in files])
    return hashlib.sha256(sizes.encode() + (ROOT / "nbs/results.json").read_bytes()).hexdigest()


def bare(source: str, module: bool = True) -> str:
    """Code without comments and docstrings, which change no output, as text; a cell that is no Python as it is."""
    try: tree = ast.parse(source)
    except SyntaxError: return source
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, *[ast.Module]*module)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None: del node.body[0]
    return ast.dump(tree)


def hashed(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class BareHashes:
    """The hashes of `bare` code, of which a file can keep the known ones: to parse the whole package takes seconds."""

    def __init__(self, path: Path | None = None):
        self.known = json.loads(path.read_text()) if path and path.exists() else {}

    def __call__(self, source: str, module: bool = True) -> str:
        name = hashed(f"{module} {source}")
        if name not in self.known: self.known[name] = hashed(bare(source, module))
        return self.known[name]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@cache
def package_modules() -> set[str]:
    """The modules of the package, such as "tokens.quantization"."""
    return {p.relative_to(ROOT / "sashimi_wb").with_suffix("").as_posix().replace("/", ".")
            for p in (ROOT / "sashimi_wb").rglob("*.py") if p.stem not in ("__init__", "_modidx")}


def key(notebook: Path, data: str, bare_hash: BareHashes | None = None) -> str:
    """The hash of what decides outputs: code and directives of a notebook, all it imports, `execute`, data."""
    cells = [c.source for c in code_cells(nbformat.read(notebook, 4))]
    text, modules, bare_hash = "\n".join(cells), package_modules(), bare_hash or BareHashes()
    named = {name.removeprefix("sashimi_wb.") for name in re.findall(r"\bsashimi_wb\.[a-z_0-9.]*[a-z_0-9]", text)}
    whole = re.search(r"\bimport sashimi_wb\b(?!\.)", text) or notebook.parent.name == "experiments"
    code = code_sources(*sorted(modules if whole else named & modules))
    parts = [[(bare_hash(cell, module=False), sorted(directives(cell))) for cell in cells], data,
             inspect.getsource(execute), {name: bare_hash(source) for name, source in code.items()}]
    return hashed(json.dumps(parts))


def finish(server: ForkServer, arguments: list[str], text: Path) -> str:
    """Call the server's function in a process and wait for its end: the last line of its error, empty if none."""
    process, began = server.start(arguments, text), time.perf_counter()
    while (code := process.poll()) is None:
        if time.perf_counter() - began > TIMEOUT_S:
            end_tree(process.pid)
            return f"did not end within {TIMEOUT_S} s"
        time.sleep(0.1)
    lines = text.read_text(errors="replace").split("\n")
    return (next((line for line in lines[::-1] if line.strip()), "") or f"exit code {code}") if code else ""


def say_now(text: str) -> None:
    """Print a line at once, even into a file."""
    print(text, flush=True)


def execute_all(
    notebooks: list[Path],  # relative to the folder `root`
    kept: Path,             # folder of the executed copies
    root: Path = ROOT,
    jobs: int = 2,
    say: Callable[[str], None] = say_now,
) -> dict[Path, str]:       # notebook -> error, of those that failed
    """Execute the notebooks whose copies in `kept` are missing or outdated, except those that lack a package here.

    The copy of nbs/tokens/x.ipynb is kept/nbs/tokens/x.ipynb, and x.key beside it has its hash. A notebook that fails
    leaves a copy with the outputs before the error, and no hash, so that it is executed again next time. The copy may
    be older than the text, comments and docstrings of the notebook: take its outputs only (`with_outputs`)."""
    data, errors, bare_hash = data_fingerprint(), {}, BareHashes(kept / "bare.json")
    keys = {path: key(root / path, data, bare_hash) for path in notebooks if not lacks(path)}
    write_atomic(kept / "bare.json", json.dumps(bare_hash.known))
    copies = {path: kept.resolve() / path for path in keys}
    old = [path for path, copy in copies.items() if not (copy.exists() and copy.with_suffix(".key").exists()
           and copy.with_suffix(".key").read_text() == keys[path])]
    if not old: return errors
    say(f"executing {len(old)} of {len(notebooks)} notebooks")
    env = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    env["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    imports = "run_notebook:prepare" if len(old) > 4 else ""     # for a few it takes longer than it saves
    with (tempfile.TemporaryDirectory() as folder, ForkServer("executed:execute", imports, env) as server,
          ThreadPoolExecutor(jobs) as pool):
        def run(path):
            began, name = time.perf_counter(), path.as_posix().replace("/", "_")
            copies[path].with_suffix(".key").unlink(missing_ok=True)
            arguments = [str(root / path), str(copies[path]), f"{folder}/{name}"]
            error = finish(server, arguments, Path(folder, name + ".txt"))
            if copies[path].exists():     # paths of this machine are of no use to a reader
                text = copies[path].read_text(encoding="utf-8")
                write_atomic(copies[path], text.replace(f"{folder}/{name}", "runs").replace(f"{root}/", ""))
            if error: errors[path] = error
            else: write_atomic(copies[path].with_suffix(".key"), keys[path])
            say(f"{time.perf_counter() - began:6.1f} s  {path}" + f"  FAILED: {error}"*bool(error))
        list(pool.map(run, old))
    return errors


def with_outputs(notebook: Path, copy: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of its executed copy."""
    made = nbformat.read(notebook, 4)
    for cell, executed in zip(code_cells(made), code_cells(nbformat.read(copy, 4)), strict=True):
        cell.outputs = executed.outputs
    return made
