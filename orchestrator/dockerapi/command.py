# SPDX-License-Identifier: Apache-2.0
"""`orc docker-api`."""

from __future__ import annotations

import grp
import os
import signal
import socket
import ssl
import threading
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.rpc.client import Client, pass_client

if TYPE_CHECKING:
    from orchestrator.dockerapi.gateway import Gateway

SOCKET = "/run/orc/docker.sock"
DOCKER_GROUP = "docker"


@click.command(
    "docker-api",
    epilog=example(
        "orc docker-api",
        "orc docker-api --socket /run/user/1000/docker.sock --group users",
        "orc docker-api --listen 0.0.0.0:2376 --tlscert host.pem --tlskey host.key",
    ),
)
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    default=SOCKET,
    show_default=True,
    help="Unix socket to serve; it is created with mode 0660.",
)
@click.option(
    "--group",
    default=DOCKER_GROUP,
    show_default=True,
    metavar="NAME",
    help="Group that may use the socket. Without the default one, root alone may.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Also serve TCP, to clients with an admin's certificate.",
)
@click.option(
    "--tlscert",
    metavar="FILE",
    help="Certificate (PEM) that names the host of --listen.",
)
@click.option(
    "--tlskey",
    metavar="FILE",
    help="The certificate's key (PEM).",
)
@pass_client
def docker_api(
    client: Client,
    path: str,
    group: str,
    listen: str | None,
    tlscert: str | None,
    tlskey: str | None,
) -> None:
    """Serve Docker's Engine API in front of the cluster.

    The docker CLI, docker compose and SDKs then work on the whole cluster. All clients of the
    socket have the rights of this context.
    """
    if bool(listen) != bool(tlscert and tlskey) or bool(tlscert) != bool(tlskey):
        raise click.UsageError("--listen goes with --tlscert and --tlskey")
    from orchestrator.dockerapi.gateway import Gateway
    from orchestrator.dockerapi.http.server import Listener, unix_socket
    from orchestrator.dockerapi.table import ROUTER

    gateway = Gateway(client.context)
    with ExitStack() as stack:
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            listeners = [Listener(unix_socket(path, 0o660, group_id(group)), gateway, ROUTER, None)]
            stack.callback(_remove, path)
            if listen and tlscert and tlskey:
                tls = partial(_tls, gateway, tlscert, tlskey)
                tls()  # raises now what would be wrong with every connection
                listeners.append(Listener(_tcp_socket(listen), gateway, ROUTER, tls))
        except OSError as error:
            raise CliError(f"cannot serve at {listen or path}: {error.strerror or error}") from None
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        for listener in listeners:
            threading.Thread(target=listener.serve_forever, daemon=True).start()
        click.echo(f"serving Docker's Engine API at unix://{path}", err=True)
        stop.wait()


def group_id(name: str) -> int:
    """Its id. A host without Docker may lack the default group; -1 keeps that of this process.
    Raises BadParameter for any other group that does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name == DOCKER_GROUP:
            return -1
        raise click.BadParameter(
            f"there is no group {name!r} on this host; see 'getent group'", param_hint="--group"
        ) from None


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _tcp_socket(text: str) -> socket.socket:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise click.BadParameter(f"{text!r} is not of the form HOST:PORT, such as 0.0.0.0:2376")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), int(port)), family=family)


def _tls(gateway: Gateway, certificate: str, key: str) -> ssl.SSLContext:
    """Mutual TLS: clients need a certificate of the cluster's CA. Raises CliError."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=gateway.context.ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    try:
        tls.load_cert_chain(certificate, key)
    except OSError as error:
        reason = error.strerror or error
        raise CliError(f"cannot use {certificate} with the key {key}: {reason}") from None
    return tls
