"""The committed package, notebooks and README are what the tools make of the notebooks; the package keeps its promises."""
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
from readme import differences, move_links, plain_html

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sashimi_wb"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
BIN = Path(sys.executable).parent
# these may import Lightning, which costs seconds
TRAINS = {"training.lightning_parts", "training.trainer", "studies.live_worker", "trainer", "cli"}
COMPILED = {"synthesis.simd", "synthesis.compiled_draws", "synthesis.compiled_step"}  # what numba compiles

OWNERS = packages_distributions()

def dotted(path: Path) -> str:
    """The name of a module inside the package."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = config["DEFAULT"]


def all_notebooks() -> list[Path]:
    """Every notebook of the project, executed copies and check points aside."""
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*.ipynb"))
    return sorted(p for p in found if p.parts[0] != "runs" and not any(part[0] == "." for part in p.parts))


def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, its own package's aside."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module)
    return {name for name in names if name.split(".")[0] != "sashimi_wb"}


def run_python(code: str, *args: str) -> subprocess.CompletedProcess:
    """Run code in a fresh Python."""
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT, timeout=240)


def copy_sources(there: Path) -> Path:
    """Copy the notebooks, the settings and the one module written by hand; the working tree stays as it is."""
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


def test_readme_matches_index():
    if not (ROOT / "nbs/index.ipynb").exists():
        assert not (ROOT / "README.md").exists(), "README.md is made from nbs/index.ipynb, which is missing"
        pytest.skip("nbs/index.ipynb is not written yet")
    assert not differences(), "not as nbs/index.ipynb says: run `make readme`"


def test_readme_tools():
    assert move_links("![a](images/a.png) [b](../data/README.md) [c](https://x.org) [d](#d) `[e](f)`") == \
        "![a](nbs/images/a.png) [b](data/README.md) [c](https://x.org) [d](#d) `[e](f)`"
    assert plain_html('<style>td {}</style>\n\n<table class="t"><tr><td style="x">1</td></tr></table>') == \
        "<table><tr><td>1</td></tr>\n</table>"
    assert "<audio" not in plain_html('<audio src="data:audio/flac;base64,AAAA"></audio>')


def dead_links(text: str, folder: Path) -> list[str]:
    """Relative links of a Markdown text that lead nowhere."""
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"""\b(?:src|href)=["']([^"']+)["']""", text)
    local = [link.split("#")[0] for link in links if not re.match(r"[a-z][a-z0-9+.-]*:|#", link, re.I)]
    return [link for link in local if not (folder / link).exists()]


@pytest.mark.parametrize("name", ["README.md", "data/README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    assert not dead_links((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent)


@pytest.mark.parametrize("path", [ROOT / "nbs/start.ipynb", *sorted((ROOT / "nbs/explore").glob("*.ipynb"))], ids=lambda p: p.stem)
def test_links_of_pages_lead_somewhere(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not dead_links("\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"), path.parent)


def test_pictures_are_small():
    large = {p.name: p.stat().st_size for p in (ROOT / "nbs/images").glob("*") if p.stat().st_size > 400_000}
    assert not large


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_public_names_have_docstrings(path):
    module = tree(path)
    bare = [] if ast.get_docstring(module) else ["the module (the notebook's H1 and > line)"]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            if not ast.get_docstring(node): bare.append(node.name)
    assert not bare, f"{path.name}: without a docstring"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_are_requirements(path):
    """What the package imports is asked for in settings.ini, and none of it is a development tool."""
    key = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    asked = {key(re.split(r"[<>=!~\[;]", r)[0]) for r in SETTINGS["requirements"].split()}
    names = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert not names & {"nbdev", "fastcore", "execnb"}, "exported code must run without nbdev and fastcore"
    assert not [n for n in names
                if not {key(o) for o in OWNERS.get(n, [])} & asked], "missing in requirements of settings.ini"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_is_pickled(path):
    """Loading a file must never run code from it; `trainer` may hand bytes to its own worker processes."""
    allowed = {"pickle"} if path.stem == "trainer" else set()
    assert not imported(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} - allowed
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call): continue
        words = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert ast.unparse(node.func) not in ("pickle.load", "pickle.dump"), f"line {node.lineno}: a pickled file"
        if ast.unparse(node.func) == "torch.load":
            assert words.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"
        assert words.get("allow_pickle", "False") == "False", f"line {node.lineno}: allow_pickle"


def test_imports_are_light():
    """`import sashimi_wb` costs nothing, only training imports Lightning, and numba comes with what it compiles; slow libraries wait for their first use."""
    code = """
import importlib, sys
seconds = {"lightning", "pytorch_lightning", "librosa", "numba", "pykeops", "papermill", "torchaudio", "nbdev", "fastcore"}
import sashimi_wb
loaded = ({"torch", "matplotlib", "numpy"} | seconds) & sys.modules.keys()
assert not loaded, f"import sashimi_wb loads {sorted(loaded)}"
for name in sys.argv[1:]:
    importlib.import_module(f"sashimi_wb.{name}")
    loaded = seconds & sys.modules.keys()
    assert not loaded, f"import sashimi_wb.{name} loads {sorted(loaded)}"
"""
    done = run_python(code, *(name for name in map(dotted, MODULES) if name not in TRAINS | COMPILED))
    assert done.returncode == 0, done.stderr


def resample(transform=None) -> int:
    """Length of one second at 16 kHz taken to 8 kHz by torchaudio."""
    import torch

    from sashimi_wb.core.system import import_torchaudio
    transform = transform or import_torchaudio().transforms.Resample(16_000, 8_000)
    return transform(torch.zeros(1, 16_000)).shape[-1]


def start_worker() -> None:
    """What a worker must do before a torchaudio object reaches it."""
    from sashimi_wb.core.system import import_torchaudio
    import_torchaudio()


def test_torchaudio_in_a_fresh_process():
    done = run_python("from sashimi_wb.core.system import import_torchaudio as load; ta = load(); assert load() is ta; "
                      "assert ta.functional.mu_law_encoding(__import__('torch').zeros(3), 256).tolist() == [128] * 3")
    assert done.returncode == 0, done.stderr


def test_torchaudio_in_a_spawned_worker():
    from sashimi_wb.core.system import import_torchaudio
    transform = import_torchaudio().transforms.Resample(16_000, 8_000)
    with multiprocessing.get_context("spawn").Pool(1, initializer=start_worker) as pool:
        assert pool.apply_async(resample).get(120) == 8_000
        assert pool.apply_async(resample, (transform,)).get(120) == 8_000


def test_constraints_pin_every_direct_requirement():
    pins = re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    key = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    names = [key(name) for name, _ in pins]
    direct = {key(re.split(r"[<>=!~\[;]", r)[0])
              for r in (SETTINGS["requirements"] + " " + SETTINGS["dev_requirements"]).split()}
    assert not direct - set(names)
    assert names == sorted(set(names)), "constraints.txt is alphabetical, each name once"


def test_make_help_lists_the_targets():
    if not shutil.which("make"): pytest.skip("no make here")
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "JOBS", "ARGS")}
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for target in ("ablations", "test", "lab", "hooks", "export", "readme", "clean"):
        assert f"make {target} " in done.stdout
