# SPDX-License-Identifier: Apache-2.0
"""Options of both daemons: `--config FILE`, and proxies between a host and registries.

A configuration file is TOML with a key per flag; typed flags take precedence. Proxies have the
names of Docker's flags and become the environment variables that skopeo, buildah and builds read
(curl's `http_proxy`, Go's `HTTP_PROXY`; programs read either). Orc's own connections and probes use
no proxy.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from orchestrator.model.names import near_miss

_OWN = "config"


F = TypeVar("F", bound=Callable[..., Any])


def config_option(function: F) -> F:
    """The option `--config`. Keys are flags without leading dashes; repeatable flags are lists, and
    those of KEY=VALUE may be tables."""
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
    # The flag's own type validates it, as on the command line.
    return [str(each) for each in value] if isinstance(value, list) else _typed(value)


def _typed(value: Any) -> Any:
    return value if isinstance(value, bool) else str(value)


_PROXY_SCHEMES = ("http", "https", "socks5")
_PROXY_KEY = __name__
"""Key of click's `meta`: the proxy flags that were given."""


def _keep_proxy(context: click.Context, parameter: click.Parameter, text: str) -> None:
    """Validate the value and keep it for `set_proxies`."""
    if not text:
        return
    assert parameter.name is not None
    if parameter.name != "no_proxy":
        try:
            url = urlsplit(text)
            valid = url.scheme in _PROXY_SCHEMES and bool(url.hostname) and url.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise click.BadParameter(f"{text!r} is not a proxy URL, such as http://10.0.0.1:3128")
    context.meta.setdefault(_PROXY_KEY, {})[parameter.name] = text


def proxy_options(function: F) -> F:
    """The proxy flags of an agent."""
    return _options(function, ", and for builds")


def registry_proxy_options(function: F) -> F:
    """The proxy flags of a manager, which does not build images."""
    return _options(function, "")


def _options(function: F, builds: str) -> F:
    for flag, metavar, words in reversed(
        (
            ("--http-proxy", "URL", f"Proxy to registries without TLS{builds}"),
            ("--https-proxy", "URL", f"Proxy to registries{builds}"),
            ("--no-proxy", "HOST,...", "Hosts and networks to connect to without a proxy"),
        )
    ):
        variable = flag[2:].replace("-", "_").upper()
        function = click.option(
            flag,
            default="",
            metavar=metavar,
            expose_value=False,
            callback=_keep_proxy,
            help=f"{words}.  [default: ${variable}]",
        )(function)
    return function


def set_proxies(context: click.Context) -> None:
    """Export the flags' values to this process's environment, which its programs inherit."""
    for name, text in context.meta.get(_PROXY_KEY, {}).items():
        os.environ[name] = os.environ[name.upper()] = text
