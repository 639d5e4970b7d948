"""`--opt conflist=FILE`: read here, since it is a file of whoever types the command."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.groups import CliError
from orchestrator.model.networks import CNI, CONFLIST, is_ours


def taken_conflist(driver: str, options: dict[str, str], name: str) -> tuple[str, str]:
    """The text of the list that the options name, which is taken out of them, and the network's
    name: what the list says where `name` is empty. Raises CliError and usage errors."""
    file = options.pop(CONFLIST, None) if driver == CNI or is_ours(driver or "overlay") else None
    if file is None:
        if not name:
            raise click.UsageError("Missing argument 'NAME'.")
        return "", name
    if driver != CNI:
        raise click.UsageError("--opt conflist=FILE is for --driver cni")
    # Not for those who have none.
    from orchestrator.model.conflist import ConflistError, parse_conflist

    try:
        text = Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CliError(f"conflist {file} cannot be read: {why}") from None
    try:
        chain = parse_conflist(text)
    except ConflistError as error:
        raise CliError(f"conflist {file}: {error}") from None
    return text, name or chain.name
