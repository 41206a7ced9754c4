"""The site: notebooks executed and kept, pages converted, a small site built, and looked at in a real browser."""
import json
import sys
from pathlib import Path

import nbformat
import pytest
from browser import missing

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "docs"))
import build_site
import checked
import executed
import staged

SMALL = ["nbs/tokens/03_layouts", "nbs/tokens/README", "nbs/explore/README", "nbs/explore/layouts", "howto/own_audio",
         "results", "CHANGELOG"]


def notebook(*sources: str) -> nbformat.NotebookNode:
    """A notebook of code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def outputs(path: Path) -> list[str]:
    """The text that each code cell of an executed notebook has written."""
    return ["".join(o.get("text", "") for o in c.outputs) for c in nbformat.read(path, 4).cells]


def test_notebooks_are_executed_once_and_a_failed_one_is_named(tmp_path):
    saved = notebook("print(1)", "#| slow\nprint(2)", "#| eval: false\nprint(3)",
                     "import os\nprint(os.environ['SASHIMI_WB_RUNS'])")
    saved.cells[1].outputs = [nbformat.v4.new_output("stream", text="saved")]
    nbformat.write(saved, tmp_path / "good.ipynb")
    nbformat.write(notebook("print(1)", "raise KeyError('odd')", "print(2)"), tmp_path / "bad.ipynb")
    said, kept = [], tmp_path / "kept"
    arguments = [Path("good.ipynb"), Path("bad.ipynb")], kept, tmp_path, 2, said.append
    errors = executed.execute_all(*arguments)
    assert list(errors) == [Path("bad.ipynb")] and "cell 1: KeyError: 'odd'" in errors[Path("bad.ipynb")]
    assert outputs(kept / "good.ipynb") == ["1\n", "saved", "", "runs\n"]
    assert outputs(kept / "bad.ipynb") == ["1\n", "", ""]
    said.clear()
    executed.execute_all(*arguments)          # the good one is kept, the bad one is tried again
    assert said[0] == "executing 1 of 2 notebooks" and "bad.ipynb" in said[1]


def test_a_notebook_that_lacks_a_package_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.setitem(executed.NEEDS, "card", "nothing_like_this")
    nbformat.write(notebook("import nothing_like_this"), tmp_path / "card.ipynb")
    said = []
    assert executed.execute_all([Path("card.ipynb")], tmp_path / "kept", tmp_path, 2, said.append) == {} and not said
    lesson, links = nbformat.read(tmp_path / "card.ipynb", 4), staged.Links({}, set(), partial=False)
    lesson.cells.insert(0, nbformat.v4.new_markdown_cell("# Title"))
    made = nbformat.reads(staged.convert_notebook(lesson, "card.ipynb", links), 4)
    assert "not executed here: they need `nothing_like_this`" in made.cells[1].source


def test_comments_and_docstrings_change_no_hash(tmp_path):
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook("def f():\n    'what'\n    return 1  # why", "'a value'"), path)
    first = executed.key(path, "data")
    nbformat.write(notebook("def f():\n    'more'\n\n    return 1", "'a value'"), path)
    assert executed.key(path, "data") == first
    function = "def f():\n    'more'\n    return 1"
    changed = function.replace("1", "2")
    for cells in ((function, "'another'"), (changed, "'a value'"), (f"#| slow\n{function}", "'a value'")):
        nbformat.write(notebook(*cells), path)
        assert executed.key(path, "data") != first


def test_the_hash_depends_on_imported_code(tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook("from sashimi_wb.core.digits import with_spread"), path)
    first = executed.key(path, "data")
    assert executed.key(path, "other data") != first
    monkeypatch.setattr(executed, "code_sources", lambda *starts: dict.fromkeys(starts, "x = 1"))
    assert executed.key(path, "data") != first
    nbformat.write(notebook("from sashimi_wb.core.checks import Range"), path)
    assert executed.key(path, "data") != first


@pytest.mark.parametrize("source,has_outputs,expected", [
    ("import os\nfrom a import b", False, "imports"), ("import os\nx = 1", False, ""), ("assert x == 1", False, "test"),
    ("test_eq(a, b)", False, "test"), ("test_eq(a, b)\na", True, ""), ("x = 1", False, ""), ("%magic", False, ""),
    ("with ExceptionExpected(ValueError): f()", False, "wrong")])
def test_cells_beside_the_story_are_found(source, has_outputs, expected):
    assert staged.role(source, has_outputs) == expected


def test_a_lesson_is_converted():
    lesson = notebook("#| default_exp tokens.layouts", "#| hide\nseed()", "#| export\ndef f(): pass",
                      "test_eq(f(), None)", "#| echo: false\nf()")
    html = {"text/html": '<a href="02_quantization.ipynb">x</a>'}
    lesson.cells[4].outputs = [nbformat.v4.new_output("display_data", data) for data in ({staged.WIDGETS: {}}, html)]
    text = "Text [link](../../data/README.md#measured) `[a](b)`"
    title = nbformat.v4.new_markdown_cell(f"# Title\n\n> Sentence.\n\n{text}")
    lesson.cells.insert(1, title)
    here = "nbs/tokens/03_layouts.ipynb"
    known = [here, "nbs/tokens/02_quantization.ipynb", "data/README.md"]
    links = staged.Links(dict(zip(known, known)), set(), partial=False)
    made = nbformat.reads(staged.convert_notebook(lesson, here, links), 4)
    assert [c.source for c in made.cells[1:]] == ["def f(): pass", "test_eq(f(), None)", "f()"]
    assert made.cells[0].source.startswith("# Title\n\n> Sentence.\n\n{.exports}\nModule")
    assert made.cells[0].source.endswith(f"Module `sashimi_wb.tokens.layouts`\n\n{text}")
    assert [c.metadata.get("tags") for c in made.cells[1:]] == [[], ["hide-input"], ["remove-input"]]
    assert [o.data["text/html"] for o in made.cells[3].outputs] == ['<a href="02_quantization.html">x</a>']


def test_links_of_the_project_become_links_of_the_site():
    chosen = staged.pages([])
    links = staged.Links(chosen, {"api/index.rst"}, partial=False)
    start, howto = "nbs/start.ipynb", "docs/howto/own_audio.md"
    assert links.target(start, "tokens/02_quantization.ipynb#a") == "tokens/02_quantization.ipynb#a"
    assert links.target(start, "../README.md") == "../index.md"
    assert links.target(howto, "../../nbs/start.ipynb") == "../nbs/start.ipynb"
    assert links.target(howto, "../api/index.rst") == "../api/index.rst"
    assert links.target(howto, "../../data") == "../data/README.md"
    assert links.target(howto, "../../setup.py") == "../setup.py.md" and "setup.py" in links.files
    assert links.in_html(start, '<a href="tokens/02_quantization.ipynb">') == '<a href="tokens/02_quantization.html">'
    assert links.in_markdown(start, "[a](https://x.y) [b](#c)") == "[a](https://x.y) [b](#c)"
    assert not links.broken
    links.target(start, "nowhere.ipynb")
    assert links.broken == ["nbs/start.ipynb: nowhere.ipynb"]


def test_sounds_become_files():
    links = staged.Links({"nbs/first.ipynb": "nbs/first.ipynb"}, set(), partial=False)
    html = links.in_html("nbs/first.ipynb", f'<audio src="data:audio/wav;base64,{"A"*2000}">')
    assert list(links.media) == [html.split('"')[1].removeprefix("../")] and html.endswith('.wav">')


BAD = """<html><head><link rel="stylesheet" href="gone.css"><script src="https://example.org/a.js"></script></head><body>
<main><article><a href="nowhere.html">a</a><a href="other.html#nothing">b</a><img src="data:image/png;base64,AAAA">
<div style="width: 2000px">wide</div><audio src="data:audio/wav;base64,AAAA"></audio>
<script>throw new Error("odd")</script></article></main></body></html>"""


@pytest.fixture
def bad_site(tmp_path):
    """A site on which everything is wrong."""
    (tmp_path / "index.html").write_text(BAD)
    (tmp_path / "other.html").write_text("<html><body>other</body></html>")
    return tmp_path


def test_the_checker_finds_what_is_wrong_in_files(bad_site, monkeypatch):
    monkeypatch.setattr(checked, "PAGE_MB", 1e-5)
    monkeypatch.setattr(checked, "SITE_MB", 1e-5)
    (bad_site / "sound.wav").write_bytes(bytes(1000))
    (bad_site / "loud.html").write_text("<audio src='sound.wav'></audio><audio src='sound.wav'></audio>")
    assert checked.page_mb(bad_site / "loud.html", {"sound.wav"}) == pytest.approx(0.00105, rel=0.02)
    found = "\n".join(checked.check_files(bad_site))
    for part in ("gone.css leads nowhere", "loads https://example.org/a.js", "nowhere.html leads nowhere",
                 "no anchor other.html#nothing", "index.html: 0.0 MB", "the site has"): assert part in found


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_checker_finds_what_is_wrong_in_a_browser(bad_site):
    found = "\n".join(checked.check_in_browser(bad_site, checked.html_pages(bad_site)))
    for part in ("asks the network for https://example.org/a.js", "pixels wider than the window", "no picture data:",
                 "a player fails", "odd", "(400 px, dark)"): assert part in found
    assert "other.html" not in found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small site, built anew."""
    output = tmp_path_factory.mktemp("site")
    assert build_site.build(SMALL, output) == []
    return output / "html"


@pytest.mark.parametrize("wrong", [[], ["a.html leads nowhere"]])
def test_the_status_says_whether_anything_is_wrong(monkeypatch, capsys, wrong):
    monkeypatch.setattr(build_site, "build", lambda only: wrong)
    monkeypatch.setattr(build_site.checked, "check_changed", lambda site, record: [])
    assert build_site.main([]) == len(wrong)
    assert capsys.readouterr().err.splitlines() == wrong


@pytest.mark.slow
def test_a_small_site_is_whole(site):
    pages = {p.relative_to(site).as_posix() for p in checked.html_pages(site)}
    assert {"index.html", "nbs/tokens/03_layouts.html", "nbs/explore/layouts.html", "results/index.html"} <= pages
    lesson = (site / "nbs/tokens/03_layouts.html").read_text()
    assert "<audio" in (site / "nbs/explore/layouts.html").read_text()
    assert "#| " not in lesson and "nbdev_export" not in lesson and "Imports" in lesson
    assert (site / "_static/mathjax/tex-chtml.js").exists()
    assert json.loads((site / "searchindex.js").read_text().removeprefix("Search.setIndex(").rstrip(")"))["docnames"]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_small_site_in_a_browser(site):
    assert checked.check_in_browser(site, checked.html_pages(site)) == []
