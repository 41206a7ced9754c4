"""Make README.md and its pictures from the saved outputs of nbs/index.ipynb, without running it: `make readme`.

Outputs are Markdown, figures and text; HTML is refused, since code hosts and registries change it.
New results: copy runs/results.json to nbs/, run nbs/index.ipynb, save it, and make the README.
Cells marked `#| hide` are left out, `#| echo: false` keeps only the output, `#| fig-alt: text` describes its figure,
and relative links are adapted to the other folder.
"""
import re
import sys
from pathlib import Path
from posixpath import normpath

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
IMAGES = "nbs/images"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"


def move_link(match: re.Match) -> str:
    """Convert a link relative to nbs/ to one relative to the top folder; keep others."""
    start, link, end = match.groups()
    outside = re.match(r"[a-z][a-z0-9+.-]*:|[#/]", link, re.I)
    return match.group(0) if outside else start + normpath(f"nbs/{link}") + end


def move_links(text: str) -> str:
    """Convert all links and image sources of a Markdown text, except in code blocks."""
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.M | re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(\]\()([^)\s]+)(\))", move_link, parts[i])
        parts[i] = re.sub(r"""(\b(?:src|href)=["'])([^"']+)(["'])""", move_link, parts[i])
    return "".join(parts)


def readable(output: dict) -> dict | None:
    """The part of a cell's output that a README can show, or None."""
    if output.output_type == "stream": return output if output.name == "stdout" else None
    if output.output_type == "error": raise ValueError(f"nbs/index.ipynb was saved with an error: {output.evalue}")
    data = output.data
    for kind in ("text/markdown", "image/png", "image/svg+xml", "text/plain"):
        if kind == "text/plain" and "text/html" in data:
            raise ValueError("nbs/index.ipynb shows HTML, which a README cannot: show Markdown or a figure")
        if kind in data: return nbformat.v4.new_output("display_data", {kind: data[kind]})
    return None


def render(path: Path) -> tuple[str, dict[str, bytes]]:
    """The text of the README, and its pictures by path relative to the top folder."""
    notebook = nbformat.read(path, 4)
    notebook.metadata["language_info"] = {"name": "python"}
    cells, alts = [], []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            words = {line[2:].strip() for line in lines if line.startswith("#|")}
            if words & {"hide", "include: false"}: continue
            cell.source = "\n".join(line for line in lines if not line.startswith("#|")).strip()
            if words & {"echo: false", "hide_input"}: cell.source = ""
            cell.outputs = [] if "output: false" in words else [o for o in map(readable, cell.outputs) if o]
            alt = next((word.split(":", 1)[1].strip() for word in words if word.startswith("fig-alt:")), "figure")
            alts += [alt for o in cell.outputs if {"image/png", "image/svg+xml"} & set(o.get("data", {}))]
            if not cell.source and not cell.outputs: continue
        cells.append(cell)
    notebook.cells = cells
    resources = {"unique_key": "index", "output_files_dir": "images"}
    text, resources = MarkdownExporter(exclude_input_prompt=True).from_notebook_node(notebook, resources)
    text = re.sub(r"```python\n\s*```\n", "", text)
    text = re.sub(r"!\[(png|svg)\]\(", lambda match: f"![{alts.pop(0)}](", text)
    text = re.sub(r"^[ \t]+$", "", move_links(text), flags=re.M)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return NOTE + text, {f"nbs/{name}": value for name, value in resources.get("outputs", {}).items()}


def differences(root: Path = ROOT) -> list[str]:
    """The files among README.md and its pictures that do not match nbs/index.ipynb."""
    text, images = render(root / "nbs/index.ipynb")
    wanted = {"README.md": text.encode(), **images}
    found = {p.relative_to(root).as_posix() for p in (root / IMAGES).glob("index_*")}
    wrong = [name for name, value in wanted.items() if not (root / name).exists()
             or (root / name).read_bytes() != value]
    return wrong + sorted(found - set(wanted))


def write(root: Path = ROOT) -> list[str]:
    """Write README.md and its pictures, remove pictures no longer in it, and return what was written."""
    text, images = render(root / "nbs/index.ipynb")
    for old in (root / IMAGES).glob("index_*"): old.unlink()
    for name, value in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(value)
    (root / "README.md").write_text(text, encoding="utf-8")
    return ["README.md", *images]


if __name__ == "__main__":
    if not (ROOT / "nbs/index.ipynb").exists(): sys.exit("make readme: nbs/index.ipynb is missing")
    print("written:", *write())
