# SPDX-License-Identifier: Apache-2.0
"""The tree of commands as data: the source of the reference pages and manual pages.

Names, texts, defaults and examples are those of the commands themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc

import click

from orchestrator.cli.app.command_groups import OrcGroup
from orchestrator.cli.app.option_groups import grouped, is_long

AS_IS = "\b"
"""Click's mark of a paragraph whose lines are kept."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An option or a command, as help lists it: its names, and what it does."""

    names: str
    text: str
    group: str = ""
    """Of an option of a long help: the title that it is listed under."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str
    as_is: bool = False
    """Its lines are kept."""


@dataclass(frozen=True, slots=True)
class Page:
    """The help of one command."""

    path: tuple[str, ...]
    """Its words, from `orc` on."""
    section: str
    """The title under which `orc --help` lists it, or its noun; empty for the root."""
    summary: str
    synopsis: str
    """Options and arguments, as in its usage line."""
    paragraphs: tuple[Paragraph, ...]
    options: tuple[Entry, ...]
    commands: tuple[Entry, ...]
    examples: tuple[str, ...]
    same_as: str = ""
    """The page of the same command under another name, such as `orc ps` for `orc container ls`."""

    @property
    def name(self) -> str:
        return " ".join(self.path)


def pages(root: click.Group, name: str = "orc") -> Iterator[Page]:
    """The root's page, and one for each command below it, in the order of the help.

    Hidden commands have none. Each command's module is imported.
    """
    context = click.Context(root, info_name=name)
    yield from _pages(root, context, (name,), "", {})


def _pages(
    command: click.Command,
    context: click.Context,
    path: tuple[str, ...],
    section: str,
    seen: dict[int, str],
) -> Iterator[Page]:
    same_as = seen.setdefault(id(command), " ".join(path))
    below = list(_below(command, context)) if isinstance(command, click.Group) else []
    yield Page(
        path,
        section,
        command.get_short_help_str(limit=200),
        " ".join(command.collect_usage_pieces(context)),
        _paragraphs(command.help or ""),
        tuple(_options(command, context)),
        tuple(Entry(name, child.get_short_help_str(limit=200)) for name, child in below),
        _examples(command.epilog or ""),
        same_as if same_as != " ".join(path) else "",
    )
    if isinstance(command, OrcGroup) and command.mirrors:
        return
    titles = command.titles() if isinstance(command, OrcGroup) else {}
    for name, child in below:
        inner = click.Context(child, info_name=name, parent=context)
        title = titles.get(name, "") if len(path) == 1 else path[-1]
        yield from _pages(child, inner, (*path, name), title, seen)


def _below(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            yield name, command


def _options(command: click.Command, context: click.Context) -> Iterator[Entry]:
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    groups = grouped(options) if is_long(options) else [("", options)]
    for title, members in groups:
        for option in members:
            if record := option.get_help_record(context):
                yield Entry(*record, title)


def _paragraphs(text: str) -> tuple[Paragraph, ...]:
    found: list[Paragraph] = []
    for block in cleandoc(text).split("\n\n"):
        as_is = block.startswith(AS_IS)
        lines = block.removeprefix(AS_IS).strip("\n").splitlines()
        if lines:
            found.append(Paragraph("\n".join(lines) if as_is else " ".join(lines), as_is))
    return tuple(found)


def _examples(epilog: str) -> tuple[str, ...]:
    """The lines of the epilog that `example` wrote, without its head."""
    lines = epilog.removeprefix(AS_IS).strip("\n").splitlines()
    return tuple(line.removeprefix("  ") for line in lines[1:])
