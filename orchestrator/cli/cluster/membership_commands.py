# SPDX-License-Identifier: Apache-2.0
"""`orc cluster init`, `join`, `leave` and `advertise`, run on the host itself.

They start and stop its systemd units.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.contexts import Context, config_folder, save_context
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.cluster.external_ca_options import (
    ExternalCaFlags,
    external_ca_options,
    read_flags,
)
from orchestrator.cli.flags.flag_types import CERTIFICATE_LIFETIME

if TYPE_CHECKING:
    from orchestrator.identity.authority import Authority
    from orchestrator.identity.host_identity import ManagerIdentity

_DOCKER_API = "orc-docker-api.service"
_ROOT_CONFIG = "/root/.config/orc"
"""Where that unit looks for a context."""
_SYSTEMD_RUNTIME = Path("/run/systemd/system")
_UNIT_FOLDERS = tuple(map(Path, ("/etc/systemd/system", "/usr/lib/systemd/system")))


def start_unit(unit: str) -> bool:
    """Enable and start a unit; False where systemd does not run or has no such unit.

    Raises CliError with systemd's message."""
    return _systemctl(unit, "did not start", "enable", "--now")


def stop_unit(unit: str) -> bool:
    """Stop and disable a unit; False and CliError as `start_unit`."""
    return _systemctl(unit, "did not stop", "disable", "--now")


def restart_unit(unit: str) -> bool:
    """Restart a unit; False and CliError as `start_unit`."""
    return _systemctl(unit, "did not restart", "restart")


def serve_docker_api() -> None:
    """Start the unit of `orc docker-api`, which has the rights of root's context, if that is where
    contexts are kept. Raises CliError with systemd's message."""
    if config_folder() == _ROOT_CONFIG and start_unit(_DOCKER_API):
        click.echo(f"Docker's API is at unix:///run/orc/docker.sock ({_DOCKER_API}).")


def _systemctl(unit: str, failure: str, *command: str) -> bool:
    known = any((folder / unit).exists() for folder in _UNIT_FOLDERS)
    if not _SYSTEMD_RUNTIME.is_dir() or not known or os.geteuid() != 0:
        return False
    done = subprocess.run(
        ["systemctl", *command, "--quiet", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise CliError(
            f"{unit} {failure}: {output[0] if output else 'systemctl failed'}; "
            f"see 'journalctl -u {unit}'"
        )
    return True


F = TypeVar("F", bound=Callable[..., Any])

MANAGER_DATA, AGENT_DATA = Path("/var/lib/orc/manager"), Path("/var/lib/orc/agent")
"""Data directories of the daemons' units."""


def _data_option(daemon: str, default: Path) -> Callable[[F], F]:
    """The option --data-dir of commands on a daemon's host."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        default=default,
        show_default=True,
        help=f"Where the {daemon} keeps its identity and state.",
    )


manager_data_option = _data_option("manager", MANAGER_DATA)
"""The option --data-dir of commands that run on a manager's host."""
context_name_option = click.option(
    "--context",
    "name",
    default="default",
    show_default=True,
    metavar="NAME",
    help="Name for 'orc'.",
)
"""The option --context of commands that create a context."""


_ADMIN_NAME = re.compile(r"(?=.{1,63}$)[a-z0-9]+(?:[._-][a-z0-9]+)*")


def own_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise CliError(
            f"'{text}' is not an IP address; give this host's own, which the other hosts reach"
        ) from None


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise CliError(f"'{text}' is not a network: {error}; write 10.128.0.0/14") from None
    if network.prefixlen > 22 or network.version != 4:
        raise CliError(f"the network {text} is too small for more than a node or two; use a /16")
    return str(network)


def _external_authority(given: ExternalCaFlags) -> Authority:
    """Raises CannotSign."""
    from orchestrator.identity.authority import Authority, checked_auth_key, checked_ca, checked_url
    from orchestrator.model.administration.access import ExternalCa

    return Authority(
        checked_ca(given.ca_certificate, dt.datetime.now(dt.UTC)),
        external=ExternalCa(url=checked_url(given.url), profile=given.profile, root=given.root),
        auth_key=checked_auth_key(given.auth_key),
    )


@click.command(epilog=example("orc cluster init --advertise 192.168.1.10"))
@click.option(
    "--advertise", required=True, metavar="IP", help="This host's address, which other hosts reach."
)
@click.option("--listen-port", default=7420, show_default=True, help="Control port; joins: +1.")
@click.option(
    "--network",
    default="10.128.0.0/14",
    show_default=True,
    metavar="SUBNET",
    help="Range of container addresses.",
)
@manager_data_option
@context_name_option
@click.option(
    "--cert-expiry",
    type=CERTIFICATE_LIFETIME,
    default="2160h",
    show_default=True,
    help="Lifetime of certificates; they are renewed automatically at half of it.",
)
@click.option(
    "--external-ca",
    metavar="URL",
    help="Have an external CA sign certificates, through this endpoint.",
)
@external_ca_options
def init(
    advertise: str,
    listen_port: int,
    network: str,
    data_dir: Path,
    name: str,
    cert_expiry: float,
    external_ca: str | None,
    **flags: Any,
) -> None:
    """Initialize a cluster on this host: a CA, certificates, and your admin context.

    With --external-ca, the CA is one outside of the cluster: see 'orc cluster ca external'.
    """
    from orchestrator.identity.authority import CannotSign
    from orchestrator.identity.bootstrap import AlreadyThere, init_cluster

    if external_ca is None and any(flags.values()):
        raise click.UsageError("--ca-cert and the flags that go with it need --external-ca")
    address = own_address(advertise)
    try:
        identity, authority, admin = init_cluster(
            data_dir,
            address,
            listen_port,
            _network(network),
            dt.timedelta(seconds=cert_expiry),
            _external_authority(read_flags(external_ca, **flags)) if external_ca else None,
        )
    except (AlreadyThere, CannotSign) as error:
        raise CliError(str(error)) from None
    except PermissionError as error:
        raise CliError(f"cannot write {error.filename}: run this as root (sudo)") from None
    endpoint = f"{address}:{listen_port}"
    save_context(Context(name, (endpoint,), authority, admin.certificate, admin.key))
    click.echo(f"Cluster {identity.cluster_id} is set up in {data_dir}.")
    if data_dir == MANAGER_DATA and start_unit("orc-manager.service"):
        click.echo("Its manager runs, now and after each boot (orc-manager.service).")
        serve_docker_api()
    else:
        click.echo(f"Start its manager:  orc manager --data-dir {data_dir}")
    click.echo("Then add nodes:     orc cluster token worker   (prints the command to run there)")
    click.echo(
        f"Hosts must reach this one at TCP {listen_port} to {listen_port + 2}, nodes each other at "
        "TCP 7423, 7424 and UDP 4789."
    )


@click.command(
    epilog=example(
        "orc cluster join --token ORC-1-… 192.168.1.10:7421",
        "orc cluster join --token ORC-1-… --address 192.168.1.11 192.168.1.10:7421",
    )
)
@click.option(
    "--token",
    required=True,
    envvar="ORC_JOIN_TOKEN",
    metavar="TOKEN",
    help="As 'orc cluster token worker' or 'orc cluster token manager' prints it; or in "
    "ORC_JOIN_TOKEN.",
)
@click.option(
    "--address", default="", metavar="IP", help="This host's own address, if it has several."
)
@click.option(
    "--listen-port",
    default=7420,
    show_default=True,
    help="Control port of a manager; joins: +1.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Where the agent or manager keeps its identity and state  [default: {AGENT_DATA}, "
    f"{MANAGER_DATA}]",
)
@click.argument("manager", metavar="ADDRESS")
def join(token: str, address: str, listen_port: int, data_dir: Path | None, manager: str) -> None:
    """Join this host to the cluster whose manager is at ADDRESS (HOST[:PORT]), as a node or as a
    manager, depending on the token.

    A join that was cut off can be repeated.
    """
    # Behind a load balancer, certificates of other managers than the expected one are met.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from orchestrator.identity.bootstrap import (
        AlreadyThere,
        check_new_node,
        resumable_manager,
        store_manager,
        store_node,
    )
    from orchestrator.identity.enrolment import EnrolmentUndone
    from orchestrator.identity.host_identity import retire_manager
    from orchestrator.identity.join import JoinRefused
    from orchestrator.identity.join import join as join_cluster
    from orchestrator.identity.join_tokens import BadToken

    own = own_address(address) if address else ""
    agent_data, manager_data = data_dir or AGENT_DATA, data_dir or MANAGER_DATA
    try:
        if (begun := resumable_manager(manager_data)) is not None:
            with suppress(EnrolmentUndone):
                return _enroll(manager_data, begun)
            retire_manager(manager_data)
        roles = []
        if not (agent_data / "node.json").exists():
            roles.append("worker")
        if not (manager_data / "manager.json").exists():
            roles.append("manager")
        if not roles:
            check_new_node(agent_data)
        joined = join_cluster(manager, token, socket.gethostname(), roles=tuple(roles), own=own)
        if joined.role == "manager":
            begun = store_manager(manager_data, joined, joined.own_address, listen_port)
            return _enroll(manager_data, begun)
        identity = store_node(agent_data, joined, own)
    except (AlreadyThere, JoinRefused, BadToken) as error:
        raise CliError(str(error)) from None
    except PermissionError as error:
        raise CliError(f"cannot write {error.filename}: run this as root (sudo)") from None
    click.echo(f"This host is node {identity.node_id} now, at {identity.address}.")
    if agent_data == AGENT_DATA and start_unit("orc-agent.service"):
        click.echo("Its agent runs, now and after each boot (orc-agent.service).")
    else:
        click.echo(f"Start its agent:  orc agent --data-dir {agent_data}")


def _enroll(data_dir: Path, begun: ManagerIdentity) -> None:
    """Finish the join of a manager that has its certificate. Raises JoinRefused."""
    from orchestrator.identity.enrolment import enroll

    identity = enroll(data_dir, begun, socket.gethostname())
    click.echo(
        f"This host is manager {identity.manager_id} now, at {identity.address}:{identity.port}."
    )
    if data_dir == MANAGER_DATA and start_unit("orc-manager.service"):
        click.echo("Its manager runs, now and after each boot (orc-manager.service).")
    else:
        click.echo(f"Start its manager:  orc manager --data-dir {data_dir}")
    if identity.peer_port:
        click.echo(f"Managers must reach each other at TCP {identity.peer_port} (etcd), too.")
    else:
        click.echo("The cluster has an external etcd: start it with the same --etcd-… flags.")


@click.command(epilog=example("sudo orc cluster leave", "sudo orc cluster leave --force"))
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Where the agent or manager keeps its identity and state  [default: {MANAGER_DATA} if "
    f"this host is a manager, else {AGENT_DATA}]",
)
@click.option(
    "--force",
    "-f",
    is_flag=True,
    help="Leave although no quorum of healthy managers is left, or no manager answers.",
)
def leave(data_dir: Path | None, force: bool) -> None:
    """Leave the cluster, on the host itself: its manager ends, or else its node.

    The other managers remove it. A node's tasks are rescheduled once it is down; remove it from the
    list of nodes with 'orc node rm'.
    """
    try:
        if ((data_dir or MANAGER_DATA) / "manager.json").exists():
            _leave_as_manager(data_dir or MANAGER_DATA, force)
        else:
            _leave_as_node(data_dir or AGENT_DATA)
    except PermissionError as error:
        raise CliError(f"cannot write {error.filename}: run this as root (sudo)") from None


def _leave_as_manager(data_dir: Path, force: bool) -> None:
    from orchestrator.identity.enrolment import EnrolmentUndone, call_managers
    from orchestrator.identity.host_identity import read_manager, retire_manager
    from orchestrator.identity.join import JoinRefused
    from orchestrator.pb import managers_pb2

    identity = read_manager(data_dir)
    own = f"{identity.address}:{identity.port}"
    others = [each for each in identity.managers if each != own]
    request = managers_pb2.RemoveManagerRequest(manager=identity.manager_id, force=force)
    try:
        if not others:
            raise JoinRefused("it is the only manager, and a cluster without one is lost")
        with suppress(EnrolmentUndone):  # the removal revokes the caller's certificate
            call_managers(data_dir, others, "Remove", request, within=10.0)
    except JoinRefused as error:
        if not force:
            raise CliError(f"this manager cannot leave: {error}") from None
        click.echo(f"orc: the other managers still count this one: {error}", err=True)
    if data_dir == MANAGER_DATA:
        stop_unit(_DOCKER_API)
        stop_unit("orc-manager.service")
    retire_manager(data_dir)
    click.echo(f"Manager {identity.manager_id} has left the cluster.")


def _leave_as_node(data_dir: Path) -> None:
    from orchestrator.identity.host_identity import NoIdentity, read_node, retire_node

    try:
        identity = read_node(data_dir)
    except NoIdentity as error:
        raise CliError(str(error)) from None
    if data_dir == AGENT_DATA:
        stop_unit("orc-agent.service")
    retire_node(data_dir)
    click.echo(f"Node {identity.node_id} has left; remove it: orc node rm {identity.node_id}")


@click.command(epilog=example("sudo orc cluster reconnect 192.168.1.20"))
@_data_option("agent", AGENT_DATA)
@click.argument("managers", nargs=-1, required=True, metavar="ADDRESS...")
def reconnect(data_dir: Path, managers: tuple[str, ...]) -> None:
    """Tell this host's agent where the managers are (HOST[:PORT]), after all of them got other
    addresses, as after a restore.

    The agent uses them at its next attempt to connect, without a restart. Its containers run on.
    """
    from dataclasses import replace

    from orchestrator.identity.host_identity import NoIdentity, read_node, write_identity
    from orchestrator.model.administration.managers import host_port

    endpoints = []
    for text in managers:
        host, _, port = text.rpartition(":")
        if not port.isdecimal():
            host, port = text, ""
        if not host or "/" in text:
            raise CliError(f"'{text}' is not an address of a manager; write 192.168.1.20:7420")
        endpoints.append(host_port(host.strip("[]"), int(port or 7420)))
    try:
        identity = read_node(data_dir)
        write_identity(data_dir / "node.json", replace(identity, managers=tuple(endpoints)))
    except NoIdentity as error:
        raise CliError(str(error)) from None
    except PermissionError as error:
        raise CliError(f"cannot write {error.filename}: run this as root (sudo)") from None
    click.echo(f"Node {identity.node_id} connects to {', '.join(endpoints)} from now on.")


def _authority(data_dir: Path) -> Authority:
    """The cluster's CA; asks for the unlock key if its key is locked. Raises CliError, OSError."""
    from orchestrator.cli.cluster.key_commands import entered_unlock_key
    from orchestrator.identity.authority import Authority
    from orchestrator.identity.key_files import CA_KEY, KeyFiles, WrongUnlockKey

    files = KeyFiles(data_dir)
    if files.locked:
        try:
            files.unlock(entered_unlock_key())
        except WrongUnlockKey as error:
            raise CliError(str(error)) from None
    authority = Authority.of_host(files)
    if not authority.key and not authority.external.url:
        raise CliError(f"{data_dir / CA_KEY} is missing; run this on another manager")
    return authority


@click.command(epilog=example("sudo orc cluster advertise 192.168.1.20"))
@manager_data_option
@click.argument("address", metavar="IP")
def advertise(data_dir: Path, address: str) -> None:
    """Change the address of this host's manager, after the host got another one.

    The manager gets a certificate for the address and restarts; then the other managers and all
    agents learn it. Contexts learn it with 'orc manager ls'.
    """
    from orchestrator.identity.authority import CannotSign
    from orchestrator.identity.certificates import TlsFiles
    from orchestrator.identity.host_identity import NoIdentity, read_manager, remember

    new = own_address(address)
    try:
        identity = read_manager(data_dir)
        files = TlsFiles.of(data_dir, "manager")
        files.pair.replace(
            _authority(data_dir).issue(
                common_name=identity.manager_id,
                role="manager",
                cluster_id=identity.cluster_id,
                now=dt.datetime.now(dt.UTC),
                addresses=[new, "127.0.0.1"],
            )
        )
        remember(data_dir, address=new)
    except (NoIdentity, CannotSign) as error:
        raise CliError(str(error)) from None
    except PermissionError as error:
        raise CliError(f"cannot write {error.filename}: run this as root (sudo)") from None
    click.echo(f"Manager {identity.manager_id} is at {new}:{identity.port} when it starts again.")
    if data_dir == MANAGER_DATA and restart_unit("orc-manager.service"):
        click.echo("It was restarted (orc-manager.service).")
    else:
        click.echo(f"Restart it:  orc manager --data-dir {data_dir}")


@click.command(epilog=example("sudo orc cluster admin"))
@manager_data_option
@context_name_option
@click.option(
    "--name",
    "admin_name",
    metavar="NAME",
    help="Name in the certificate, for the audit trail and 'orc cluster revoke admin'  "
    "[default: the context's name; admin for the context default]",
)
def admin(data_dir: Path, name: str, admin_name: str | None) -> None:
    """Create an admin's context on a manager's host, replacing one of this name: for another
    person, or after the certificate of the old one has expired or was revoked."""
    from orchestrator.identity.authority import CannotSign
    from orchestrator.identity.bootstrap import new_admin
    from orchestrator.identity.host_identity import NoIdentity, read_manager

    try:
        identity = read_manager(data_dir)
        authority = _authority(data_dir)
    except NoIdentity as error:
        raise CliError(str(error)) from None
    except PermissionError as error:
        raise CliError(f"cannot read {error.filename}: run this as root (sudo)") from None
    holder = admin_name or ("admin" if name == "default" else name.lower())
    if not _ADMIN_NAME.fullmatch(holder):
        raise CliError(
            f"'{holder}' cannot be an admin's name; give --name with up to 63 lower-case letters, "
            "digits, and single . _ - between them"
        )
    try:
        made = new_admin(authority, identity.cluster_id, dt.datetime.now(dt.UTC), name=holder)
    except CannotSign as error:
        raise CliError(str(error)) from None
    endpoint = f"{identity.address}:{identity.port}"
    save_context(Context(name, (endpoint,), authority.certificate, made.certificate, made.key))
    click.echo(f"Context {name!r} is of admin {holder!r} of cluster {identity.cluster_id}.")
