"""Write the API reference: reStructuredText pages, for Sphinx, from docstrings, annotations and comments of parameters.

The sources are parsed and not imported, so that an annotation is shown as it was written (`Float[Tensor, "b t c"]`),
modules for other machines are included, and a page takes milliseconds. A comment belongs to the parameters on its
line, or on the next line if it stands alone, as in fastcore's docments; behind the end of the signature it belongs to
the returned value. An object that a public module offers is described there, and linked from the module that
defines it.

    python docs/reference.py folder                               # all pages
    python docs/reference.py folder api/quantization nbs/tokens   # this page, with links to these lessons
"""
import argparse
import ast
import copy
import io
import json
import os
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from textwrap import indent, wrap

ROOT = Path(__file__).resolve().parents[1]
NAME = "sashimi_wb"
PACKAGE, NOTEBOOKS = ROOT / NAME, ROOT / "nbs"


def folders() -> list[str]:
    """The folders of the package in the order of reading, that of the table in CONTRIBUTING.md.

    Raises: ValueError for a folder that the table lacks."""
    found = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    if missing := sorted(found - {*table}):
        raise ValueError(f"CONTRIBUTING.md: expected a row of the table of folders for {', '.join(missing)}; add it")
    return [name for name in table if name in found]


FOLDERS = folders()   # the numbers of the notebooks order the modules inside a folder
# the order of the public modules: first what a user meets first, then along the way of a sound; others follow
PUBLIC = ("workbench explore quantization interleave encoders s4 sashimi decoders model trainer generation compression "
          "baselines interop cli").split()
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
DECORATED = {"contextmanager": "A context manager.", "jit": "Compiled by Numba.",     # decorator -> what it means
             "intrinsic": "An instruction for functions that Numba compiles."}


# Reading the sources

@dataclass
class Module:
    """One module of the package, and the objects of its `__all__`."""
    name: str                                    # inside the package: "tokens.quantization"
    path: Path
    entries: dict[str, "Entry"] = field(default_factory=dict)

    def __post_init__(self):
        self.source = self.path.read_text(encoding="utf-8")
        self.lines, self.tree = self.source.splitlines(), ast.parse(self.source)
        self.doc = ast.get_docstring(self.tree) or ""
        found = re.search(r"File to edit: (?:\.\./)*(nbs/\S+\.ipynb)", self.source)
        self.notebook = found[1] if found else ""
        self.names = next((ast.literal_eval(n.value) for n in self.tree.body if isinstance(n, ast.Assign)
                           and getattr(n.targets[0], "id", "") == "__all__"), [])

    @property
    def full(self) -> str: return f"{NAME}.{self.name}"

    @cached_property
    def comments(self) -> dict[int, str]:
        """Line number -> its comment without `#`; remarks for a linter are none."""
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        found = {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
        return {line: text for line, text in found.items() if not text.startswith("noqa")}

    def above(self, line: int) -> str:
        """The lines that hold only a comment, directly above a line."""
        found = []
        while (line := line - 1) in self.comments and self.lines[line - 1].lstrip().startswith("#"):
            if self.comments[line].startswith("%%"): break
            found.insert(0, self.comments[line])
        return " ".join(found)

    def comment(self, line: int) -> str:
        """What the comment at a line says, or the comment lines above it if it has none."""
        return self.comments.get(line) or self.above(line)

    @cached_property
    def imports(self) -> dict[str, str]:
        """Name -> the name inside the package of what it was imported from, "tokens.quantization.Quantizer"."""
        found, package = {}, [NAME, *self.name.split(".")[:-1]]
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.ImportFrom): continue
            start = package[:len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            if base.split(".")[0] != NAME: continue
            for a in node.names: found[a.asname or a.name] = f"{base}.{a.name}".removeprefix(f"{NAME}.")
        return found


@dataclass
class Entry:
    """A function, class, method, property or value of a module."""
    name: str                       # in its module: "Quantizer", "Quantizer.encode"
    module: Module
    node: ast.AST
    members: dict[str, "Entry"] = field(default_factory=dict)
    public: str = ""                # full name of the public object; empty: that of its module

    @property
    def full(self) -> str: return self.public or f"{self.module.full}.{self.name}"

    @property
    def decorators(self) -> set[str]:
        """Names of the decorators, without arguments and modules."""
        called = [d.func if isinstance(d, ast.Call) else d for d in getattr(self.node, "decorator_list", [])]
        return {getattr(d, "attr", getattr(d, "id", "")) for d in called}

    @property
    def n_given(self) -> int:
        """How many of the first parameters are filled in: object or class, or what Numba passes to an intrinsic."""
        names = [a.arg for a in self.maker.args.posonlyargs + self.maker.args.args]
        return int(names[:1] in (["self"], ["cls"]) or "intrinsic" in self.decorators)

    @cached_property
    def kind(self) -> str:
        """The directive that describes it: "function", "class", "exception", "method", "property" or "data"."""
        if isinstance(self.node, ast.ClassDef):
            return "exception" if any("Error" in ast.unparse(b) for b in self.node.bases) else "class"
        if not isinstance(self.node, FUNCTION): return "attribute" if "." in self.name else "data"
        if "." not in self.name: return "function"
        return "property" if self.decorators & {"property", "cached_property"} else "method"

    @cached_property
    def doc(self) -> str:
        """The docstring; of a function on one line and of a value the comment."""
        if isinstance(self.node, FUNCTION | ast.ClassDef):
            if text := ast.get_docstring(self.node): return text
            one_line = isinstance(self.node, FUNCTION) and self.node.body[0].lineno == self.node.lineno
            return self.module.comments.get(self.node.lineno, "") if one_line else ""
        comments, first, last = self.module.comments, self.node.lineno, self.node.end_lineno
        text = self.module.above(first) or comments.get(first) or comments.get(last, "")
        target = getattr(self.node, "targets", [None])[0]
        names = [t.id for t in target.elts] if isinstance(target, ast.Tuple) else []
        parts = text.split("; ")                       # of several values, each has its part of the comment
        return parts[names.index(self.name)] if self.name in names and len(parts) == len(names) else text

    @cached_property
    def fields(self) -> list["Entry"]:
        """The annotated attributes of a class."""
        body = self.node.body if isinstance(self.node, ast.ClassDef) else []
        return [Entry(f"{self.name}.{n.target.id}", self.module, n) for n in body
                if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]

    @cached_property
    def maker(self) -> ast.AST | None:
        """What has the parameters: the function, or the `__init__` of a class."""
        if isinstance(self.node, FUNCTION): return self.node
        body = self.node.body if isinstance(self.node, ast.ClassDef) else []
        return next((n for n in body if isinstance(n, FUNCTION) and n.name == "__init__"), None)

    @cached_property
    def parameters(self) -> dict[str, str]:
        """Parameter -> its comment, without `self` and `cls`."""
        if not self.maker: return {}
        a = self.maker.args
        given = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
        given = given[self.n_given:]
        end = self._end
        return {p.arg: "" if p.lineno == end else self.module.comment(p.lineno) for p in given}

    @property
    def _end(self):
        "The line on which the signature ends: that of the annotation of the result, or of the closing bracket."
        if self.maker.returns: return self.maker.returns.end_lineno
        stop, line = self.maker.body[0].lineno, self.maker.lineno
        ends = [n for n in range(line, stop + 1) if re.search(r"\)\s*:", self.module.lines[n - 1].split("#")[0])]
        return ends[0] if ends else line

    @property
    def returned(self) -> str:
        """The comment of the result."""
        if not isinstance(self.node, FUNCTION) or self.node.body[0].lineno == self.node.lineno: return ""
        return self.module.comments.get(self._end, "")


def read_package() -> dict[str, Module]:
    """Every exported module with its entries: its name inside the package -> the module, in the order of reading."""
    paths = [p for p in PACKAGE.rglob("*.py") if not p.name.startswith("_")]
    modules = [Module(p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."), p) for p in paths]
    modules.sort(key=lambda m: m.notebook)
    modules.sort(key=lambda m: FOLDERS.index(m.name.split(".")[0]) if "." in m.name
                 else PUBLIC.index(m.name) - len(PUBLIC) if m.name in PUBLIC else -0.5)
    for module in modules: _read_entries(module)
    found = {m.name: m for m in modules}
    for module in modules:                      # objects of other modules; the public modules come first
        for name in [n for n in module.names if n not in module.entries]:
            entry = _origin(found, module, name)
            if not entry.public and "." not in module.name:
                entry.public = f"{module.full}.{name}"
                for member in entry.members.values():
                    member.public = f"{entry.public}.{member.name.split('.')[1]}"
            module.entries[name] = entry
        order = [e for m in modules for e in m.entries.values() if e.module is m]
        module.entries = dict(sorted(module.entries.items(), key=lambda item: order.index(item[1])))
    return found


def _read_entries(module):
    "Fill the entries of a module: the objects that it defines, in the order of the source."
    for node in module.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        names = [getattr(t, "id", getattr(t, "name", "")) for target in targets
                 for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
        for name in names:
            if name not in module.names or module.name.count(".") == 0 and isinstance(node, ast.Assign): continue
            if isinstance(node, ast.AugAssign) and name in module.entries: continue
            entry = module.entries[name] = Entry(name, module, node)
            for n in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name) and n.lineno in module.comments:
                    entry.members[n.targets[0].id] = Entry(f"{name}.{n.targets[0].id}", module, n)
                if not isinstance(n, FUNCTION) or n.name.startswith("_") and n.name != "__call__": continue
                if any("setter" in ast.unparse(d) for d in n.decorator_list): continue
                entry.members[n.name] = Entry(f"{name}.{n.name}", module, n)


def _origin(modules, public, name):
    "The entry that a public module offers under a name. Raises: KeyError if no module defines it."
    if (where := public.imports.get(name)) and (module := modules.get(where.rpartition(".")[0])):
        return module.entries[where.rpartition(".")[2]]
    named = [modules[m] for m in public.imports.values() if m in modules]   # a wrapper of what a module defines
    return next(m.entries[name] for m in named if name in m.entries)


# Names and texts

# what is no plain text: code in backticks, an exception, a paper
SPECIAL = re.compile(r"``?([^`\n]+)``?|\b([A-Z]\w*(?:Error|Interrupt|Exception))\b|\barXiv[ :](\d{4}\.\d{4,5})\b")


class Names:
    """What a name in a docstring or an annotation means."""

    def __init__(self, modules: dict[str, Module]):
        self.modules = modules
        self.entries = {f"{m.name}.{e.name}": e for m in modules.values() for e in m.entries.values()}
        bare = Counter(e.name for key, e in self.entries.items() if key == f"{e.module.name}.{e.name}")
        self.bare = {e.name: e for e in self.entries.values() if bare[e.name] == 1}

    def find(self, text: str, entry: Entry) -> Entry | Module | None:
        """The object that a text inside the description of an entry names, or None."""
        name = re.sub(r"\(.*\)$", "", text).removeprefix(f"{NAME}.").removeprefix("wb.")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name): return None
        first, _, rest = name.partition(".")
        if first in entry.parameters or entry.module.name.split(".")[-1] == name: return None
        found = self._first(first, entry)
        if found is None and rest: found = self.entries.get(name) or self.modules.get(name) or self._member_of(name)
        elif rest and isinstance(found, Entry): found = found.members.get(rest)
        return found if found is not entry else None

    def _first(self, name, entry):
        "The object of a name without dots: of the same class, the same module, imported, or the only one so named."
        owner = entry.name.split(".")[0]
        if (own := entry.module.entries.get(owner)) and name in own.members: return own.members[name]
        if name in entry.module.entries: return entry.module.entries[name]
        if name in entry.module.imports: return self.entries.get(entry.module.imports[name])
        telling = "_" in name or name != name.lower()       # `words` and `step` are words first
        return self.bare.get(name) if telling else None

    def _member_of(self, name):
        "A method by module, class and name."
        owner, _, member = name.rpartition(".")
        found = self.entries.get(owner)
        return found.members.get(member) if found else None

    def bases(self, entry: Entry) -> list[Entry]:
        """The base classes of a class in the package, the nearest first."""
        found = [self._first(b.id, entry) for b in getattr(entry.node, "bases", []) if isinstance(b, ast.Name)]
        direct = [b for b in found if isinstance(b, Entry) and isinstance(b.node, ast.ClassDef)]
        return [a for b in direct for a in (b, *self.bases(b))]

    def link(self, text: str, entry: Entry) -> str:
        """Code in a text: a link if it names an object of the package."""
        found = self.find(text, entry)
        role = "mod" if isinstance(found, Module) else "obj"
        return f":py:{role}:`{text} <{found.full}>`" if found else f"``{text}``"

    def text(self, text: str, entry: Entry) -> str:
        """A text of a docstring or comment as reStructuredText; words in backticks and errors are code or links."""
        # outside of code "full_scale" is a value
        text = re.sub(r"""`[^`]*`|(?<!\w)(["'][\w./-]+["'])""", lambda m: f"`{m[1]}`" if m[1] else m[0], text)
        parts = SPECIAL.split(text)
        out = []
        for i in range(0, len(parts), 4):
            plain = re.sub(r"([*_|\\`<])", r"\\\1", parts[i])
            if out and re.match(r"[\w(\[]", plain): plain = r"\ " + plain
            out.append(plain)
            code, error, paper = (*parts[i + 1:i + 4], None, None, None)[:3]
            if code or error:
                if re.search(r"[\w\])}]$", plain): out.append(r"\ ")
                out.append(self.link(code or error, entry))
            if paper: out.append(f"`arXiv {paper} <https://arxiv.org/abs/{paper}>`__")
        return "".join(out)

    def annotation(self, node: ast.AST, entry: Entry) -> ast.AST:
        """An annotation in which names of the package are complete, and `Annotated` types are without their rules."""
        names = self

        class Complete(ast.NodeTransformer):
            def visit_Subscript(self, n):
                if getattr(n.value, "id", "") == "Annotated": return self.visit(n.slice.elts[0])
                return self.generic_visit(n)

            def visit_Name(self, n):
                found = names._first(n.id, entry)
                return ast.Name(f"~{found.full}") if isinstance(found, Entry) else n
        return Complete().visit(copy.deepcopy(node))


# Pages

def heading(text: str, line: str = "=") -> str:
    """A title."""
    return f"{text}\n{line*len(text)}\n"


def signature(entry: Entry, names: Names) -> str:
    """Name, parameters with their types and default values, and the type of the result."""
    name = entry.name.split(".")[-1]
    if isinstance(entry.node, FUNCTION | ast.ClassDef) and entry.maker:
        given = copy.deepcopy(entry.maker.args)
        del (given.posonlyargs or given.args)[:entry.n_given]
        for a in ast.walk(given):
            if isinstance(a, ast.arg) and a.annotation: a.annotation = names.annotation(a.annotation, entry)
        returns = entry.maker.returns if isinstance(entry.node, FUNCTION) else None
        after = f" -> {ast.unparse(names.annotation(returns, entry))}" if returns else ""
        return f"{name}({ast.unparse(given)}){after}"
    parts = []
    for f in fields_of(entry, names):
        default = f" = {ast.unparse(f.node.value)}" if f.node.value else ""
        parts.append(f"{f.name.split('.')[-1]}: {ast.unparse(names.annotation(f.node.annotation, f))}{default}")
    return f"{name}({', '.join(parts)})" if is_record(entry) else name


def is_record(entry: Entry) -> bool:
    """Whether the fields of a class are the arguments that make it: a dataclass or a named tuple."""
    return "dataclass" in entry.decorators or any("NamedTuple" in ast.unparse(b) for b in entry.node.bases)


def fields_of(entry: Entry, names: Names) -> list[Entry]:
    """The fields of a class; those of its bases in the package come first."""
    found = {f.name.split(".")[1]: f for e in (*names.bases(entry)[::-1], entry) for f in e.fields}
    return list(found.values())


def split_doc(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring without its labelled parts, and these: "Raises" and "Source"."""
    before, *labelled = re.split(r"(?:^|(?<=\s))(Raises|Source):\s+", doc)
    return before.strip(), {k: " ".join(v.split()) for k, v in zip(labelled[::2], labelled[1::2])}


def body(doc: str, entry: Entry, names: Names) -> str:
    """The paragraphs of a docstring; examples that begin with `>>>` stay as they are."""
    blocks = re.split(r"\n\s*\n", doc.strip())
    return "\n\n".join(b if b.startswith(">>> ") else names.text(b, entry) for b in blocks if b.strip())


def describe(entry: Entry, names: Names) -> str:
    """The directive of one object: signature, docstring, parameters, result, errors, source, and members of a class."""
    if entry.kind in ("data", "attribute"): return describe_value(entry, names)
    doc, parameters, owner = entry.doc, dict(entry.parameters), entry
    inherited = base_method(entry, names) if entry.kind in ("method", "property") else None
    if inherited and not doc: doc, owner = inherited.doc, inherited
    if inherited: parameters = {p: c or inherited.parameters.get(p, "") for p, c in parameters.items()}
    text, labelled = split_doc(doc)
    lines = [body(text, owner, names), ""] if text else []
    if isinstance(entry.node, ast.ClassDef):
        parameters |= {f.name.split(".")[-1]: f.module.comment(f.node.lineno) for f in fields_of(entry, names)}
        bases = [names.link(ast.unparse(b), entry) for b in entry.node.bases if "NamedTuple" not in ast.unparse(b)]
        if entry.maker and (made := ast.get_docstring(entry.maker)):
            more, errors = split_doc(made)
            if more: lines += [body(more, entry, names), ""]
            labelled = errors | labelled
        frozen = "frozen=True" in " ".join(map(ast.unparse, entry.node.decorator_list))
        kind = f"A {'frozen ' if frozen else ''}dataclass" if "dataclass" in entry.decorators else "A named tuple"
        about = [kind] if is_record(entry) else []
        if bases: about.append(f"{'Base' if len(bases) == 1 else 'Bases'}: {', '.join(bases)}")
        if about: lines += [". ".join(about) + ".", ""]
    lines += [f":param {p}: {names.text(c, entry)}" for p, c in parameters.items() if c]
    returned = entry.returned or (inherited.returned if inherited else "")
    if returned: lines.append(f":returns: {names.text(returned, entry)}")
    lines += [f":{label}: {names.text(value, owner)}" for label, value in labelled.items()]
    typed = any(a.annotation for a in ast.walk(entry.maker.args) if isinstance(a, ast.arg)) if entry.maker else True
    head = [f".. py:{entry.kind}:: {signature(inherited if inherited and not typed else entry, names)}"]
    if entry.kind == "property":
        head = [f".. py:property:: {entry.name.split('.')[-1]}"]
        if entry.node.returns: head.append(f"   :type: {ast.unparse(names.annotation(entry.node.returns, entry))}")
    if entry.kind in ("method", "property"): head.append("   :no-contents-entry:")     # its class is enough
    for option in ("classmethod", "staticmethod", "abstractmethod"):
        if entry.kind == "method" and option in entry.decorators: head.append(f"   :{option}:")
    lines[2:2] = [f"{sentence}\n" for decorator, sentence in DECORATED.items() if decorator in entry.decorators]
    shown, hooks = [], []
    for m in entry.members.values():
        known = m.doc or any(m.parameters.values()) or m.kind == "property" or base_method(m, names)
        (shown if known else hooks).append(m)
    if hooks: lines.append(f":Overrides: {', '.join(f'``{m.name.split(chr(46))[1]}``' for m in hooks)}")
    text = "\n".join(lines).rstrip()
    members = "\n\n".join(describe(m, names) for m in shown)
    inside = "\n\n".join(filter(None, [text, members]))
    return "\n".join(head) + "\n\n" + indent(inside, "   ") + "\n"


def base_method(entry: Entry, names: Names) -> Entry | None:
    """The method of a base class in the package that this one overrides, documented there."""
    name, owner = entry.name.split(".")[1], entry.module.entries.get(entry.name.split(".")[0])
    for base in names.bases(owner):
        if (method := base.members.get(name)) and method.doc: return method
    return None


def describe_value(entry: Entry, names: Names) -> str:
    """The directive of a constant: its value, if it is short, and its comment."""
    head = [f".. py:{entry.kind}:: {entry.name.split('.')[-1]}", "   :no-contents-entry:"]
    value = getattr(entry.node, "value", None)
    single = not isinstance(entry.node, ast.Assign) or isinstance(entry.node.targets[0], ast.Name)
    if value is not None and single:
        text = ast.unparse(value)
        head.append(f"   :value: {text if len(text) <= 100 else text[:97] + '...'}")
    doc = f"\n\n   {names.text(entry.doc, entry)}" if entry.doc else ""
    return "\n".join(head) + doc + "\n"


def first_sentence(text: str) -> str:
    """A docstring up to the end of its first sentence."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(split_doc(text)[0].split()))[0]


def example(notebook: str) -> str:
    """The code of a page of public names, without its hidden and exporting cells: an example that the tests run."""
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    codes = ["".join(c["source"]).strip() for c in cells if c["cell_type"] == "code"]
    return re.sub(r"   +# ", "  # ", "\n\n".join(code for code in codes if code and not code.startswith("#|")))


def wrap_import(module: str, names: list[str]) -> list[str]:
    """The lines that import names of a module."""
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= 80: return [line] if names else []
    inside = wrap(", ".join(names) + ")", 76, initial_indent="    ", subsequent_indent="    ")
    return [f"from {module} import (", *inside]


def lesson(notebook: str) -> str:
    """A link to the page of a notebook, under its title."""
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    title = next(found[1] for text in texts if (found := re.match(r"# (.+)", text)))
    return f":doc:`{title.replace('`', '')} </{notebook.removesuffix('.ipynb')}>`"


def module_page(
    module: Module,
    names: Names,
    lessons: tuple[str, ...],  # beginnings of the paths of notebooks to which it links
) -> str:
    """The page of a module: its sentence, a link to its lesson, an example if it is a public one, its objects."""
    about = Entry("", module, module.tree)
    parts = [heading(module.name), body(module.doc, about, names) + "\n", f".. py:module:: {module.full}\n"]
    taught = dict.fromkeys([e.module.notebook for e in module.entries.values()] or [module.notebook])
    if links := [lesson(n) for n in taught if n.startswith(lessons)]:
        parts.append(f"{'Lesson' if len(links) == 1 else 'Lessons'}: {', '.join(links)}.\n")
    if "." not in module.name and module.name != "cli" and (code := example(module.notebook)):
        used = [n for n in module.entries if re.search(rf"\b{n}\b", code) and not re.search(rf"import .*\b{n}\b", code)]
        code = "\n".join([*wrap_import(module.full, used), code])
        parts += [".. code-block:: python\n", indent(code, "   ") + "\n"]
    here = [e for e in module.entries.values() if e.full.startswith(f"{module.full}.")]
    if elsewhere := [e for e in module.entries.values() if e not in here]:
        listed = [f"- :py:obj:`{e.name} <{e.full}>`: {names.text(first_sentence(e.doc), e)}" for e in elsewhere]
        parts += ["Described on other pages:\n", "\n".join(listed) + "\n"]
    return "\n".join(parts + [describe(e, names) for e in here])


def listing(modules: list[Module], names: Names, prefix: str = "") -> str:
    """Modules with their sentences and the names of their objects."""
    lines = []
    for m in modules:
        links = ", ".join(f":py:obj:`{e.name} <{e.full}>`" for e in m.entries.values())
        about = names.text(first_sentence(m.doc), Entry("", m, m.tree))
        lines += [f":doc:`{prefix}{m.name.split('.')[-1]}`", indent(f"{about}\n\n{links}\n", "   ")]
    return "\n".join(lines)


def toctree(pages: list[str]) -> str:
    """The pages below a page, for the navigation of the site."""
    return "\n".join([".. toctree::", "   :hidden:", "", *(f"   {p}" for p in pages), ""])


def folder_page(folder: str, modules: list[Module], names: Names) -> str:
    """The page of a folder: the first lines of its README.md, and its modules."""
    readme = (NOTEBOOKS / folder / "README.md").read_text(encoding="utf-8")
    title, about = re.match(r"# `\w+`: (.*)\n+(.*)", readme).groups()
    anything = Entry("", modules[0], modules[0].tree)
    return "\n".join([heading(f"{folder}: {title}"), names.text(about, anything) + "\n",
                      listing(modules, names, f"{folder}/"), toctree([m.name.replace(".", "/") for m in modules])])


def index_page(public: list[Module], folders: Iterable[str], names: Names) -> str:
    """The first page: the names of the package itself, the public modules, the folders."""
    import sashimi_wb as wb
    face = [names.entries[f"{module}.{name}"] for name, module in wb.FACE.items()]
    short = [f"- :py:obj:`wb.{e.name} <{e.full}>`: {names.text(first_sentence(e.doc), e)}" for e in face]
    return "\n".join([
        heading("API reference"),
        "Every function, class and command, from its docstring. The public names come first: they keep their meaning "
        "from one version to the next. The folders hold the code behind them, in the order in which it can be read.\n",
        heading("The package", "-"), "After ``import sashimi_wb as wb``:\n", *short, "",
        heading("Public modules", "-"), listing(public, names),
        heading("Folders", "-"), *(f"- :doc:`{f}`" for f in folders), "",
        toctree([*(m.name for m in public), *folders])])


def command_page(names: Names, module: Module) -> str:
    """The command line: every command with its arguments and options, from its parser."""
    from sashimi_wb.cli import parser
    p = parser()
    commands = next(a for a in p._actions if isinstance(a, argparse._SubParsersAction))
    about = {c.dest: c.help for c in commands._choices_actions}
    anything = Entry("", module, module.tree)
    parts = [heading(f"{p.prog}: the command line"), names.text(p.description, anything) + "\n"]
    for name, sub in commands.choices.items():
        sub.formatter_class = partial(argparse.HelpFormatter, width=64)
        usage = re.sub(r"\n +", "\n    ", sub.format_usage().removeprefix("usage: ").strip())
        sentence = f"{about[name][0].upper()}{about[name][1:]}."
        parts += [heading(f"{p.prog} {name}", "-"), names.text(sentence, anything) + "\n",
                  ".. code-block:: text\n", indent(usage, "   ") + "\n", f".. program:: {p.prog} {name}\n"]
        for a in sub._actions:
            if a.dest == "help": continue
            value = "" if a.nargs == 0 or not a.option_strings else f" {a.metavar or a.dest.upper()}"
            title = ", ".join(f"{o}{value}" for o in a.option_strings) or a.metavar or a.dest
            parts += [f".. option:: {title}\n", indent(names.text(a.help, anything), "   ") + "\n"]
    return "\n".join(parts)


def write_reference(
    target: Path,                # folder of the pages; other pages in it are removed
    only: tuple[str, ...] = (),  # beginnings of the site's pages: "api/quantization", "nbs/tokens"; (): all pages
) -> list[Path]:                 # the pages; a page that has not changed is not written again
    """Write all pages, or those chosen, with links to the lessons that the site has."""
    def chosen(page): return not only or f"api/{page}".startswith(only)
    modules = read_package()
    names = Names(modules)
    here = {m.name.replace(".", "/"): m for m in modules.values() if chosen(m.name.replace(".", "/"))}
    folders = {f: [m for page, m in here.items() if page.startswith(f"{f}/")] for f in FOLDERS if chosen(f)}
    pages = {"index": index_page([m for m in here.values() if "." not in m.name], folders, names)}
    pages |= {folder: folder_page(folder, inside, names) for folder, inside in folders.items()}
    for page, m in here.items():
        text = module_page(m, names, only or ("nbs/",))
        pages[page] = text if m.name != "cli" else command_page(names, m) + "\n" + text.replace("\n=", "\n-")
    paths = {target / f"{name}.rst": text for name, text in pages.items()}
    for path, text in paths.items():
        if path.exists() and path.read_text(encoding="utf-8") == text: continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for old in set(target.rglob("*.rst")) - set(paths): old.unlink()
    return list(paths)


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(ROOT))
    write_reference(Path(sys.argv[1]), tuple(sys.argv[2:]))
