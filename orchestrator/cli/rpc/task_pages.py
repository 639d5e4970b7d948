# SPDX-License-Identifier: Apache-2.0
"""Lists of tasks, which a manager sends in pages."""

from __future__ import annotations

from typing import Any

from orchestrator.cli.rpc.client import Client
from orchestrator.pb import control_pb2

PAGE = 2_000
"""Tasks of a page, about 4 MiB."""


def list_tasks(client: Client, *, service: str = "", node: str = "") -> Any:
    """All tasks, or those of a service or node, as one `ListTasksReply`. Each page is as of its own
    moment. A manager of an earlier version sends all at once."""
    request = control_pb2.ListTasksRequest(service=service, node=node, page_size=PAGE)
    found = control_pb2.ListTasksReply()
    while True:
        page = client.call("ListTasks", request)
        found.MergeFrom(page)
        if not page.next_page_token:
            found.ClearField("next_page_token")
            return found
        request.page_token = page.next_page_token
