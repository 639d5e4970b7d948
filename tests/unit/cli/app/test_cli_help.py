# SPDX-License-Identifier: Apache-2.0
"""What every command promises: help with an example, and the same flags on each listing."""

from __future__ import annotations

import re

import click
import pytest
from commandkit import ALL

from orchestrator.cli.app.option_groups import GROUPS, OTHER, GroupedCommand, group_of, is_long


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_of_every_command(path: tuple[str, ...]) -> None:
    command = ALL[path]
    text = command.get_help(click.Context(command, info_name=path[-1]))
    assert command.help
    assert "Example" in text
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert not [each.opts for each in options if not each.help and each.opts != ["--help"]]


@pytest.mark.parametrize("path", [path for path in ALL if is_long(ALL[path].params)], ids=" ".join)
def test_long_help_groups_its_options(path: tuple[str, ...]) -> None:
    command = ALL[path]
    assert isinstance(command, GroupedCommand)
    text = command.get_help(click.Context(command, info_name=path[-1]))
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles[0] == "General"
    assert [title for title in titles if title in GROUPS or title == OTHER] == [
        title for title in GROUPS if title in titles
    ]
    other = [p.opts for p in command.params if group_of(p) == OTHER and isinstance(p, click.Option)]
    assert not other, "name these in orchestrator/cli/app/option_groups.py"
    assert len(set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE))) >= len(
        [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    )


@pytest.mark.parametrize(
    "path", [path for path in ALL if path[-1] in ("ls", "images", "ps")], ids=" ".join
)
def test_flags_of_every_listing(path: tuple[str, ...]) -> None:
    flags = {flag for param in ALL[path].params for flag in param.opts}
    assert {"--format", "--quiet", "-q", "--filter"} <= flags
