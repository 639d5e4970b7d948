# SPDX-License-Identifier: Apache-2.0
"""`--config FILE`: a daemon's flags in a TOML file, a key per flag. Typed flags win."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.model.names import near_miss

_OWN = "config"


F = TypeVar("F", bound=Callable[..., Any])


def config_option(function: F) -> F:
    """The option. Keys are the flags without the dashes in front; those that may be given several
    times are lists, and those of KEY=VALUE may be tables."""
    return click.option(
        "--config",
        _OWN,
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_read,
        metavar="FILE",
        help="These flags as keys of a TOML file; typed flags take precedence.",
    )(function)


def _read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        keys = tomllib.loads(path.read_text())
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {(error.strerror or '').lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is not TOML: {error}") from error
    options = {
        option.opts[0].lstrip("-"): option
        for option in context.command.params
        if isinstance(option, click.Option) and option.name not in (_OWN, "help")
    }
    values: dict[str, Any] = {}
    for key, value in keys.items():
        option = options.get(key)
        if option is None:
            hint = near_miss(key, options)
            raise click.UsageError(
                f"{path}: there is no flag --{key}" + (f"; did you mean '{hint}'?" if hint else "")
            )
        assert option.name is not None
        values[option.name] = _value(path, key, value, option)
    context.default_map = values


def _value(path: Path, key: str, value: Any, option: click.Option) -> Any:
    if isinstance(value, dict) and option.multiple:
        value = [f"{name}={text}" for name, text in value.items()]
    if isinstance(value, list) is not option.multiple or isinstance(value, dict):
        wanted = "a list" if option.multiple else "one value"
        raise click.UsageError(f"{path}: {key} takes {wanted}")
    # A flag's own type says whether it is right, as if it had been typed.
    return [str(each) for each in value] if isinstance(value, list) else _typed(value)


def _typed(value: Any) -> Any:
    return value if isinstance(value, bool) else str(value)
