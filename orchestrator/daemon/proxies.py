# SPDX-License-Identifier: Apache-2.0
"""Proxies between a host and registries.

Flags of managers and agents, with Docker's names, that become the variables which skopeo, buildah
and what a build runs go by (curl's `http_proxy`, Go's `HTTP_PROXY`; programs read either). What
Orc's own processes say to each other, and probes, go past every proxy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

F = TypeVar("F", bound=Callable[..., Any])

_SCHEMES = ("http", "https", "socks5")
_KEY = __name__


def _variable(context: click.Context, parameter: click.Parameter, text: str) -> None:
    """Check it, and keep it for `set_proxies`."""
    if not text:
        return
    assert parameter.name is not None
    if parameter.name != "no_proxy":
        try:
            url = urlsplit(text)
            right = url.scheme in _SCHEMES and bool(url.hostname) and url.port != 0
        except ValueError:
            right = False
        if not right:
            raise click.BadParameter(f"{text!r} is no proxy; write such as http://10.0.0.1:3128")
    context.meta.setdefault(_KEY, {})[parameter.name] = text


def proxy_options(function: F) -> F:
    """An agent's three flags."""
    return _options(function, ", and for builds")


def registry_proxy_options(function: F) -> F:
    """The same flags of a manager, which builds nothing."""
    return _options(function, "")


def _options(function: F, builds: str) -> F:
    for flag, metavar, words in reversed(
        (
            ("--http-proxy", "URL", f"Proxy to registries without TLS{builds}"),
            ("--https-proxy", "URL", f"Proxy to registries{builds}"),
            ("--no-proxy", "HOST,...", "Hosts and networks that are asked without a proxy"),
        )
    ):
        variable = flag[2:].replace("-", "_").upper()
        function = click.option(
            flag,
            default="",
            metavar=metavar,
            expose_value=False,
            callback=_variable,
            help=f"{words}.  [default: ${variable}]",
        )(function)
    return function


def set_proxies(context: click.Context) -> None:
    """Put what was given into this process's environment, which its programs inherit."""
    for name, text in context.meta.get(_KEY, {}).items():
        os.environ[name] = os.environ[name.upper()] = text
