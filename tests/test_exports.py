"""Package and README match the notebooks that they are made from; imports, docstrings and links are checked."""
import ast
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from nbformat.v4 import new_output
from readme import NOTE, differences, move_links, readable

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sashimi_wb"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
BIN = Path(sys.executable).parent
# modules that may import Lightning, which takes seconds
TRAINS = {"training.lightning_parts", "training.run_checkpoints", "training.trainer",
          "studies.live_worker", "trainer", "cli"}
# modules of compiled functions, which import numba
COMPILED = {"core.compiled", "core.simd", "core.barrier", "prediction.least_squares", "prediction.nlms",
            "prediction.blending", "prediction.parts", "prediction.row_masses", "prediction.adaptive",
            "prediction.mixing", "prediction.token_predictor",
            "synthesis.compiled_draws", "synthesis.compiled_step", "synthesis.compiled_predicted",
            "coding.range_coder", "coding.predicted_samples", "coding.segments",
            "coding.model_intervals", "coding.model_segments", "coding.compression", "coding.sizes", "compression"}
NEEDS_A_CARD = {"synthesis.triton_kernels"}       # imports triton, which comes with torch for CUDA only
NOT_IN_EXPORTS = {"nbdev", "fastcore", "execnb"}  # development tools
UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}  # loading a file may run code from it


def dotted(path: Path) -> str:
    """The name of a module inside the package."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = config["DEFAULT"]


def all_notebooks() -> list[Path]:
    """Every notebook of the project, without executed copies and checkpoints of Jupyter."""
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*.ipynb"))
    return sorted(p for p in found if p.parts[0] != "runs" and not any(part[0] == "." for part in p.parts))


def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, except those of this package."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module)
    return {name for name in names if name.split(".")[0] != "sashimi_wb"}


def run_python(code: str, *args: str) -> subprocess.CompletedProcess:
    """Run code in a fresh Python."""
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT, timeout=240)


def copy_sources(there: Path) -> Path:
    """Copy the notebooks, the settings and the one handwritten module, so that the working tree stays as it is."""
    (there / "sashimi_wb").mkdir()
    for name in ("settings.ini", "setup.py", "pyproject.toml", "sashimi_wb/__init__.py"):
        shutil.copy(ROOT / name, there / name)
    for path in all_notebooks():
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, there / path)
    return there


def nbdev(command: str, *args: str, cwd: Path) -> None:
    """Run one of nbdev's commands."""
    done = subprocess.run([BIN / command, *args], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_package_matches_notebooks(tmp_path):
    copy_sources(tmp_path)
    nbdev("nbdev_export", cwd=tmp_path)
    made = {str(p.relative_to(tmp_path / "sashimi_wb")): p.read_bytes()
            for p in (tmp_path / "sashimi_wb").rglob("*.py")}
    have = {str(p.relative_to(PACKAGE)): p.read_bytes() for p in PACKAGE.rglob("*.py")}
    assert not made.keys() - have.keys(), "not exported yet: run `make export`"
    assert not have.keys() - made.keys(), "no notebook exports these: write code in nbs/, or remove the file"
    assert not [name for name in made if made[name] != have[name]], "differ from their notebooks: run `make export`"


def test_notebooks_are_clean(tmp_path):
    copy_sources(tmp_path)
    before = {path: (tmp_path / path).read_bytes() for path in all_notebooks()}
    nbdev("nbdev_clean", "--fname", str(tmp_path), cwd=tmp_path)
    assert not [str(path) for path in before
                if (tmp_path / path).read_bytes() != before[path]], "not clean: run `make export`"


def test_notebooks_name_their_kernel():
    """Without it neither papermill nor the site knows the language of the cells."""
    metadata = {path: json.loads((ROOT / path).read_text(encoding="utf-8"))["metadata"] for path in all_notebooks()}
    assert not [str(p) for p, found in metadata.items() if found.get("kernelspec", {}).get("language") != "python"]


def test_readme_matches_index():
    assert not differences(), "README.md differs from nbs/index.ipynb: run `make readme`"


def test_readme_is_short_and_plain():
    """A first page, without HTML beside the first line's comment, which code hosts and registries show alike."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", text.removeprefix(NOTE), flags=re.M | re.S)
    assert text.startswith(NOTE) and not re.findall(r"<[a-z/!][^>]*>", prose)


def test_readme_tools():
    assert move_links("![a](images/a.png) [b](../data/README.md) [c](https://x.org) [d](#d) `[e](f)`") == \
        "![a](nbs/images/a.png) [b](data/README.md) [c](https://x.org) [d](#d) `[e](f)`"
    with pytest.raises(ValueError, match="show Markdown or a figure"):
        readable(new_output("display_data", {"text/html": "<b>1</b>", "text/plain": "1"}))


def dead_links(text: str, folder: Path) -> list[str]:
    """Relative links of a Markdown text that lead nowhere."""
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"""\b(?:src|href)=["']([^"']+)["']""", text)
    local = [link.split("#")[0] for link in links if not re.match(r"[a-z][a-z0-9+.-]*:|#", link, re.I)]
    return [link for link in local if not (folder / link).exists()]


def markdown_of(path: Path) -> str:
    """The Markdown of a text file or of a notebook's cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return text
    return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def test_links_lead_somewhere():
    texts = [ROOT / name for name in ("README.md", "data/README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    pages = [ROOT / "nbs/start.ipynb", *sorted((ROOT / "nbs/explore").glob("*.ipynb"))]
    dead = {path.relative_to(ROOT).as_posix(): dead_links(markdown_of(path), path.parent) for path in texts + pages}
    assert not {name: links for name, links in dead.items() if links}


def test_pictures_are_small():
    largest = {".png": 400_000, ".webp": 1_000_000}
    sizes = {p: p.stat().st_size for p in (ROOT / "nbs/images").glob("*")}
    assert not {p.name: size for p, size in sizes.items() if size > largest[p.suffix]}


def test_citation_names_this_version():
    """The file follows version 1.2.0 of the Citation File Format and agrees with the settings."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["authors"]) == (SETTINGS["version"], [{"name": SETTINGS["author"]}])
    assert cited["license"] == "Apache-2.0" and {r["url"] for r in cited["references"]} == {
        "https://arxiv.org/abs/2202.09729", "https://arxiv.org/abs/2111.00396"}
    for work in cited["references"]: assert {"type", "title", "authors"} <= set(work)


def public_names_without_docstring(path: Path) -> list[str]:
    """The public functions and classes of a module that have no docstring, and the module itself if it has none."""
    module = tree(path)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in module.body if isinstance(node, kinds) and node.name[0] != "_"]
    bare = [] if ast.get_docstring(module) else ["the module itself (the notebook's H1 and > line)"]
    return bare + [node.name for node in public if not ast.get_docstring(node)]


def test_public_names_have_docstrings():
    bare = {dotted(path): public_names_without_docstring(path) for path in MODULES}
    assert not {name: names for name, names in bare.items() if names}


def package_key(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def package_keys(requirements: str) -> set[str]:
    """The names in a list of requirements."""
    return {package_key(re.split(r"[<>=!~\[;]", r)[0]) for r in requirements.split()}


def test_imports_are_requirements():
    """What the package imports is listed in settings.ini, and none of it is a development tool."""
    asked, owners = package_keys(SETTINGS["requirements"]), packages_distributions()
    wrong = []
    for path in MODULES:
        names = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
        if dotted(path) in NEEDS_A_CARD: names -= {"triton"}
        if dotted(path) == "cluster.slurm": names -= set(SETTINGS["cluster_requirements"].split())    # optional
        wrong += [f"{dotted(path)} imports {n}, a development tool" for n in names & NOT_IN_EXPORTS]
        wrong += [f"{dotted(path)} imports {n}, which is not in requirements of settings.ini" for n in names
                  if not {package_key(o) for o in owners.get(n, [])} & asked]
    assert not wrong, "\n".join(wrong)


def unsafe_loads(path: Path) -> list[str]:
    """The places of a module that could run code from a file; one module hands bytes to processes that it starts."""
    allowed = {"pickle"} if path == PACKAGE / "training" / "processes.py" else set()
    wrong = [f"imports {name}" for name in imported(path) & UNSAFE - allowed]
    for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
        name, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name in ("pickle.load", "pickle.dump"): wrong.append(f"line {call.lineno}: {name}")
        if name == "torch.load" and options.get("weights_only") != "True":
            wrong.append(f"line {call.lineno}: torch.load without weights_only=True")
        if options.get("allow_pickle", "False") != "False": wrong.append(f"line {call.lineno}: allow_pickle")
    return wrong


def test_nothing_is_pickled():
    """Loading a file must never run code from it."""
    wrong = {dotted(path): unsafe_loads(path) for path in MODULES}
    assert not {name: places for name, places in wrong.items() if places}


@pytest.mark.parametrize("line", ["import pickle", "import dill", "torch.load(p)", "np.load(p, allow_pickle=True)"])
def test_an_unsafe_load_would_be_noticed(line, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert len(unsafe_loads(tmp_path / "x.py")) == 1


@pytest.mark.slow
def test_imports_are_light():
    """`import sashimi_wb` loads no large library; slow ones are imported where they are used.

    Lightning comes with training only, numba with the compiled functions only."""
    code = """
import importlib, sys
slow = {"lightning", "pytorch_lightning", "librosa", "numba", "pykeops", "papermill", "torchaudio", "nbdev", "fastcore",
        "nbformat"}
import sashimi_wb
loaded = ({"torch", "matplotlib", "numpy"} | slow) & sys.modules.keys()
assert not loaded, f"import sashimi_wb loads {sorted(loaded)}"
for name in sys.argv[1:]:
    importlib.import_module(f"sashimi_wb.{name}")
    loaded = slow & sys.modules.keys()
    assert not loaded, f"import sashimi_wb.{name} loads {sorted(loaded)}"
"""
    done = run_python(code, *(name for name in map(dotted, MODULES) if name not in TRAINS | COMPILED | NEEDS_A_CARD))
    assert done.returncode == 0, done.stderr


def resample(transform=None) -> int:
    """Resample one second from 16 kHz to 8 kHz with torchaudio; return its length."""
    import torch

    from sashimi_wb.core.system import import_torchaudio
    torchaudio = import_torchaudio()
    assert import_torchaudio() is torchaudio
    assert torchaudio.functional.mu_law_encoding(torch.zeros(3), 256).tolist() == [128] * 3
    transform = transform or torchaudio.transforms.Resample(16_000, 8_000)
    return transform(torch.zeros(1, 16_000)).shape[-1]


def start_worker() -> None:
    """Import torchaudio, which a worker must do before a torchaudio object reaches it."""
    from sashimi_wb.core.system import import_torchaudio
    import_torchaudio()


@pytest.mark.slow
def test_torchaudio_in_a_fresh_process():
    from sashimi_wb.core.system import import_torchaudio
    transform = import_torchaudio().transforms.Resample(16_000, 8_000)
    with multiprocessing.get_context("spawn").Pool(1, initializer=start_worker) as pool:
        assert pool.apply_async(resample).get(120) == 8_000
        assert pool.apply_async(resample, (transform,)).get(120) == 8_000


def test_constraints_pin_every_direct_requirement():
    pins = re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    names = [package_key(name) for name, _ in pins]
    direct = package_keys(SETTINGS["requirements"] + " " + SETTINGS["dev_requirements"])
    assert not direct - set(names)
    assert names == sorted(set(names)), "constraints.txt must be alphabetical and name each package once"


def test_make_help_lists_the_targets():
    if not shutil.which("make"): pytest.skip("no make here")
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "JOBS", "ARGS")}
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for target in ("ablations", "test", "lab", "hooks", "export", "readme", "clean"):
        assert f"make {target} " in done.stdout
