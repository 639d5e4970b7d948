# SPDX-License-Identifier: Apache-2.0
"""The tree of commands as data, and the pages that are made of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from orchestrator.cli.app.command_groups import Lazy, OrcGroup, example
from orchestrator.cli.app.reference import Entry, Paragraph, pages

ROOT = Path(__file__).parents[4]


@click.group(
    cls=OrcGroup,
    sections=[("What there is", [Lazy("again", "reference_toys:paint", "As paint")])],
)
def toy() -> None:
    """A root."""


@toy.command(epilog=example("toy paint -c red wall", "toy paint door"))
@click.option("-c", "--colour", default="blue", show_default=True, help="Of the paint.")
@click.option("--secret", hidden=True)
@click.argument("thing", nargs=-1)
def paint() -> None:
    """Paint things, one
    after the other.

    \b
    exactly
      so
    """


@toy.command(hidden=True)
def ghost() -> None:
    """Is not told of."""


def test_the_pages_of_a_small_tree() -> None:
    toys = type(sys)("reference_toys")
    toys.__dict__["paint"] = paint
    sys.modules["reference_toys"] = toys
    try:
        root, again, painted = pages(toy, "toy")
    finally:
        del sys.modules["reference_toys"]
    assert [entry.names for entry in root.commands] == ["again", "paint"]
    assert (again.name, again.section, again.same_as) == ("toy again", "What there is", "")
    assert (painted.name, painted.same_as) == ("toy paint", "toy again")
    assert again.paragraphs == (
        Paragraph("Paint things, one after the other."),
        Paragraph("exactly\n  so", as_is=True),
    )
    assert again.synopsis == "[OPTIONS] [THING]..."
    assert again.options[0] == Entry("-c, --colour TEXT", "Of the paint.  [default: blue]")
    assert [option.names for option in again.options[1:]] == ["--help"]
    assert again.examples == ("toy paint -c red wall", "toy paint door")


def test_reference_pages_are_up_to_date(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "reference"
    subprocess.run([sys.executable, script, tmp_path], cwd=ROOT, check=True)
    kept = {path.name: path.read_text() for path in (ROOT / "docs" / "reference").iterdir()}
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(kept) == sorted(made), "run 'make reference'"
    stale = [name for name in made if made[name] != kept[name]]
    assert not stale, "run 'make reference'"
