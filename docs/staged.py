"""Convert executed notebooks and Markdown pages into the source folder of Sphinx.

A file of the project keeps its path, except that `docs/` is the top of the site. Links of the project become links of
the site: to pages, to folders (their README), and to text files, which become pages that show their text.
"""
import ast
import base64
import fnmatch
import hashlib
import re
from pathlib import Path
from posixpath import dirname, normpath, relpath

import nbformat
from executed import directives, lacks, with_outputs

from sashimi_wb.core.system import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PROSE = ["CHANGELOG.md", "CONTRIBUTING.md", "data/**/*.md", "nbs/*/README.md", "docs/**/*.md"]
START = {"README.md", "nbs/index.ipynb"}      # the start page takes their place
PAGES = (".ipynb", ".md", ".rst")
TEXT = {".py": "python", ".toml": "toml", ".json": "json", ".ini": "ini", ".cff": "yaml", ".txt": "text", "": "text"}
FOLDED = {"imports": "Imports", "test": "Test", "wrong": "What goes wrong"}
WIDGETS = "application/vnd.jupyter.widget-view+json"
OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:|[#/{]", re.I)   # links that are not relative
MEDIA = re.compile(r"data:(?:audio|image)/([\w.+-]+);base64,([A-Za-z0-9+/=]{1000,})")


def pages(only: list[str]) -> dict[str, str]:
    """File of the project -> file in Sphinx's folder, of every page; `only` chooses by the beginnings of the former."""
    found = [p for pattern in [*PROSE, "nbs/**/*.ipynb"] for p in ROOT.glob(pattern)]
    names = sorted(p.relative_to(ROOT).as_posix() for p in found)
    kept = [p for p in names if not re.search(r"(^|/)[._]", p) and p not in START]
    return {p: p.removeprefix("docs/") for p in kept if not only or p == "docs/index.md" or p.startswith(tuple(only))}


class Links:
    """Converts links of the project's files to links of the site."""

    def __init__(self, chosen: dict[str, str], generated: set[str], partial: bool):
        self.chosen, self.generated, self.partial = chosen, generated, partial
        self.files, self.media, self.broken = set(), {}, []  # linked files, players and pictures, links to nowhere

    def there(self, here: str) -> str:
        """The folder of the site in which a file of the project lies."""
        return dirname(self.chosen.get(here, here.removeprefix("docs/"))) or "."

    def target(self, here: str, link: str) -> str:
        """The link that a file needs on the site in place of a relative one; where there is no target, `index`."""
        path, _, anchor = link.partition("#")
        place = normpath(f"{dirname(here) or '.'}/{path}")
        if place in START: place = "docs/index.md"
        if (ROOT / place).is_dir(): place = f"{place}/README.md"
        if place in self.chosen: found = self.chosen[place]
        elif place.removeprefix("docs/") in self.generated: found = place.removeprefix("docs/")
        elif (ROOT / place).is_file() and Path(place).suffix not in PAGES:
            self.files.add(place)
            found = f"{place}.md" if Path(place).suffix in TEXT else place
        else:
            if not self.partial: self.broken.append(f"{here}: {link}")
            found, anchor = "index.md", ""
        return relpath(found, self.there(here)) + ("#" + anchor if anchor else "")

    def in_markdown(self, here: str, text: str) -> str:
        """Convert the links of a Markdown text, except in code."""
        def link(match):
            return f"]({match.group(1) if OUTSIDE.match(match.group(1)) else self.target(here, match.group(1))})"
        parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.M | re.S)
        for i in range(0, len(parts), 2):
            parts[i] = re.sub(r"\]\(([^)\s]+)\)", link, self.in_html(here, parts[i]))
        return "".join(parts)

    def in_html(self, here: str, html: str) -> str:
        """Convert the relative links of an HTML text, and make files of the sounds and pictures in it."""
        def link(match):
            start, target, end = match.groups()
            if OUTSIDE.match(target): return match.group(0)
            return start + re.sub(r"\.(ipynb|md|rst)(?=#|$)", ".html", self.target(here, target)) + end
        html = re.sub(r"""(<a\b[^>]*?\bhref=["'])([^"']+)(["'])""", link, html)
        return MEDIA.sub(lambda match: self.take_out(here, *match.groups()), html)

    def take_out(self, here: str, kind: str, data: str) -> str:
        """Make a file of a sound or picture that is part of a page: its path from the page."""
        content = base64.b64decode(data)
        suffix = {"x-wav": "wav", "mpeg": "mp3", "svg+xml": "svg"}.get(kind, kind)
        name = f"_media/{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
        self.media[name] = content
        return relpath(name, self.there(here))


def role(source: str, has_outputs: bool) -> str:
    """What a cell does beside the story: "imports", "test", "wrong" (wrong input and its error), or ""."""
    try: body = ast.parse(source).body
    except SyntaxError: return ""
    if body and all(isinstance(n, ast.Import | ast.ImportFrom) for n in body): return "imports"
    if has_outputs: return ""
    text = ast.unparse(body)
    if "ExceptionExpected" in text or "expect_fail" in text: return "wrong"
    return "test" if re.search(r"\bassert |\b(test|assert)_\w+\(", text) else ""


def convert_cell(cell, here: str, links: Links):
    """The cell as the site shows it; None for one that it leaves out."""
    if cell.cell_type == "markdown":
        cell.source = links.in_markdown(here, cell.source)
        return cell
    words = directives(cell.source)
    if cell.cell_type != "code" or "hide" in words: return None
    cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    if not cell.source and not cell.outputs: return None
    for output in cell.outputs: convert_output(output, here, links)
    cell.outputs = [o for o in cell.outputs if o.get("data") != {}]
    kind = role(cell.source, "export" in words or bool(cell.outputs))
    tags, settings = list(cell.metadata.get("tags", [])), {}
    if width := picture_width(cell.outputs): settings["image"] = {"width": f"{width}px"}
    if "echo: false" in words or here.startswith("nbs/explore/"): tags.append("remove-input")
    elif kind:
        tags.append("hide-input")
        settings |= {"code_prompt_show": FOLDED[kind], "code_prompt_hide": FOLDED[kind]}
    cell.metadata = nbformat.from_dict({"tags": tags, "mystnb": settings})
    return cell


def convert_output(output, here: str, links: Links) -> None:
    """Convert the links of an output in place, and leave out its widgets, which need a kernel."""
    data = output.get("data", {})
    if data.pop(WIDGETS, None): data.clear()
    if "text/html" in data: data["text/html"] = links.in_html(here, "".join(data["text/html"]))


def picture_of_page(here: str, links: Links):
    """A cell with the picture of an interactive page and its controls."""
    target = links.target(here, f"../images/explore_{Path(here).stem}.png")
    return nbformat.v4.new_markdown_cell("*The page in JupyterLab, where the controls are live:*\n\n"
                                         f"![Controls and figures]({target})\n\n*What it shows first:*")


def picture_width(outputs: list) -> int:
    """The largest width, in pixels of a page, of the pictures among the outputs; 0 if there are none."""
    return max([o.metadata.get("image/png", {}).get("width", 0) for o in outputs if "image/png" in o.get("data", {})],
               default=0)


def module_of(notebook) -> str:
    """The module that a notebook exports, such as "tokens.quantization", or an empty text."""
    sources = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    found = re.search(r"^#\| default_exp ([\w.]+)", sources, re.M)
    return found.group(1) if found else ""


def with_module(text: str, module: str, here: str, links: Links) -> str:
    """The first cell of a lesson with the name of its module, a link to its reference, below its title."""
    name, reference = f"`sashimi_wb.{module}`", f"api/{module.replace('.', '/')}.rst"
    if reference in links.generated: name = f"[{name}]({relpath(reference, links.there(here))})"
    head = re.match(r"# [^\n]*\n+(?:>[^\n]*\n+)*", text + "\n\n").group(0)
    return f"{head.strip()}\n\n{{.exports}}\nModule {name}\n\n{text[len(head):]}"


def not_executed(package: str):
    """A cell that says why a page has no outputs."""
    return nbformat.v4.new_markdown_cell(f"*The cells of this page were not executed here: they need `{package}`.*")


def convert_notebook(notebook: nbformat.NotebookNode, here: str, links: Links) -> str:
    """An executed notebook as the site shows it, as JSON text."""
    module, cells = module_of(notebook), [convert_cell(cell, here, links) for cell in notebook.cells]
    notebook.cells = [c for c in cells if c is not None]
    if here.startswith("nbs/explore/"): notebook.cells[-1:-1] = [picture_of_page(here, links)]
    notebook.metadata.pop("widgets", None)
    if module: notebook.cells[0].source = with_module(notebook.cells[0].source, module, here, links)
    if package := lacks(Path(here)): notebook.cells[1:1] = [not_executed(package)]
    return nbformat.writes(notebook)


def convert_prose(here: str, links: Links, documents: set[str]) -> str:
    """A Markdown page; toctrees lose what is not on the site, and the README of a folder lists its notebooks."""
    text = links.in_markdown(here, (ROOT / here).read_text(encoding="utf-8"))
    def known(match):
        lines = [line for line in match.group(2).splitlines()
                 if not line or line.startswith(":") or fnmatch.filter(documents, line)]
        return match.group(1) + "\n".join(lines) + "\n```"
    if here == "docs/index.md": text = re.sub(r"(^```\{toctree\}\n)(.*?)^```", known, text, flags=re.M | re.S)
    if re.fullmatch(r"nbs/\w+/README.md", here):
        inside = [Path(p).stem for p in links.chosen if dirname(p) == dirname(here) and p.endswith(".ipynb")]
        if inside: text += "\n```{toctree}\n:maxdepth: 1\n\n" + "\n".join(reading_order(text, inside)) + "\n```\n"
    return text


def reading_order(text: str, names: list[str]) -> list[str]:
    """Names of notebooks in the order of their numbers; without numbers, in that in which a README mentions them."""
    def place(name):
        at = text.find(f"`{name}`")
        return "" if name[:2].isdigit() else f"{at if at >= 0 else len(text):06d}", name
    return sorted(names, key=place)


def text_page(name: str) -> str:
    """A page that shows a text file of the project."""
    text = (ROOT / name).read_text(encoding="utf-8")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return f"---\norphan: true\n---\n# {name}\n\n{fence}{TEXT[Path(name).suffix]}\n{text}\n{fence}\n"


def stage(
    output: Path,           # its folder "executed" has notebooks, as `execute_all` leaves them; "generated" has pages
    chosen: dict[str, str], # as `pages` gives them
    generated: set[str],    # paths of the generated pages, such as "results/index.md"
    partial: bool = False,  # whether pages are missing on purpose; links to them become plain text
) -> Links:                 # with the sounds and pictures of the pages, and the links that lead nowhere
    """Write all pages, and the files that they link to, into the folder "source", and remove other files there.

    A file that has not changed is not written again, so that Sphinx does not read it again."""
    links, written, target = Links(chosen, generated, partial), {}, output / "source"
    documents = {re.sub(r"\.\w+$", "", name) for name in [*chosen.values(), *generated]}
    for here, there in chosen.items():
        if there.endswith(".md"): written[there] = convert_prose(here, links, documents)
        else:
            lesson = ROOT / here
            made = nbformat.read(lesson, 4) if lacks(lesson) else with_outputs(lesson, output / "executed" / here)
            written[there] = convert_notebook(made, here, links)
        for image in re.findall(r"""<img\b[^>]*?\bsrc=\\?["']([^"'\\:]+)\\?["']""", written[there]):
            if not image.startswith("_media") and "_media/" not in image: links.target(here, image)
    for name in generated:
        text = (output / "generated" / name).read_text(encoding="utf-8")
        written[name] = links.in_markdown(f"docs/{name}", text) if name.endswith(".md") else text
    for name in sorted(links.files):
        if Path(name).suffix in TEXT: written[f"{name}.md"] = text_page(name)
        else: written[name] = (ROOT / name).read_bytes()
    for old in target.rglob("*"):
        name = old.relative_to(target).as_posix()
        if old.is_file() and name not in written: old.unlink()
    for name, content in written.items():
        content, path = content.encode() if isinstance(content, str) else content, target / name
        if not (path.exists() and path.read_bytes() == content): write_atomic(path, content)
    return links
