"""The folders of the package: what each may import, and that notebooks and modules have the same folders and names."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sashimi_wb"
NOTEBOOKS = ROOT / "nbs"

EVERYTHING = "core show tokens prediction audio ssm models training synthesis coding cluster studies pages"
MAY_IMPORT = {                # folder -> the folders that it may import, besides itself
    "core": "",
    "show": "core",
    "tokens": "core show",
    "prediction": "core show tokens",
    "audio": "core tokens prediction",
    "ssm": "core",
    "models": "core tokens prediction ssm",
    "training": "core tokens prediction audio",
    "synthesis": "core tokens prediction models",
    "coding": "core show tokens prediction audio models training synthesis",
    "cluster": "core show",
    "studies": "core show tokens prediction audio ssm models training synthesis coding cluster",
    "pages": "core show tokens prediction audio ssm models training synthesis coding cluster studies",
}                             # modules at the top (the command line and the public names) may import everything


def modules() -> dict[str, Path]:
    """Every exported module: its dotted name inside the package, and its path."""
    found = {p: p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in PACKAGE.rglob("*.py")}
    return {name: p for p, name in sorted(found.items()) if not name.endswith(("__init__", "_modidx"))}


def own_imports(source: str, module: str) -> set[str]:
    """Modules of this package that a source imports, at the top or inside functions, by relative or full name."""
    found, package = set(), ["sashimi_wb", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[:len(package) + 1 - node.level] if node.level else []
            full = ".".join([*start, *filter(None, [node.module])])
            found |= {full, *(f"{full}.{a.name}" for a in node.names)}
    known = modules()
    return {n.removeprefix("sashimi_wb.") for n in found if n.removeprefix("sashimi_wb.") in known
            and n.startswith("sashimi_wb.")}


def folder(module: str) -> str:
    """The folder of a module; for a module at the top its own name."""
    return module.split(".")[0]


def test_every_form_of_import_is_seen():
    source = "from .codes import x\nfrom ..core.system import y\nfrom sashimi_wb.ssm.s4 import S4\n" \
             "import sashimi_wb.models.heads\ndef f():\n    from sashimi_wb.audio import files\nimport torch"
    assert own_imports(source, "tokens.layouts") == {"core.system", "ssm.s4", "models.heads", "audio.files"}


def test_there_are_modules_in_every_folder():
    assert {folder(m) for m in modules()} >= set(MAY_IMPORT)
    assert len(modules()) > 60


def test_imports_follow_the_rule():
    wrong = []
    for module, path in modules().items():
        may = MAY_IMPORT.get(folder(module), EVERYTHING).split()
        for other in own_imports(path.read_text(encoding="utf-8"), module):
            if folder(other) not in may and folder(other) != folder(module): wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_folders_have_no_cycle_inside():
    from graphlib import TopologicalSorter
    graph = {m: own_imports(p.read_text(encoding="utf-8"), m) - {m} for m, p in modules().items()}
    assert list(TopologicalSorter(graph).static_order())


def test_numbers_are_the_reading_order():
    """Numbers start at 01 in each folder and have no gaps, and no page imports a later one of its folder."""
    for name in set(MAY_IMPORT):
        pages = sorted(p.stem for p in (NOTEBOOKS / name).glob("*.ipynb"))
        assert [p[:2] for p in pages] == [f"{i:02d}" for i in range(1, len(pages) + 1)], name
        assert len(pages) <= 16
        order = {p[3:]: i for i, p in enumerate(pages)}
        for module in order:
            for other in own_imports((PACKAGE / name / f"{module}.py").read_text(encoding="utf-8"), f"{name}.{module}"):
                if folder(other) == name:
                    assert order[other.split(".")[1]] < order[module], f"{name}/{module} imports {other}"


def test_tests_have_the_folders_of_the_package():
    folders = {p.parent.name for p in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - {"browser", "docs", "gpu"} <= set(MAY_IMPORT)


def test_notebook_and_module_lie_side_by_side():
    for module, path in modules().items():
        name = path.stem
        if "." in module: expected = rf"nbs/{folder(module)}/\d\d_{name}\.ipynb"
        else: expected = rf"nbs/(api/{name}|{name}|\d\d_{name})\.ipynb"
        first = path.read_text(encoding="utf-8").split("\n# %%")[0]
        assert re.search(expected, first), f"{module} should come from {expected}"


@pytest.mark.parametrize("name", sorted(set(MAY_IMPORT)))
def test_every_folder_has_a_readme(name):
    text = (NOTEBOOKS / name / "README.md").read_text(encoding="utf-8")
    may = re.search(r"\*\*May import:\*\* (.*)", text).group(1)
    above = set(list(MAY_IMPORT)[: list(MAY_IMPORT).index(name)])
    listed = above if may == "every folder above." else set(re.findall(r"`(\w+)`", may))
    assert listed == set(MAY_IMPORT[name].split())
    for module in (p.stem[3:] for p in (NOTEBOOKS / name).glob("*.ipynb")):
        assert f"`{module}`" in text, f"{name}/README.md leaves out {module}"
