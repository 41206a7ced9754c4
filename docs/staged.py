"""Convert notebooks and Markdown pages of the project into the source folder of Sphinx.

A file keeps its path, except that `docs/` is the top of the site. Links of the project become links of the site: to
pages, to folders (their README), and to text files, which become pages with their text.
"""
import ast
import re
from pathlib import Path
from posixpath import dirname, normpath, relpath

import nbformat
from executed import directives

from sashimi_wb.core.system import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PROSE = ["CHANGELOG.md", "CONTRIBUTING.md", "data/**/*.md", "nbs/*/README.md", "docs/**/*.md"]
START = {"README.md", "nbs/index.ipynb"}      # the start page takes their place
TEXT = {".py": "python", ".toml": "toml", ".json": "json", ".ini": "ini", "": "text", ".txt": "text", ".cff": "yaml"}
FOLDED = {"imports": "Imports", "test": "Test", "wrong": "What goes wrong"}
WIDGETS = "application/vnd.jupyter.widget-view+json"


def pages(only: list[str]) -> dict[str, str]:
    """File of the project -> file in Sphinx's folder, for every page; `only` chooses by the beginning of the first."""
    found = [p.relative_to(ROOT).as_posix() for pattern in PROSE for p in ROOT.glob(pattern)]
    found += [p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")]
    kept = (p for p in sorted(found) if not re.search(r"(^|/)[._]|^docs/(README|_build)", p) and p not in START)
    return {p: p.removeprefix("docs/") for p in kept
            if not only or p == "docs/index.md" or p.startswith(tuple(only))}


class Links:
    """Converts links of the project's files to links of the site."""

    def __init__(self, pages: dict[str, str], partial: bool):
        self.pages, self.partial = pages, partial
        self.files, self.broken = set(), []   # linked files that are no pages; links that lead nowhere

    def target(self, here: str, link: str, html: bool = False) -> str | None:
        """The link that a file of the site needs in place of a relative one; None if its target is not on the site."""
        path, _, anchor = link.partition("#")
        place = normpath(f"{dirname(here)}/{path}") if dirname(here) else normpath(path)
        if place in START: place = "docs/index.md"
        if (ROOT / place).is_dir(): place = normpath(f"{place}/README.md")
        if place in self.pages: found = self.pages[place]
        elif place.startswith("docs/api/"): found = place.removeprefix("docs/")
        elif (ROOT / place).is_file() and not self.partial:
            self.files.add(place)
            found = place + ".md" if Path(place).suffix in TEXT else place
        else:
            if not (ROOT / place).exists() and not place.startswith("../"): self.broken.append(f"{here}: {link}")
            return None
        if html: found = re.sub(r"\.(ipynb|md)$", ".html", found)
        return relpath(found, dirname(self.pages.get(here, here)) or ".") + ("#" + anchor if anchor else "")

    def in_markdown(self, here: str, text: str) -> str:
        """Convert the links of a Markdown text, in HTML too, except in code."""
        def link(match):
            words, target = match.group(1, 2)
            if re.match(r"[a-z][a-z0-9+.-]*:|[#/]", target, re.I): return match.group(0)
            new = self.target(here, target)
            if new is None: return match.group(0) if words.startswith("!") else words[1:-1]
            return f"{words}({new})"
        parts = re.split(r"(^```.*?^```|^:::.*?$|`[^`\n]+`)", text, flags=re.M | re.S)
        for i in range(0, len(parts), 2): parts[i] = self.in_html(here, parts[i])
        text = "".join(parts)
        code = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
        for i in range(0, len(code), 2):
            code[i] = re.sub(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)", link, code[i])
        return "".join(code)

    def in_html(self, here: str, html: str) -> str:
        """Convert the relative links of an HTML text."""
        def link(match):
            if re.match(r"[a-z][a-z0-9+.-]*:|[#/{]", match.group(2), re.I): return match.group(0)
            new = self.target(here, match.group(2), html=True)
            return f"{match.group(1)}{new}{match.group(3)}" if new else match.group(0)
        return re.sub(r"""(<a\b[^>]*?\bhref=["'])([^"']+)(["'])""", link, html)


def role(source: str, outputs: list) -> str:
    """What a cell does beside the story: "imports", "test", "wrong" (wrong input and its error), or ""."""
    try: body = ast.parse(source).body
    except SyntaxError: return ""
    if body and all(isinstance(n, ast.Import | ast.ImportFrom) for n in body): return "imports"
    if outputs: return ""
    text = [ast.unparse(n) for n in body]
    if any("ExceptionExpected" in t or "expect_fail" in t for t in text): return "wrong"
    return "test" if any(re.search(r"\bassert |\b(test_\w+|assert_\w+)\(", t) for t in text) else ""


def convert_cell(cell, here: str, links: Links):
    """The cell as the site shows it; None for one that it leaves out."""
    if cell.cell_type == "markdown":
        cell.source = links.in_markdown(here, cell.source)
        return cell
    if cell.cell_type != "code": return None
    words = directives(cell.source)
    if "hide" in words: return None
    cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    if not cell.source and not cell.outputs: return None
    for output in cell.outputs: convert_output(output, here, links)
    tags, width = list(cell.metadata.get("tags", [])), picture_width(cell.outputs)
    settings = {"image": {"width": f"{width}px"}} if width else {}
    kind = "" if "export" in words and role(cell.source, []) != "imports" else role(cell.source, cell.outputs)
    if "echo: false" in words: tags.append("remove-input")
    elif kind:
        tags.append("hide-input")
        settings |= {"code_prompt_show": FOLDED[kind], "code_prompt_hide": FOLDED[kind]}
    cell.metadata = nbformat.from_dict({"tags": tags, "mystnb": settings})
    return cell


def convert_output(output, here: str, links: Links) -> None:
    """Convert an output in place: links, no paths of this machine, and a picture in place of widgets."""
    data = output.get("data", {})
    for kind in ("text/html", "text/markdown", "text/plain"):
        if kind not in data: continue
        text = "".join(data[kind]).replace(f"{ROOT}/", "")
        data[kind] = links.in_html(here, text) if kind == "text/html" else text
    if "text" in output: output.text = "".join(output.text).replace(f"{ROOT}/", "")
    if data.pop(WIDGETS, None):
        name = Path(here).stem
        picture = ROOT / f"nbs/images/explore_{name}.png"
        if picture.exists():
            data.clear()
            data["text/markdown"] = f"![The page in JupyterLab, where its controls are live](../images/{picture.name})"
            links.files.add(f"nbs/images/{picture.name}")


def picture_width(outputs: list) -> int:
    """The largest width, in pixels of a page, of the pictures among the outputs; 0 if there are none."""
    return max([o.metadata.get("image/png", {}).get("width", 0) for o in outputs if o.get("data", {}).get("image/png")],
               default=0)


def convert_notebook(path: Path, here: str, links: Links) -> str:
    """An executed notebook as the site shows it, as JSON text."""
    notebook = nbformat.read(path, 4)
    cells = [convert_cell(cell, here, links) for cell in notebook.cells]
    notebook.cells = [c for c in cells if c is not None]
    notebook.metadata.pop("widgets", None)
    return nbformat.writes(notebook)


def convert_prose(here: str, links: Links, documents: set[str]) -> str:
    """A Markdown page; toctrees lose what is not on the site, and the README of a folder lists its notebooks."""
    text = links.in_markdown(here, (ROOT / here).read_text(encoding="utf-8"))
    if here == "docs/index.md":
        def known(match):
            lines = [line for line in match.group(2).splitlines()
                     if not line or line.startswith(":") or "*" in line or line in documents]
            return match.group(1) + "\n".join(lines) + "\n```"
        text = re.sub(r"(^```\{toctree\}\n)(.*?)^```", known, text, flags=re.M | re.S)
    if re.fullmatch(r"nbs/\w+/README.md", here):
        names = sorted(p.split("/")[-1].removesuffix(".ipynb") for p in links.pages
                       if p.startswith(dirname(here) + "/") and p.endswith(".ipynb"))
        if names: text += "\n```{toctree}\n:maxdepth: 1\n\n" + "\n".join(reading_order(text, names)) + "\n```\n"
    return text


def reading_order(text: str, names: list[str]) -> list[str]:
    """Names of notebooks in the order in which a README mentions them; numbered ones keep their numbers' order."""
    def place(name):
        at = text.find(f"`{name}`")
        return (0, name) if name[:2].isdigit() else (1, f"{at if at >= 0 else len(text):06d}")
    return sorted(names, key=place)


def stage(
    executed: Path,        # folder of the executed notebooks, as `executed.execute_all` leaves them
    target: Path,          # source folder of Sphinx; files that are there and not written again are removed
    chosen: dict[str, str], # as `pages` gives them
    generated: list[str],  # files that others write into the folder, such as "api/index.md"
    partial: bool=False,   # whether pages are missing on purpose
) -> list[str]:            # links that lead nowhere
    """Write all pages and the files that they link to."""
    links, written = Links(chosen, partial), {}
    documents = {re.sub(r"\.\w+$", "", name) for name in [*chosen.values(), *generated]}
    for here, there in chosen.items():
        if there.endswith(".ipynb"): written[there] = convert_notebook(executed / here, here, links)
        else: written[there] = convert_prose(here, links, documents)
    texts = "\n".join(written.values())
    for image in re.findall(r"images/[\w-]+\.(?:png|svg|webp|gif|jpg)", texts):
        if (ROOT / "nbs" / image).exists(): links.files.add(f"nbs/{image}")
    for name in sorted(links.files):
        suffix = Path(name).suffix
        if suffix in TEXT:
            text = (ROOT / name).read_text(encoding="utf-8")
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
            written[f"{name}.md"] = f"---\norphan: true\n---\n# {name}\n\n{fence}{TEXT[suffix]}\n{text}\n{fence}\n"
        else: written[name] = (ROOT / name).read_bytes()
    for old in target.rglob("*"):
        name = old.relative_to(target).as_posix()
        if old.is_file() and name not in written and name not in generated: old.unlink()
    for name, content in written.items():
        content, path = content.encode() if isinstance(content, str) else content, target / name
        if not (path.exists() and path.read_bytes() == content): write_atomic(path, content)
    return links.broken
