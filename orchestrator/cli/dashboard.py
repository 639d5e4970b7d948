"""`orc dashboard`: the way into the web page."""

from __future__ import annotations

import os
from urllib.parse import quote

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import example
from orchestrator.pb import dashboard_pb2


@click.command(epilog=example("orc dashboard", "orc dashboard --read-only --no-open"))
@click.option("--read-only", is_flag=True, help="Open a session that can change nothing.")
@click.option("--no-open", is_flag=True, help="Only print the address; open no browser.")
@click.option("--quiet", "-q", is_flag=True, help="Print the address only.")
@pass_client
def dashboard(client: Client, read_only: bool, no_open: bool, quiet: bool) -> None:
    """Print the address of the cluster's web page, and open it.

    The address opens one session, for the first browser that uses it within five minutes. The
    session ends after twelve hours, or after half an hour with the page closed. 'orc cluster
    sessions' lists it and 'orc cluster revoke session' ends it. It ends with your certificate, too.
    """
    reply = client.call(
        "Dashboard.OpenDashboard", dashboard_pb2.OpenDashboardRequest(read_only=read_only)
    )
    url = f"https://{reply.address}/#ticket={quote(reply.ticket, safe='')}"
    click.echo(url)
    if quiet:
        return
    click.echo(
        f"Open it within {reply.valid_for / 60:g} minutes. Browsers do not know the cluster's CA; "
        f"the certificate's SHA-256 is\n{reply.fingerprint}",
        err=True,
    )
    if not no_open and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        click.launch(url)
