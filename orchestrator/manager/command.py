# SPDX-License-Identifier: Apache-2.0
"""`orc manager`: a manager in the foreground, as a systemd unit runs it."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.daemon.daemon_options import config_option, registry_proxy_options, set_proxies
from orchestrator.model.units import parse_memory
from orchestrator.tracing.configuration import endpoint_option
from orchestrator.tracing.spans import TracingError

_LEAST_QUOTA = 4 << 20
"""Bytes. etcd's database has some 100 KiB when it is empty."""


def _quota(text: str) -> int:
    try:
        quota = parse_memory(text, "--etcd-quota")
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if quota < _LEAST_QUOTA:
        raise click.BadParameter("the quota of etcd's database is at least 4m")
    return quota


@click.command()
@config_option
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default=Path("/var/lib/orc/manager"),
    show_default=True,
    help="Folder that 'orc cluster init' made.",
)
@click.option(
    "--etcd-endpoints",
    metavar="URL[,URL...]",
    default="",
    help="Use this etcd instead of a member of the manager's own.",
)
@click.option(
    "--etcd-cacert", type=click.Path(path_type=Path), metavar="FILE", help="CA of that etcd."
)
@click.option(
    "--etcd-cert",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Client certificate for it.",
)
@click.option(
    "--etcd-key", type=click.Path(path_type=Path), metavar="FILE", help="Key of that certificate."
)
@click.option(
    "--etcd-quota",
    metavar="SIZE",
    default="4g",
    show_default=True,
    callback=lambda context, option, text: _quota(text),
    help="Size of the database at which the manager's own etcd refuses writes.",
)
@click.option(
    "--node-timeout",
    type=click.FloatRange(min=1.0),
    help="Seconds of silence after which a node is down (5 at first).",
)
@click.option(
    "--discard-secrets",
    is_flag=True,
    help="Start without a lost cluster.key; secrets sealed with it stay unreadable.",
)
@registry_proxy_options
@click.option(
    "--audit-max-size",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="MIB",
    help="Size of one file of the audit trail.",
)
@click.option(
    "--audit-max-files",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="NUMBER",
    help="Files of the audit trail that are kept.",
)
@endpoint_option
@click.option(
    "--lease",
    type=click.FloatRange(min=1.0),
    default=3.0,
    show_default=True,
    help="Seconds that this manager leads without an answer of etcd's; more on a slow host. At "
    "least 10 while it is the only manager.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least serious lines that are written.",
)
@click.pass_context
def manager(
    context: click.Context,
    data_dir: Path,
    etcd_endpoints: str,
    etcd_cacert: Path | None,
    etcd_cert: Path | None,
    etcd_key: Path | None,
    etcd_quota: int,
    node_timeout: float | None,
    discard_secrets: bool,
    audit_max_size: int,
    audit_max_files: int,
    otlp_endpoint: str,
    lease: float,
    log_level: str,
) -> None:
    """Run a manager in the foreground.

    Example: orc manager --data-dir /var/lib/orc/manager
    """
    # Imported here, so that `orc manager --help` needs neither gRPC nor NumPy.
    from orchestrator.daemon import logfmt
    from orchestrator.daemon.process import raise_priority, run_until_signalled
    from orchestrator.identity.host_identity import NoIdentity
    from orchestrator.manager.daemon import CannotServe, ManagerSettings, serve
    from orchestrator.manager.store.etcd_tls import EtcdTls
    from orchestrator.manager.store.kv import StoreError

    logfmt.setup(log_level)
    set_proxies(context)
    # The control plane stays responsive when containers on the same host use all CPUs.
    raise_priority(-5)
    tls = None
    if etcd_cacert or etcd_cert or etcd_key:
        if not (etcd_cacert and etcd_cert and etcd_key):
            raise click.UsageError(
                "--etcd-cacert, --etcd-cert and --etcd-key go together; give all three"
            )
        tls = EtcdTls(etcd_cacert, etcd_cert, etcd_key)
    endpoints = tuple(part.strip() for part in etcd_endpoints.split(",") if part.strip())
    settings = ManagerSettings(
        data_dir,
        endpoints,
        tls,
        node_timeout,
        otlp_endpoint,
        lease,
        discard_secrets,
        audit_max_size << 20,
        audit_max_files,
        etcd_quota,
    )
    try:
        run_until_signalled(serve(settings))
    except* (CannotServe, TracingError, NoIdentity, StoreError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise click.ClickException(str(error)) from None
