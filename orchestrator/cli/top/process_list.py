# SPDX-License-Identifier: Apache-2.0
"""The processes of a container, as its node lists them."""

from __future__ import annotations

from orchestrator.cli.output.listings import (
    Row,
)
from orchestrator.cli.rpc.client import Client


def processes(
    client: Client, container: str, ps_options: tuple[str, ...] = ()
) -> tuple[list[str], list[Row]]:
    """The columns of a container's processes, and a row for each."""
    from orchestrator.pb import interact_pb2

    reply = client.call(
        "Interact.Top", interact_pb2.TopRequest(container=container, ps_options=ps_options)
    )
    titles = list(reply.titles)
    return titles, [dict(zip(titles, each.fields, strict=False)) for each in reply.processes]
