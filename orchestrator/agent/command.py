# SPDX-License-Identifier: Apache-2.0
"""`orc agent`: the daemon's command line.

Most imports wait until the process has entered its private mount namespace, which only a process
with one thread can do: gRPC starts threads when it is imported.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from orchestrator.daemon.daemon_options import config_option, proxy_options, set_proxies
from orchestrator.model.formats import log_options as logdrivers
from orchestrator.model.formats.generic_resources import parse_supply, supply_names
from orchestrator.model.specs import LogConfig, Resources
from orchestrator.model.units import parse_duration, parse_memory
from orchestrator.tracing.configuration import endpoint_option


def _labels(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE")
        labels[key] = value
    return labels


def _generic(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        try:
            kind, value = parse_supply(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        if kind in found:
            raise click.BadParameter(f"generic resource {kind!r} is given twice")
        for name in supply_names(value):
            if not name.startswith("/dev/"):
                continue
            if not Path(name).is_char_device() and not Path(name).is_block_device():
                raise click.BadParameter(
                    f"generic resource {text!r}: {name} is not a device on this host"
                )
        found[kind] = value
    return found


def _memory(context: click.Context, parameter: click.Parameter, text: str) -> int:
    try:
        return parse_memory(text, "--memory") if text else 0
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _duration(context: click.Context, parameter: click.Parameter, text: str) -> float:
    try:
        return parse_duration(text, f"--{parameter.name}".replace("_", "-"))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _words(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a command: {error}") from None


@click.command("agent")
@config_option
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("/var/lib/orc/agent"),
    show_default=True,
    help="Identity, state, images and logs; survives a reboot.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("/run/orc"),
    show_default=True,
    help="Sockets, bundles and mounts of running containers; emptied by a reboot.",
)
@click.option(
    "--cgroup-parent",
    default="/orc",
    metavar="PATH",
    show_default=True,
    help="Parent cgroup of containers.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_labels,
    help="Label of this node, engine.labels.KEY in constraints; repeatable.",
)
@click.option(
    "--runtime",
    default="crun",
    show_default=True,
    metavar="RUNTIME",
    help="OCI runtime: crun, runc or a compatible program.",
)
@click.option(
    "--shares",
    type=click.IntRange(min=1),
    help="CPU shares to offer, 1024 a core.  [default: all cores]",
)
@click.option(
    "--memory",
    default="",
    metavar="SIZE",
    callback=_memory,
    help="Memory to offer, such as 2g.  [default: all]",
)
@click.option(
    "--generic-resource",
    "generic",
    multiple=True,
    metavar="KIND=NUMBER|KIND=NAME[,NAME...]",
    callback=_generic,
    help="Generic resource to offer, such as gpu=/dev/dri/card0,/dev/dri/card1; repeatable.",
)
@click.option(
    "--cdi-spec-dir",
    "cdi_folders",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    default=("/etc/cdi", "/var/run/cdi"),
    show_default="/etc/cdi, /var/run/cdi",
    help="Folder of CDI device specifications; repeatable, later ones take precedence.",
)
@click.option(
    "--blob-port",
    type=click.IntRange(0, 65535),
    default=7423,
    show_default=True,
    help="Port at which other nodes get images from this one; 0: any.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=7424,
    show_default=True,
    help="Port at which Prometheus reads this node's metrics; 0: any.",
)
@click.option(
    "--max-layer-size",
    "max_layer",
    default="64g",
    show_default=True,
    metavar="SIZE",
    callback=_memory,
    help="Maximum unpacked size of an image layer.",
)
@click.option(
    "--build-memory",
    default="0",
    metavar="SIZE",
    callback=_memory,
    help="Default memory limit of builds; 0: no limit.",
)
@click.option(
    "--image-gc-high",
    type=click.IntRange(1, 100),
    default=85,
    show_default=True,
    metavar="PERCENT",
    help="Disk usage above which unused images are removed.",
)
@click.option(
    "--image-gc-low",
    type=click.IntRange(0, 99),
    default=80,
    show_default=True,
    metavar="PERCENT",
    help="Disk usage at which the removal of unused images stops.",
)
@click.option(
    "--key-age",
    default="720h",
    show_default=True,
    metavar="DURATION",
    callback=_duration,
    help="Rotation period of the key for encrypted networks; 0: only by 'orc node update'.",
)
@click.option(
    "--log-driver",
    default="local",
    show_default=True,
    metavar="[local|json-file|journald|syslog|none]",
    help="Default logging driver of containers.",
)
@click.option(
    "--log-opt",
    "log_options",
    multiple=True,
    metavar="LOGOPT=VALUE",
    callback=_labels,
    help="Option of the default logging driver, such as max-size=10m; repeatable.",
)
@click.option(
    "--manager-command",
    default="",
    metavar="COMMAND",
    callback=_words,
    help="Program that 'orc node promote' runs here with 'join ADDRESS OWN' (token in "
    "ORC_JOIN_TOKEN), and demote with 'leave'.  [default: orc cluster join, and systemd]",
)
@proxy_options
@endpoint_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Minimum level of log lines.",
)
@click.pass_context
def agent(
    context: click.Context,
    data_dir: Path,
    run_dir: Path,
    cgroup_parent: str,
    labels: dict[str, str],
    runtime: str,
    shares: int | None,
    memory: int,
    generic: dict[str, str],
    cdi_folders: tuple[Path, ...],
    blob_port: int,
    metrics_port: int,
    max_layer: int,
    build_memory: int,
    image_gc_high: int,
    image_gc_low: int,
    key_age: float,
    log_driver: str,
    log_options: dict[str, str],
    manager_command: tuple[str, ...],
    otlp_endpoint: str,
    log_level: str,
) -> None:
    """Run this host's node agent in the foreground.

    The host must have joined a cluster. SIGTERM stops the agent and leaves its containers running;
    the next agent adopts them.

    Example: orc agent --label zone=a
    """
    from orchestrator.agent.images.image_gc import DiskThresholds
    from orchestrator.agent.runtime.interface import RuntimeFailure
    from orchestrator.agent.runtime.isolation.mountns import enter_private_mounts
    from orchestrator.agent.runtime.spec.cdi import find_edits
    from orchestrator.agent.settings import Settings
    from orchestrator.daemon import logfmt
    from orchestrator.identity.host_identity import NoIdentity, check_certificates, read_node
    from orchestrator.identity.own_address import AddressLost, follow_host

    if image_gc_low >= image_gc_high:
        raise click.UsageError(
            f"--image-gc-low ({image_gc_low}) must be below --image-gc-high ({image_gc_high})"
        )
    try:
        logdrivers.check(logging := LogConfig(log_driver, log_options))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for value in generic.values():
        try:
            find_edits(supply_names(value), cdi_folders)
        except RuntimeFailure as error:
            raise click.UsageError(f"--generic-resource: {error}") from error
    if os.geteuid() != 0:
        raise click.ClickException("orc agent must run as root; try sudo")
    logfmt.setup(log_level)
    try:
        identity = read_node(data_dir)
        check_certificates(data_dir, "node")
        identity = follow_host(data_dir, identity)
    except NoIdentity as error:
        raise click.ClickException(str(error)) from error
    except AddressLost as lost:
        raise click.ClickException(
            f"{lost}; give it that address, or leave the cluster and join again with --address"
        ) from lost
    set_proxies(context)
    settings = Settings(
        identity=identity,
        data_dir=data_dir.absolute(),
        run_dir=run_dir.absolute(),
        cgroup_parent=cgroup_parent,
        labels=labels,
        runtime=runtime,
        offered=Resources(shares=shares or 0, memory=memory),
        generic=generic,
        cdi_folders=tuple(folder.absolute() for folder in cdi_folders),
        max_layer=max_layer,
        build_memory=build_memory,
        marks=DiskThresholds(image_gc_high, image_gc_low),
        key_age=key_age,
        # The built-in default is left out: containers then need no record of it.
        logging=LogConfig() if logging == LogConfig(logdrivers.LOCAL) else logging,
        blob_port=blob_port,
        metrics_port=metrics_port,
        manager_command=manager_command,
        otlp_endpoint=otlp_endpoint,
    )
    try:
        enter_private_mounts(_find_any_monitor(run_dir.absolute() / "containers"))
    except RuntimeFailure as error:
        raise click.ClickException(str(error)) from error

    from orchestrator.agent.daemon import main
    from orchestrator.agent.settings import AgentFailure

    try:
        main(settings)
    except AgentFailure as error:
        raise click.ClickException(str(error)) from error


def _find_any_monitor(bundles: Path) -> int | None:
    """The pid of the conmon of any running container; None when no container runs."""
    from orchestrator.agent.runtime.engine.conmon import find_monitor

    for bundle in sorted(bundles.glob("*")):
        if (monitor := find_monitor(bundle, bundle.name)) is not None:
            return monitor.pid
    return None
