"""The texts of docs/: links lead somewhere, claims name tests that exist, a term has one explanation."""
import re
from pathlib import Path

import pytest

from sashimi_wb.show.glossary import GLOSSARY

ROOT = Path(__file__).parents[2]
DOCS = ROOT/"docs"
TEXTS = [DOCS/"glossary.md", DOCS/"claims.md", *sorted((DOCS/"howto").glob("*.md"))]


def links(path: Path) -> list[tuple[str, str]]:
    """Words and target of every relative link."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [(words, target) for words, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", text)
            if not target.startswith("http")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_links_lead_to_files(path):
    assert not [target for _, target in links(path) if not (path.parent/target).resolve().is_file()]
    assert "<" not in re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.S)   # no HTML


def test_claims_name_tests_that_exist():
    found = links(DOCS/"claims.md")
    tests = [(words, DOCS/target) for words, target in found if words.startswith("test_")]
    assert len(tests) > 50
    assert not [words for words, path in tests if f"def {words}(" not in path.read_text(encoding="utf-8")]
    assert all(words == Path(target).name for words, target in found if not words.startswith("test_"))


def terms() -> dict[str, str]:
    """Term -> explanation without its link."""
    text = (DOCS/"glossary.md").read_text(encoding="utf-8").split(":::{glossary}\n")[1].split(":::")[0]
    return dict(re.findall(r"^(\S.*)\n  (.*) \[[^\]]+\]\([^)]+\)$", text, re.M))


def test_a_term_is_explained_in_the_words_of_the_pages():
    for term, words in GLOSSARY.items():
        assert terms()[term].rstrip(".") == (words[0].upper() + words[1:]).rstrip("."), f"docs/glossary.md: {term}"


def test_terms_are_sorted():
    assert list(terms()) == sorted(terms(), key=str.casefold)
