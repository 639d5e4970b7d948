# SPDX-License-Identifier: Apache-2.0
"""Links between the pages lead somewhere, and each page is found from the index and the site's
navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted(ROOT.glob("*/*/README.md")),
]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text())
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def links(page: Path) -> list[tuple[Path, str]]:
    """The files that a page leads to, each with the heading in it, or none."""
    found = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" not in link and not link.startswith("mailto:"):
            path, _, heading = link.partition("#")
            found.append(((page.parent / path).resolve() if path else page, heading))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page: Path) -> None:
    for target, heading in links(page):
        assert target.exists(), target
        assert not heading or heading in anchors(target), f"{target.name}#{heading}"


def test_index_links_to_each_page() -> None:
    index = {target for target, _ in links(DOCS / "README.md")}
    pages = {page for page in DOCS.rglob("*.md") if page.parent.name != "reference"}
    assert pages - index <= {DOCS / "README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_link_to_code_are_defined_there(page: Path) -> None:
    """[`name`](file.py) is a function or class of that file, or the module itself."""
    text = _FENCE.sub("", page.read_text())
    for name, path in re.findall(r"\[`(\w+)`\]\(([^)\s]+\.py)\)", text):
        file = (page.parent / path).resolve()
        is_module = name in (file.stem, file.parent.name)
        defined = rf"^\s*(async )?(def|class) {name}\b"
        assert is_module or re.search(defined, file.read_text(), re.MULTILINE), f"{path}: {name}"


def test_tests_and_paths_named_in_pages_exist() -> None:
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    tests = {path.stem for path in sources} | {
        name for text in sources.values() for name in re.findall(r"def (test_\w+)", text)
    }
    missing = []
    for page in PAGES:
        text = _FENCE.sub("", page.read_text())
        quoted = re.findall(r"`([^`\n]+)`", text)
        missing += [
            name for name in quoted if re.fullmatch(r"test_\w+", name) and name not in tests
        ]
        paths = [name for name in quoted if re.fullmatch(r"(tests|scripts|charts)/[\w./-]+", name)]
        missing += [name for name in paths if not (ROOT / name).exists()]
    assert not missing


def test_navigation_of_the_site_has_each_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", nav, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md")} - set(listed) == set()
    assert [page for page in listed if not (ROOT / page).is_file()] == []
