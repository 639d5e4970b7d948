# SPDX-License-Identifier: Apache-2.0
"""`orc network doctor`: diagnoses connections between nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    print_json,
    print_table,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.pb import doctor_pb2

DIAGNOSIS_TIMEOUT = 120.0
"""Timeout of a diagnosis in seconds, with many nodes."""


@click.command(epilog=example("orc network doctor", "orc network doctor back --format json"))
@click.argument("network", default="", shell_complete=completes("networks"))
@format_option()
@pass_client
def doctor(client: Client, network: str, form: str) -> None:
    """Test every pair of nodes, and report problems with their remedies.

    Each node sends packets of several sizes to each other node, outside and inside of a network
    (`default`, unless another is named), and checks its own kernel's state of the networks. Exits
    with 1 if there are problems.
    """
    found = diagnosis(client, network, _say if sys.stderr.isatty() else lambda line: None)
    wrong = sum(1 for finding in found.findings if finding.wrong)
    if form == "json":
        print_json(document(found))
    else:
        _print(found)
    if wrong:
        raise CliError(f"{wrong} thing{' is' if wrong == 1 else 's are'} wrong")


def _say(line: str) -> None:
    click.echo(line, err=True)


def diagnosis(client: Client, network: str, progress: Callable[[str], None]) -> Any:
    """Run the diagnosis: DiagnoseReplys. Raises CliError."""
    request = doctor_pb2.DiagnoseRequest(network=network)
    try:
        for reply in client.stream("Doctor.Diagnose", request, timeout=DIAGNOSIS_TIMEOUT):
            if reply.WhichOneof("kind") == "diagnosis":
                return reply.diagnosis
            progress(reply.progress)
    except TimeoutError:
        pass
    raise CliError(
        f"the diagnosis did not end within {DIAGNOSIS_TIMEOUT:g} seconds; see 'orc node ls'"
    )


def document(found: Any) -> Row:
    """A diagnosis as `--format json` has it: seconds, bytes, bits a second; null: not measured."""
    return {
        "network": found.network,
        "ok": not any(finding.wrong for finding in found.findings),
        "pairs": found.pairs,
        "nodes": [
            {
                "id": node.id,
                "hostname": node.name,
                "state": node.state,
                "tested": node.tested,
                "mtu": node.mtu or None,
                "drift": [
                    {
                        "network": drift.network or None,
                        "deviations": list(drift.deviations),
                        "failure": drift.failure or None,
                    }
                    for drift in node.drifts
                ],
            }
            for node in found.nodes
        ],
        "paths": [
            {
                "source": path.source,
                "target": path.target,
                "underlay": _echoes(path.underlay),
                "overlay": _echoes(path.overlay),
                "path_mtu": path.path_mtu or None,
                "rate": path.rate or None,
            }
            for path in found.paths
        ],
        "findings": [
            {
                "wrong": finding.wrong,
                "nodes": list(finding.nodes),
                "text": finding.text,
                "remedy": finding.remedy or None,
            }
            for finding in found.findings
        ],
    }


def _echoes(message: Any) -> Row | None:
    if not message.sent:
        return None
    return {
        "sent": message.sent,
        "received": message.received,
        "loss": round(1 - message.received / message.sent, 4),
        "latency": message.latency if message.received else None,
    }


_COLUMNS = [
    column("FROM", "source"),
    column("TO", "target"),
    Column("UNDERLAY", lambda row: _reached(row["underlay"], row["overlay"])),
    Column("NETWORK", lambda row: _reached(row["overlay"])),
    Column("LOSS", lambda row: _loss(_telling(row))),
    Column("LATENCY", lambda row: _latency(_telling(row))),
    Column("PATH MTU", lambda row: str(row["path_mtu"] or "-")),
    Column("RATE", lambda row: _rate(row["rate"])),
]


def _print(found: Any) -> None:
    rows = document(found)
    if rows["paths"]:
        print_table(rows["paths"], _COLUMNS)
        tested = len({frozenset((row["source"], row["target"])) for row in rows["paths"]})
        if tested < found.pairs:
            click.echo(f"{tested} of {found.pairs} pairs of nodes were tested.")
        click.echo()
    for finding in found.findings:
        click.echo(f"{'wrong' if finding.wrong else 'note'}: {finding.text}")
        if finding.remedy:
            click.echo(f"       {finding.remedy}")
    if not rows["paths"]:
        click.echo(f"Network {found.network} spans fewer than two nodes, so no packets were sent.")
    elif rows["ok"]:
        click.echo(f"No problems between {len(rows['nodes'])} nodes.")


def _reached(echoes: Row | None, other: Row | None = None) -> str:
    """`silent`: no answers in this direction, but in the other."""
    if echoes is None:
        return "-"
    if echoes["received"]:
        return "ok"
    return "silent" if other is not None and other["received"] else "NO"


def _telling(row: Row) -> list[Row]:
    """The series with any answers; else all."""
    asked = [each for each in (row["underlay"], row["overlay"]) if each is not None]
    return [each for each in asked if each["received"]] or asked


def _loss(series: list[Row]) -> str:
    return f"{max(each['loss'] for each in series) * 100:.0f}%" if series else "-"


def _latency(series: list[Row]) -> str:
    known = [each["latency"] for each in series if each["latency"] is not None]
    return f"{known[0] * 1000:.2f} ms" if known else "-"


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate / 1e9:.2f} Gbit/s" if rate >= 1e9 else f"{rate / 1e6:.1f} Mbit/s"
