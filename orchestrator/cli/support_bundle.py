"""`orc support-bundle`: all that somebody needs who is to find out what is wrong, in one file."""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from orchestrator import __version__
from orchestrator.cli import completion
from orchestrator.cli.client import Client
from orchestrator.cli.context import Context, load_context
from orchestrator.cli.flag_types import MEMORY
from orchestrator.cli.groups import INTERRUPTED, CliError, error_line, example
from orchestrator.cli.support_state import documents, known_secrets
from orchestrator.model.units import format_size
from orchestrator.pb import control_pb2, support_pb2
from orchestrator.support import hostfacts
from orchestrator.support.hostfacts import Fact
from orchestrator.support.packing import unpacked
from orchestrator.support.redact import scrubbed

PATIENCE = 60.0
"""Seconds that all managers and nodes have for what they tell."""

_ABOUT = """\
A support bundle of Orc {version}, made on {now}.

cluster/   what the managers have in their store: services, tasks, nodes, networks, events
HOST/      what a manager or node says of itself: kernel, network, programs, the daemon's log
here/      the same of the host on which this was made
problems.txt  what could not be had, and why

Removed: what secrets and configs hold, join tokens, private keys, the values of environment
variables, and in texts whatever looks like a password or a token. Container logs and images are
not in it. Names, addresses and labels are. Look through it before you hand it on.
"""


@click.command(
    "support-bundle",
    epilog=example("orc support-bundle", "orc support-bundle --log-size 10m -o bundle.tar.gz"),
)
@completion.file_option(
    "--output", "-o", help="Write there; else orc-support-NAME-TIME.tar.gz in this folder."
)
@click.option(
    "--log-size",
    type=MEMORY,
    default="1m",
    show_default=True,
    help="How much of the end of each log.",
)
@click.option(
    "--context",
    "context_name",
    metavar="NAME",
    shell_complete=completion.contexts,
    help="The cluster to speak to.",
)
@click.pass_context
def support_bundle(
    ctx: click.Context, output: str | None, log_size: int, context_name: str | None
) -> None:
    """Collect logs, state and what the kernels say, of all hosts, into one archive to hand on.

    Secrets, tokens, private keys and the values of environment variables are not in it. A node or
    manager that does not answer is noted down; with none at all there is what this host knows.
    """
    problems: list[str] = []
    try:
        context = load_context(context_name or ctx.find_root().params.get("context_name"))
    except CliError as error:
        context = None
        problems.append(error_line(error))
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"orc-support-{context.name if context else 'host'}-{now}"
    target = Path(output or f"{name}.tar.gz")
    try:
        with Archive(target, name) as archive:
            archive.add(Fact("README.txt", _ABOUT.format(version=__version__, now=now)))
            if context is not None:
                _of_cluster(context, archive, log_size, problems)
            archive.add_all("here", hostfacts.host())
            archive.add_all("here", hostfacts.daemons(log_size))
            archive.add(Fact("problems.txt", "".join(f"{line}\n" for line in problems)))
    except OSError as error:
        raise CliError(f"cannot write {target}: {(error.strerror or str(error)).lower()}") from None
    except KeyboardInterrupt:
        click.echo("orc: given up; nothing was written", err=True)
        raise SystemExit(INTERRUPTED) from None
    for line in problems:
        click.echo(f"orc: {line}", err=True)
    click.echo(target)
    click.echo(
        f"{format_size(target.stat().st_size)}, {archive.count} files; secrets, tokens, keys and "
        "the values of environment variables are removed; look through it before you hand it on",
        err=True,
    )


class Archive:
    """A compressed tar that is there whole or not at all, for its owner only."""

    def __init__(self, path: Path, name: str) -> None:
        """`name` is the folder that all of it is in."""
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        self._name = name
        self.known: set[str] = set()
        """Secrets that are looked for in all that is added from now on."""
        self.count = 0

    def __enter__(self) -> Archive:
        descriptor = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w:gz")
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            self._tar.close()
            self._file.close()
            if kind is None:
                self._draft.rename(self._path)
        finally:
            self._draft.unlink(missing_ok=True)

    def add(self, fact: Fact) -> None:
        """Add a file, without what is known to be secret."""
        data = scrubbed(fact.text, self.known).encode(errors="replace")
        about = tarfile.TarInfo(f"{self._name}/{safe_path(fact.name)}")
        about.size, about.mtime, about.mode = len(data), int(time.time()), 0o600
        self._tar.addfile(about, io.BytesIO(data))
        self.count += 1

    def add_all(self, folder: str, facts: Iterable[Fact]) -> int:
        """Add files in a folder; how many there were."""
        before = self.count
        for fact in facts:
            self.add(Fact(f"{folder}/{fact.name}", fact.text))
        return self.count - before


def safe_path(name: str) -> str:
    """A name that another host gave, as a path that stays in its folder."""
    parts = [re.sub(r"[^\w.@-]", "_", part) for part in name.split("/")]
    return "/".join(part for part in parts if part.strip(".")) or "unnamed"


def _of_cluster(context: Context, archive: Archive, log_size: int, problems: list[str]) -> None:
    with Client(context) as client:
        try:
            cluster = client.call("GetCluster", control_pb2.GetClusterRequest())
        except CliError as error:
            problems.append(error_line(error))
            return
        archive.known |= known_secrets(client, cluster, problems)
        count = archive.add_all("cluster", documents(client, cluster, archive.known, problems))
        click.echo(f"cluster: {count} files", err=True)
        asked = _collect(client, log_size, nodes=True)
        met = _add_parts(archive, asked, problems, f"manager {client.endpoint}")
    for each in cluster.managers:
        if f"manager-{each.address.rpartition(':')[0]}" in met:
            continue
        with Client(replace(context, endpoints=(each.address,))) as other:
            asked = _collect(other, log_size, nodes=False)
            _add_parts(archive, asked, problems, f"manager {each.address}")


def _collect(client: Client, log_size: int, *, nodes: bool) -> Callable[[], Iterator[Any]]:
    request = support_pb2.CollectRequest(nodes=nodes, log_bytes=log_size)
    return lambda: client.stream("Support.Collect", request, timeout=PATIENCE)


def _add_parts(
    archive: Archive, asked: Callable[[], Iterator[Any]], problems: list[str], who: str
) -> set[str]:
    """Add what hosts tell, as it comes: their names."""
    met = set()
    try:
        for part in asked():
            met.add(part.host)
            if part.notice:
                problems.append(part.notice)
                continue
            count = archive.add_all(part.host, unpacked(part.facts))
            click.echo(f"{part.host}: {count} files", err=True)
    except TimeoutError:
        problems.append(f"{who}: not all hosts answered within {PATIENCE:g} seconds")
    except CliError as error:
        problems.append(f"{who}: {error_line(error)}")
    return met
