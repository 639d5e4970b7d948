# SPDX-License-Identifier: Apache-2.0
"""Contexts: the cluster that `orc` calls, and the certificate for it.

One JSON file per context in `$XDG_CONFIG_HOME/orc/contexts/` (else `~/.config/orc/contexts/`),
mode 0600 as it holds a private key. The file `current` beside that folder names the one in use.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.cli.app.errors import CliError
from orchestrator.model.names import check_name, near_miss

DEFAULT_PORT = 7420

NO_CLUSTER = (
    "no cluster is set up here; run 'orc dev up' for one on this machine, or 'orc cluster init'"
)


@dataclass(frozen=True, slots=True)
class Context:
    """The endpoints of one cluster, and the credentials for it."""

    name: str
    endpoints: tuple[str, ...]
    """`HOST:PORT` of the managers' control ports, tried in this order."""
    ca: str
    """The cluster's CA certificate, PEM."""
    certificate: str
    """PEM."""
    key: str
    """PEM, not encrypted."""
    renew_at: float = 0.0
    """Unix time from which the certificate is renewed; 0: unknown."""


def save_context(context: Context, use: bool = True, renew_at: float = 0.0) -> None:
    """Write a context, replacing one of the same name, and make it current if `use`. Its
    certificate is renewed from `renew_at` on, by default from half of its lifetime.

    Raises CliError for a bad name.
    """
    try:
        check_name(context.name, "context name")
    except ValueError as error:
        raise CliError(str(error)) from None
    from orchestrator.identity.certificates import Life

    life = Life.of(context.certificate)
    renewal = renew_at or (life.renewal(0.0).timestamp() if life else 0.0)
    _write(context_file(context.name), dump_context(dataclasses.replace(context, renew_at=renewal)))
    if use:
        use_context(context.name)


def learn_endpoints(context: Context, managers: Sequence[str], gone: Sequence[str] = ()) -> None:
    """Add managers to a stored context, and remove those that are gone. Other endpoints stay: one
    may be a load balancer's."""
    kept = [each for each in context.endpoints if each not in gone or each in managers]
    found = tuple(dict.fromkeys([*kept, *managers]))
    if found != context.endpoints and context.name in list_contexts():
        stored = load_context(context.name)
        _write(
            context_file(context.name), dump_context(dataclasses.replace(stored, endpoints=found))
        )


def dump_context(context: Context) -> str:
    """A context as stored in its file, including its key."""
    return json.dumps(dataclasses.asdict(context), indent=2) + "\n"


def parse_context(name: str, text: str) -> Context:
    """Parse the text of `dump_context`, under this name. Raises ValueError."""
    try:
        fields = json.loads(text)
        return Context(**{**fields, "name": name, "endpoints": tuple(fields["endpoints"])})
    except (TypeError, KeyError):
        raise ValueError("no context") from None


def load_context(name: str | None = None) -> Context:
    """The context of that name, else of ORC_CONTEXT, else the current one.

    Raises CliError when there is none, or its file is broken.
    """
    name = name or context_in_use()
    if name is None:
        raise CliError(NO_CLUSTER)
    path = _existing(name)
    try:
        with open(path, encoding="utf-8") as file:
            return parse_context(name, file.read())
    except OSError as error:
        raise CliError(f"cannot read context {name!r}: {error.strerror} ({path})") from None
    except ValueError:
        raise CliError(
            f"context {name!r} is broken; remove it with 'orc context rm {name}'"
        ) from None


def list_contexts() -> list[str]:
    """The names of all contexts, sorted."""
    try:
        names = os.listdir(os.path.join(config_folder(), "contexts"))
    except OSError:
        return []
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def context_in_use() -> str | None:
    """The name of the context that commands use by default, if any."""
    return os.environ.get("ORC_CONTEXT") or current_context()


def current_context() -> str | None:
    """The name last given to 'orc context use', if any."""
    try:
        with open(_current(), encoding="utf-8") as file:
            return file.read().strip() or None
    except OSError:
        return None


def use_context(name: str) -> None:
    """Make `name` the current context. Raises CliError if no context has that name."""
    _existing(name)
    before = [current_context(), *_previous()]
    earlier = [each for each in dict.fromkeys(before) if each and each != name]
    if earlier != _previous():
        _write(_previous_file(), "".join(f"{each}\n" for each in earlier[:_MAX_PREVIOUS]))
    _write(_current(), name + "\n")


def previous_context() -> str | None:
    """The previous current context that still exists."""
    names, current = list_contexts(), current_context()
    return next((name for name in _previous() if name in names and name != current), None)


def remove_context(name: str, *, back: bool = False) -> None:
    """Remove a context and its key; `back`: if it is current, make the previous one current.
    Raises CliError if no context has that name."""
    current = current_context() == name
    for path in (_existing(name), seen_file(name), *([_current()] if current else [])):
        with suppress(FileNotFoundError):
            os.unlink(path)
    if current and back and (earlier := previous_context()) is not None:
        use_context(earlier)


_MAX_PREVIOUS = 20
"""Maximum number of previous contexts that are remembered."""


def _previous_file() -> str:
    return os.path.join(config_folder(), "earlier")


def _previous() -> list[str]:
    """Names of previous current contexts, the latest first."""
    try:
        with open(_previous_file(), encoding="utf-8") as file:
            return file.read().split()
    except OSError:
        return []


def config_folder() -> str:
    """The folder of this user's contexts and of what commands remember."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "orc")


def _current() -> str:
    return os.path.join(config_folder(), "current")


def context_file(name: str) -> str:
    """The path of a context's file."""
    return os.path.join(config_folder(), "contexts", f"{name}.json")


def seen_file(name: str) -> str:
    """The path of the file with what commands remember of a context's managers."""
    return os.path.join(config_folder(), "seen", f"{name}.json")


def _existing(name: str) -> str:
    names = list_contexts()
    if name in names:
        return context_file(name)
    meant = near_miss(name, names)
    hint = f"did you mean {meant!r}?" if meant else "see 'orc context ls'"
    raise CliError(f"no context {name!r}; {hint}")


def _write(path: str, text: str) -> None:
    """Replace a private file atomically."""
    from pathlib import Path

    from orchestrator.linux.atomicfile import write_file

    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Two commands may write the same context at once.
        write_file(file, text, temporary=file.with_name(f".new-{os.getpid()}"))
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from None
