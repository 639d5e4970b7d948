# SPDX-License-Identifier: Apache-2.0
"""Completers by name, which decorators refer to: `shell_complete=completes("nodes")`.

The functions behind the names call a manager. They are in `completion.completers`, which is
imported only while a shell completes and registers them here; so commands do not import them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Items: TypeAlias = "list[CompletionItem[str]]"
Completer = Callable[[click.Context, click.Parameter, str], "Items"]
F = TypeVar("F", bound=Callable[..., Any])

Name = Literal[
    "configs",
    "containers",
    "contexts",
    "copy_paths",
    "files",
    "folders",
    "images",
    "jobs",
    "networks",
    "nodes",
    "orphans",
    "paused_containers",
    "queues",
    "revocable_identities",
    "running_containers",
    "secrets",
    "service_scales",
    "services",
    "services_and_tasks",
    "stacks",
    "stacks_and_folders",
    "stopped_containers",
    "volumes",
    "volumes_and_folders",
]

_BY_FILTER: Mapping[str, Name] = {
    "node": "nodes",
    "on": "nodes",
    "service": "services",
    "network": "networks",
    "volume": "volumes",
    "stack": "stacks",
}
"""Keys of filters whose values live in the cluster."""

_completers: dict[Name, Completer] = {}


def register(completers: Mapping[Name, Completer]) -> None:
    """Set the functions behind the names. A name without one completes nothing."""
    _completers.update(completers)


def completes(name: Name) -> Completer:
    """The completer of this name, looked up when a shell completes."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        completer = _completers.get(name)
        return completer(ctx, param, incomplete) if completer else []

    return complete


def completes_filter(keys: Sequence[str]) -> Completer:
    """Completes `KEY=` of these keys, and values that live in the cluster."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        from click.shell_completion import CompletionItem

        key, equals, value = incomplete.partition("=")
        if not equals:
            found = sorted(each for each in keys if each.startswith(incomplete))
            return [CompletionItem(f"{each}=") for each in found]
        if key not in keys or key not in _BY_FILTER:
            return []
        items = completes(_BY_FILTER[key])(ctx, param, value)
        for item in items:
            item.value = f"{key}={item.value}"
        return items

    return complete


def file_option(*flags: str, **settings: Any) -> Callable[[F], F]:
    """An option that takes the name of a file of this host."""
    return click.option(*flags, metavar="FILE", shell_complete=completes("files"), **settings)


def context_option(*flags: str) -> Callable[[F], F]:
    """The option --context, and further flags for it, of commands that call a cluster."""
    return click.option(
        "--context",
        *flags,
        "context_name",
        metavar="NAME",
        shell_complete=completes("contexts"),
        help="The context of the cluster to call.",
    )
