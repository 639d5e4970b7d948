# SPDX-License-Identifier: Apache-2.0
"""Compose files of a stack: finding and reading them, and values of their variables.

Variables with values from the cluster, for stacks that monitor it:

    ORC_MANAGER        HOST:PORT of a manager's HTTPS server (metrics, service discovery)
    ORC_CA             the certificate of the cluster's CA, PEM
    ORC_SCRAPE_TOKEN   what Prometheus shows to managers and agents
    ORC_CLUSTER        the cluster's id

They are queried when a file first uses one; other definitions of the name take precedence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.flags.flag_types import pairs
from orchestrator.cli.stack.stack_template import TEMPLATES, rendered, template_of, values_of
from orchestrator.compose.conversion.assembly import stack_of
from orchestrator.compose.project.loader import Loader, Project, project_name
from orchestrator.compose.project.variables import parse_env
from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.stack import Stack
from orchestrator.compose.tree import ComposeError, Map
from orchestrator.model.names import check_name

CLUSTER_VARIABLES = ("ORC_MANAGER", "ORC_CA", "ORC_SCRAPE_TOKEN", "ORC_CLUSTER")


class VariableValues(Mapping[str, str]):
    """The values of variables: those given, then the cluster's."""

    def __init__(self, given: Mapping[str, str], query: Callable[[], Mapping[str, str]]) -> None:
        """`query` returns the cluster's, by name; it is called at most once."""
        self._given = given
        self._query = query
        self._cluster: Mapping[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        if name in self._given or name not in CLUSTER_VARIABLES:
            return self._given[name]
        if self._cluster is None:
            self._cluster = self._query()
        return self._cluster[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._given
        yield from (name for name in CLUSTER_VARIABLES if name not in self._given)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def placeholders() -> dict[str, str]:
    """Placeholders without a cluster: their own names."""
    return {name: f"({name} of the cluster)" for name in CLUSTER_VARIABLES}


F = TypeVar("F", bound=Callable[..., Any])

FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""Names of a folder's compose file; the first existing one is used."""
OVERRIDES = tuple(name.replace(".y", ".override.y") for name in FILES)
VALUES = "values.env"
"""A chart's default values of variables."""
STDIN = "-"


@dataclass(slots=True)
class ComposeFiles:
    """The content of the files."""

    document: Map
    name: str
    """The project's, which is the stack's."""
    folder: str
    """The base of relative paths."""
    values: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    """Ignored settings, a line each."""

    def stack(self) -> Stack:
        """The stack of the files. Raises CliError."""
        reading = ReadContext(self.folder, _home(), self.notes)
        try:
            return stack_of(Project(self.document, _read, self.values), self.name, reading)
        except ComposeError as error:
            raise CliError(str(error)) from None


def checked_name(text: str) -> str:
    """A checked stack name, the prefix of the names of its objects. Raises a usage error."""
    try:
        check_name(text, "stack name")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return text


def file_options(function: F) -> F:
    """`--compose-file` and the options for its variables and profiles."""
    for option in (
        click.option(
            "--project-name",
            "-p",
            "project_name",
            metavar="NAME",
            help="The stack's name, instead of the files' own.",
        ),
        click.option(
            "--profile",
            "profiles",
            multiple=True,
            metavar="NAME",
            help="Enable a profile; repeatable.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="Set a variable of the files, or a.b of a chart's values; repeatable.",
        ),
        click.option(
            "--values",
            "-f",
            "values_files",
            multiple=True,
            metavar="FILE",
            type=click.Path(),
            help="Values that override a chart's values.yml; repeatable.",
        ),
        click.option(
            "--env-file",
            "env_files",
            multiple=True,
            metavar="FILE",
            type=click.Path(),
            help="File of variables, instead of .env; repeatable.",
        ),
        click.option(
            "--compose-file",
            "-c",
            "files",
            multiple=True,
            metavar="FILE|-",
            type=click.Path(),
            help="A compose file; repeatable, later ones override earlier ones.",
        ),
    ):
        function = option(function)
    return function


def read_files(
    values: Mapping[str, Any],
    folder: str | None,
    name: str = "",
    *,
    interpolate: bool = True,
    cluster: Callable[[], Mapping[str, str]] = placeholders,
) -> ComposeFiles:
    """Read the files of `file_options`, or the compose file of a folder. `cluster` returns the
    values of CLUSTER_VARIABLES. Raises CliError, in one line with the file, the
    line and the key.

    The stack's name is `name`, COMPOSE_PROJECT_NAME, the last one in the files, or else the
    folder's."""
    files, settings = [*values["files"]], values["settings"]
    if name and values["project_name"]:
        raise click.UsageError("the stack's name is given twice; omit -p or NAME")
    name = name or values["project_name"] or ""
    read: Callable[[str], bytes] = _read
    template = template_of(folder) if folder is not None else None
    if folder is not None:
        if files:
            raise click.UsageError("a folder has its own compose file; omit -c or the folder")
        files = [template] if template else _of_folder(Path(folder))
    if template:
        read = _with(
            template, values_of(os.path.dirname(template), values["values_files"], settings, _read)
        )
        settings = ()
    elif values["values_files"]:
        raise click.UsageError(f"-f is for a folder with a template ({TEMPLATES[0]})")
    if not files:
        raise click.UsageError("name a compose file with -c, or the folder that it is in")
    base = os.getcwd() if files[0] == STDIN else os.path.dirname(os.path.abspath(files[0]))
    paths = [file if file == STDIN else os.path.abspath(file) for file in files]
    profiles = [*values["profiles"], *os.environ.get("COMPOSE_PROFILES", "").split(",")]
    try:
        given = _variables(base, values["env_files"], settings)
        known = VariableValues(given, cluster)
        loader = Loader(
            read,
            known,
            _home(),
            interpolate=interpolate,
            profiles=frozenset(filter(None, profiles)),
        )
        name = name or given.get("COMPOSE_PROJECT_NAME", "") or loader.name(paths)
        name = checked_name(name or project_name(os.path.basename(base)))
        given["COMPOSE_PROJECT_NAME"] = name
        document = loader.project(paths, base)
    except ComposeError as error:
        raise CliError(str(error)) from None
    return ComposeFiles(document, name, base, known, loader.notes)


def _with(template: str, values: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Reads files; a template is rendered with the values."""
    text = rendered(template, values, _read)
    whole = os.path.abspath(template)
    return lambda path: text if path == whole else _read(path)


def _of_folder(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise CliError(f"folder {folder} does not exist; name a file with -c")
    found = [str(folder / name) for name in FILES if (folder / name).is_file()][:1]
    if not found:
        raise CliError(f"{folder} has no compose file; it is called {FILES[0]}")
    return [*found, *[str(folder / name) for name in OVERRIDES if (folder / name).is_file()][:1]]


def _variables(folder: str, files: tuple[str, ...], settings: tuple[str, ...]) -> dict[str, str]:
    """The values of variables: a chart's values, then `.env` or the files named instead, then the
    environment, then `--set`; later ones win."""
    found: dict[str, str] = {}
    usual = [os.path.join(folder, file) for file in (VALUES, ".env")]
    for file in [*usual[:1], *files] if files else usual:
        if not os.path.exists(file) and file in usual:
            continue
        try:
            text = _read(file).decode()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise CliError(f"cannot read env file {file}: {reason.lower()}") from None
        shown = os.path.relpath(file) if os.path.isabs(file) else file
        given = parse_env(text, shown, {**found, **os.environ})
        found |= {key: value for key, value in given.items() if value is not None}
    return {**found, **os.environ, **pairs("variable", settings)}


def _read(path: str) -> bytes:
    if os.path.basename(path) == STDIN:
        return sys.stdin.buffer.read()
    with open(path, "rb") as file:
        return file.read()


def _home() -> str:
    return os.path.expanduser("~")
