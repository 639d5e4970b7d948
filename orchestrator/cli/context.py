"""Contexts: which cluster `orc` speaks to, and the certificate it does so with.

One JSON file a context in `$XDG_CONFIG_HOME/orc/contexts/` (else `~/.config/orc/contexts/`), mode
0600 as it holds a private key, and the name of the one in use in `current` beside that folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cli.groups import CliError
from orchestrator.model.names import check_name, near_miss

DEFAULT_PORT = 7420

NO_CLUSTER = (
    "no cluster is set up here; run 'orc dev up' for one on this machine, or 'orc cluster init'"
)


@dataclass(frozen=True, slots=True)
class Context:
    """How to reach one cluster as its admin."""

    name: str
    endpoints: tuple[str, ...]
    """`HOST:PORT` of the managers' control ports, tried in this order."""
    ca: str
    """The cluster's CA certificate, PEM."""
    certificate: str
    """PEM."""
    key: str
    """PEM, not encrypted."""


def save_context(context: Context, use: bool = True) -> None:
    """Write a context, in place of one of the same name, and make it the current one if `use`.

    Raises CliError for a bad name.
    """
    try:
        check_name(context.name, "context name")
    except ValueError as error:
        raise CliError(str(error)) from None
    fields = dataclasses.asdict(context)
    _write(_file(context.name), json.dumps(fields, indent=2) + "\n")
    if use:
        use_context(context.name)


def load_context(name: str | None = None) -> Context:
    """The context of that name, else of ORC_CONTEXT, else the current one.

    Raises CliError when there is none, or its file is broken.
    """
    name = name or os.environ.get("ORC_CONTEXT") or current_context()
    if name is None:
        raise CliError(NO_CLUSTER)
    path = _existing(name)
    try:
        fields = json.loads(path.read_text())
        return Context(**{**fields, "endpoints": tuple(fields["endpoints"])})
    except OSError as error:
        raise CliError(f"cannot read context {name!r}: {error.strerror} ({path})") from None
    except (ValueError, TypeError, KeyError):
        raise CliError(
            f"context {name!r} is broken; remove it with 'orc context rm {name}'"
        ) from None


def list_contexts() -> list[str]:
    """The names of all contexts, sorted."""
    return sorted(path.stem for path in (_folder() / "contexts").glob("*.json"))


def current_context() -> str | None:
    """The name of the context in use, if one is."""
    try:
        return (_folder() / "current").read_text().strip() or None
    except OSError:
        return None


def use_context(name: str) -> None:
    """Make `name` the current context. Raises CliError if there is none of that name."""
    _existing(name)
    _write(_folder() / "current", name + "\n")


def remove_context(name: str) -> None:
    """Forget a context and its key. Raises CliError if there is none of that name."""
    _existing(name).unlink(missing_ok=True)
    if current_context() == name:
        (_folder() / "current").unlink(missing_ok=True)


def _folder() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "orc"


def _file(name: str) -> Path:
    return _folder() / "contexts" / f"{name}.json"


def _existing(name: str) -> Path:
    names = list_contexts()
    if name in names:
        return _file(name)
    meant = near_miss(name, names)
    hint = f"did you mean {meant!r}?" if meant else "'orc context ls' shows those there are"
    raise CliError(f"no context {name!r}; {hint}")


def _write(path: Path, text: str) -> None:
    """Replace a private file as a whole: a reader or a crash sees the old one or the new one."""
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # mkstemp makes it 0600.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from None
