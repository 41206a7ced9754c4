"""The API reference: every object is described, every link in it leads to an object, and every example is right."""
import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import reference

MODULES = reference.read_package()
NAMES = reference.Names(MODULES)
ENTRIES = [e for m in MODULES.values() for e in m.entries.values() if e.module is m]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path without its ending -> text, for every page."""
    folder = tmp_path_factory.mktemp("api")
    return {p.relative_to(folder).with_suffix("").as_posix(): p.read_text(encoding="utf-8")
            for p in reference.write_reference(folder)}


def test_a_new_folder_needs_a_place_in_the_order(tmp_path, monkeypatch):
    for name in ("core", "newer"): (tmp_path / name).mkdir()
    for name in ("core", "newer"): (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(reference, "PACKAGE", tmp_path)
    with pytest.raises(ValueError, match="CONTRIBUTING.md: expected a row .* for newer"): reference.folders()


def test_every_module_has_a_page(pages):
    assert set(pages) == {"index", *reference.FOLDERS, *(m.replace(".", "/") for m in MODULES)}
    for module in MODULES.values():
        for name in module.names: assert f"<{module.entries[name].full}>" in pages["index"] + "".join(
            pages[f] for f in reference.FOLDERS), f"{module.name}.{name} is in no list"


def test_every_public_parameter_has_a_comment():
    """Functions, classes and methods of the public modules; a method may have the comments of its base class."""
    missing = []
    for entry in (x for e in ENTRIES if e.public for x in (e, *e.members.values())):
        base = reference.base_method(entry, NAMES) if "." in entry.name else None
        found = {p: c or (base.parameters.get(p) if base else "") for p, c in entry.parameters.items()}
        if entry.kind == "class": found |= {f.name: f.module.comment(f.node.lineno) for f in entry.fields}
        missing += [f"{entry.full}: {p}" for p, comment in found.items() if not comment]
        if not (entry.doc or base): missing.append(f"{entry.full} has no docstring")
    assert not missing, "\n".join(missing)


def test_links_lead_to_objects(pages):
    """Every link names an object that a directive defines once, or a page that exists."""
    defined = [e.full for e in ENTRIES] + [m.full for e in ENTRIES for m in e.members.values()]
    assert len(defined) == len(set(defined))
    known = {*defined, *(m.full for m in MODULES.values())}
    for name, text in pages.items():
        links = re.findall(r":py:(?:obj|mod):`[^`<]*<([^>]+)>`", text) + re.findall(r"~(sashimi_wb[\w.]+)", text)
        assert not set(links) - known, name
        for page in re.findall(r":doc:`[^`<]*<(/[^>]+)>`", text): assert (ROOT / f"{page[1:]}.ipynb").exists(), page


def test_every_command_and_option_is_described(pages):
    from sashimi_wb.cli import parser
    for words in re.findall(r"^  +(?:\{)?([\w,]+)\}", parser().format_help(), re.M):
        for command in words.split(","): assert f"sashimi-wb {command}\n---" in pages["cli"]
    for option in ("--audio AUDIO", "--no-verify", "--top-k TOP_K"): assert f".. option:: {option}\n" in pages["cli"]


def test_comments_belong_to_parameters(tmp_path):
    source = '''"""A module."""
__all__ = ["f", "C", "LOW", "HIGH", "load"]
# the least; the most
LOW, HIGH = 1, 2


def f(
    a:int, b:int=1,   # two of `C`
    # of a line above
    c:str="x",
    *more,
)->int:               # sum_of
    """Add [0, 2**a). Raises: ValueError for an `a` below 0. Source: arXiv 1234.56789."""
    return g(a)       # not this one


@dataclass(frozen=True)
class C:
    """Has `value`."""
    value: Float[Tensor, "b t c"] = None  # a wave

    def value_of(self, x): return x       # on one line


@intrinsic
def load(typing, array):  # noqa: F821
    """A vector."""
'''
    (tmp_path / "m.py").write_text(source)
    module = reference.Module("a.m", tmp_path / "m.py")
    reference._read_entries(module)
    names, e = reference.Names({"a.m": module}), module.entries
    assert e["f"].parameters == {"a": "two of `C`", "b": "two of `C`", "c": "of a line above", "more": ""}
    assert (e["f"].returned, e["C"].members["value_of"].doc) == ("sum_of", "on one line")
    assert e["load"].parameters == {"array": ""}
    assert ".. py:function:: load(array)\n\n   A vector.\n\n   An instruction" in reference.describe(e["load"], names)
    assert (e["LOW"].doc, e["HIGH"].doc) == ("the least", "the most")
    text = reference.describe(e["f"], names)
    assert text.startswith(".. py:function:: f(a: int, b: int=1, c: str='x', *more) -> int\n")
    assert "   :param a: two of :py:obj:`C <sashimi_wb.a.m.C>`\n" in text and "   :returns: sum\\_of\n" in text
    assert "   Add [0, 2\\*\\*a).\n" in text and ":Raises: ``ValueError`` for an ``a`` below 0." in text
    assert ":Source: `arXiv 1234.56789 <https://arxiv.org/abs/1234.56789>`__." in text
    assert ".. py:class:: C(value: Float[Tensor, 'b t c'] = None)\n" in reference.describe(e["C"], names)


@pytest.mark.parametrize("name", [m.name for m in MODULES.values() if ">>> " in m.source])
def test_examples(name):
    """The examples in the docstrings of a module."""
    found = doctest.testmod(importlib.import_module(f"sashimi_wb.{name}"),
                            optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
