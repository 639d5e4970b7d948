# SPDX-License-Identifier: Apache-2.0
"""Who comes from Docker finds each of its commands and flags, or is told what to use instead."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from orchestrator.cli.app.docker_hints import COMMANDS, advice
from orchestrator.cli.main import orc

LIST = Path(__file__).with_name("docker-26.txt")
DOCKER = {
    name: flags.split()
    for line in LIST.read_text().splitlines()
    if not line.startswith("#")
    for name, _, flags in [line.partition(":")]
}
DOCS = Path(__file__).parents[4] / "docs"
_TICKED = re.compile(r"`([^`]+)`")


def command(words: str) -> click.Command | None:
    """The command of these words, or of as many as lead to one that is no group."""
    found: click.Command | None = orc
    for word in words.split():
        if not isinstance(found, click.Group):
            return found
        found = found.get_command(click.Context(found), word)
    return found


@pytest.mark.parametrize("name", DOCKER)
def test_docker_flag_exists_or_has_a_hint(name: str) -> None:
    found = command(name)
    if found is None or isinstance(found, click.Group):
        if isinstance(found, click.Group):
            return
        assert {name, name.split()[0]} & COMMANDS.keys()
        return
    ours = {flag for param in found.params for flag in (*param.opts, *param.secondary_opts)}
    missing = [flag for flag in DOCKER[name] if flag not in ours and not advice(name, flag)]
    assert not missing


def cells(text: str) -> list[tuple[list[str], list[str]]]:
    """What is in backticks in the two cells of each row of the tables in a text."""
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    found = [(_TICKED.findall(line[1]), _TICKED.findall(line[2])) for line in lines]
    return [row for row in found if row[0] or row[1]]


def test_page_lists_every_docker_command() -> None:
    page = (DOCS / "how-to" / "from-swarm.md").read_text()
    section = page.partition("\n## Every command\n")[2].partition("\n## ")[0]
    same, _, other = section.partition("\nThese have another name")
    named = [" ".join((*noun, word)) for noun, words in cells(same) for word in words]
    assert not [name for name in named if command(name) is None]
    instead = [name for names, _ in cells(other) for name in names]
    assert not [name for name in instead if command(name) is not None]
    assert sorted(named + instead) == sorted(DOCKER)


PAGES = sorted(
    str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.parent.name != "reference"
)


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_docs_exist(page: str) -> None:
    for text in _TICKED.findall((DOCS / page).read_text()):
        if text.startswith("orc ") and text.split()[1][:1].islower():
            words = re.match(r"orc((?: [a-z][a-z-]*)+)", text)
            assert words is not None
            first = words[1].split()[0]
            assert command(first) is not None, text
            if isinstance(command(first), click.Group) and len(words[1].split()) > 1:
                assert command(" ".join(words[1].split()[:2])) is not None, text
