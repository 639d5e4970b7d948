"""All commands of `orc`, and contexts that name no real cluster."""

from __future__ import annotations

from collections.abc import Iterator

import click

from orchestrator.cli.app.contexts import Context
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


def a_context(name: str = "one", endpoint: str = "10.0.0.1:7420") -> Context:
    return Context(name, (endpoint,), "CA", "CERT", "KEY")
