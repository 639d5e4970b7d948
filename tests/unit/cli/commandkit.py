# SPDX-License-Identifier: Apache-2.0
"""All commands of `orc`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from orchestrator.cli.main import orc


def _commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from _commands(found, (*path, name))


ALL = dict(_commands(orc))
"""Every command that is no group, by its words."""
