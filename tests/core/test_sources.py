"""The sources on which a module depends are those that its imports lead to."""
import ast

import pytest

from sashimi_wb.core import sources
from sashimi_wb.core.sources import code_sources
from sashimi_wb.core.system import package_folder, write_atomic


def _package(folder, sources):
    for name, text in sources.items(): write_atomic(folder/"pkg"/name, text)
    return code_sources("top.runs", package=folder/"pkg")


def test_whatever_is_imported_is_found(tmp_path):
    sources = {"__init__.py": "", "top/__init__.py": "",
               "top/runs.py": "from ..tokens.quantization import enc\nfrom . import beside\nimport pkg.whole\n"
               "def f():\n    from pkg.late import x\n    from ..deep.er import y as z\n", "top/beside.py": "",
               "tokens/__init__.py": "from .inner import *\n",
               "tokens/quantization.py": "", "tokens/inner.py": "", "whole.py": "import numpy\n",
               "late.py": "from pkg import core", "core.py": "", "deep/er.py": "",
               "top/shown.py": "from . import runs", "tokens/unused.py": ""}
    found = _package(tmp_path/"a", sources)
    unused = {"pkg.top.shown", "pkg.tokens.unused"}
    assert set(found) == {"pkg" + ("." + n.removesuffix(".py").removesuffix("__init__").replace("/", ".").rstrip(".")
                                   if n != "__init__.py" else "") for n in sources} - unused
    # a checkout with other line ends
    assert _package(tmp_path/"b", {k: v.replace("\n", "\r\n") for k, v in sources.items()}) == found


def imports_ref(source, module, is_package):
    """Full names that a source imports, from its syntax tree."""
    found, parts = set(), module.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parts[:len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{a.name}" for a in node.names)}
    return found


def test_no_import_of_the_package_is_missed():
    folder = package_folder()
    for path in folder.rglob("*.py"):
        module = ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        source, is_package = path.read_text(encoding="utf-8"), path.name == "__init__.py"
        assert not imports_ref(source, module, is_package) - sources._imports(source, module, is_package), module


def test_a_start_without_source_is_an_error(tmp_path):
    write_atomic(tmp_path/"pkg"/"a.py", "")
    with pytest.raises(FileNotFoundError, match="pkg.b"): code_sources("a", "b", package=tmp_path/"pkg")
