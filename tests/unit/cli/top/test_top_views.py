# SPDX-License-Identifier: Apache-2.0
"""The tables of `orc top`: what is in them, in which order, and what a filter leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cli.top.top_views import (
    NODES,
    SERVICES,
    TASKS,
    VIEWS,
    Choice,
    Figures,
    bar,
    headline,
    node_rows,
    service_rows,
    task_rows,
    visible_rows,
)


def node(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"id-{name}",
        "hostname": name,
        "state": "ready",
        "availability": "active",
        "address": "10.0.0.1",
        "role": "worker",
        "tasks": 0,
        "shares_total": 2048,
        "shares_reserved": 0,
        "memory_total": 1 << 30,
        "memory_reserved": 0,
        **more,
    }


def task(name: str, where: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"id-{name}",
        "name": name,
        "node": where,
        "service": name.partition(".")[0],
        "state": "running",
        "image": "web:1",
        "_status": "Up 1 minute",
        **more,
    }


def used(name: str, where: str, cpu: float, memory: int) -> dict[str, Any]:
    return {
        "id": f"id-{name}",
        "node": where,
        "cpu_percent": cpu,
        "memory": memory,
        "net_received": 1,
        "net_sent": 2,
    }


USED = [used("web.1", "b", 150.0, 300 << 20), used("web.2", "a", 10.0, 100 << 20)]


def picture() -> Figures:
    tasks = task_rows([task("web.1", "b"), task("web.2", "a"), task("db.1", "a")], USED)
    service = {"id": "s", "name": "web", "mode": "replicated", "replicas": 3, "running": 2}
    return Figures(
        nodes=node_rows([node("b"), node("a", state="down"), node("c")], USED),
        services=service_rows([{**service, "image": "web:1"}], tasks),
        tasks=tasks,
    )


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


def column(view: Any, heading: str) -> int:
    return [field.heading for field in view.fields].index(heading)


def test_usage_of_nodes_and_services_sums_tasks() -> None:
    figures = picture()
    by_name = {row["name"]: row for row in figures.nodes}
    assert (by_name["b"]["cpu_percent"], by_name["b"]["memory"]) == (150.0, 300 << 20)
    assert by_name["c"]["memory"] == 0
    (web,) = figures.services
    assert (web["cpu_percent"], web["memory"]) == (160.0, 400 << 20)
    assert headline(figures) == (
        "2/3 nodes ready, 1 service, 3/3 tasks running, 1.6 of 6 cores, 400MiB of 3GiB"
    )


@pytest.mark.parametrize(
    ("choice", "order"),
    [
        (Choice(), ["a", "b", "c"]),
        (Choice(reverse=True), ["c", "b", "a"]),
        (Choice(sort=column(NODES, "CPU")), ["b", "a", "c"]),
        (Choice(sort=column(NODES, "CPU"), reverse=True), ["c", "a", "b"]),
        (Choice(text="down"), ["a"]),
        (Choice(text="READY b"), ["b"]),
        (Choice(text="nothing"), []),
    ],
)
def test_order_and_filter(choice: Choice, order: list[str]) -> None:
    assert names(visible_rows(NODES, picture(), choice)) == order


def test_tasks_of_a_node_or_of_a_service() -> None:
    assert names(visible_rows(TASKS, picture(), Choice(scope={"node": "a"}))) == ["db.1", "web.2"]
    of_web = Choice(scope={"service": "web"})
    assert names(visible_rows(TASKS, picture(), of_web)) == ["web.1", "web.2"]
    assert names(visible_rows(TASKS, picture(), replace(of_web, text=".2"))) == ["web.2"]


def test_every_field_has_a_text_for_every_row_and_sorts() -> None:
    figures = picture()
    for view in VIEWS:
        for number, field in enumerate(view.fields):
            rows = visible_rows(view, figures, Choice(sort=number))
            assert all(isinstance(field.text(row), str) for row in rows)
    running = SERVICES.fields[column(SERVICES, "RUNNING")]
    assert running.text(figures.services[0]) == "2/3"
    assert running.level is not None
    assert running.level(figures.services[0]) == 1.0


@pytest.mark.parametrize(
    ("level", "text"), [(0, "    "), (0.5, "██  "), (1, "████"), (7, "████"), (1 / 32, "▏   ")]
)
def test_bars_show_the_level(level: float, text: str) -> None:
    assert bar(level, 4) == text
