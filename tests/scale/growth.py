# SPDX-License-Identifier: Apache-2.0
"""How a manager's cost grows with the cluster: runs from 100 tasks on, as a table and as curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.bench.tables import MIB, Table, median, seconds
from tests.scale.scenario import CHANGED_TASKS, Outcome, Scenario, run

LEAST_TASKS = 100
TASKS_PER_NODE = 100
LEAST_NODES, MOST_NODES = 10, 5000

Size = tuple[Scenario, Outcome]


async def grow(scenario: Scenario) -> list[Size]:
    """Run the scenario with 100 tasks, with ten times as many, and so on up to its own number; each
    with a hundredth as many nodes, from 10 to 5,000."""
    found, tasks = [], LEAST_TASKS
    while tasks <= scenario.tasks:
        nodes = min(max(tasks // TASKS_PER_NODE, LEAST_NODES), MOST_NODES)
        one = replace(scenario, tasks=tasks, nodes=nodes)
        found.append((one, await run(one)))
        tasks *= 10
    return found


def table_of(sizes: Sequence[Size]) -> Table:
    """A row for each size."""
    columns = (
        "tasks",
        "nodes",
        "all running after",
        "manager's CPU time a task",
        "manager's memory",
        "etcd's memory",
        f"a new service of {CHANGED_TASKS} tasks assigned, 50% / slowest",
        "API calls meanwhile, 50% / 99%",
        "idle CPU of the manager",
    )
    rows = []
    for scenario, outcome in sizes:
        changes = "none tried"
        if outcome.changes:
            changes = f"{seconds(median(outcome.changes))} / {seconds(max(outcome.changes))}"
        rows.append(
            (
                f"{scenario.tasks:,}",
                f"{scenario.nodes:,}",
                "not in time" if outcome.converged is None else f"{outcome.converged:.1f} s",
                seconds(outcome.cpu / scenario.tasks),
                f"{outcome.memory / MIB:.0f} MiB",
                f"{outcome.store_memory / MIB:.0f} MiB",
                changes,
                f"{seconds(_share(outcome.answers, 0.5))} / "
                f"{seconds(_share(outcome.answers, 0.99))}",
                f"{outcome.idle_cpu:.2f} cores",
            )
        )
    return Table("Growth", columns, tuple(rows))


def draw(sizes: Sequence[Size]) -> str:
    """The curves as SVG, both axes logarithmic. Needs matplotlib, of the packages for the docs."""
    import matplotlib as mpl
    from matplotlib import pyplot

    # The same figures make the same file.
    mpl.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 9})
    done = [(scenario.tasks, outcome) for scenario, outcome in sizes if outcome.converged]
    tasks = [each for each, _ in done]
    of = [outcome for _, outcome in done]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    _curves(axes[0][0], "all tasks running, s", tasks, {"": [each.converged for each in of]})
    _curves(
        axes[0][1],
        "memory, MiB",
        tasks,
        {
            "manager": [each.memory / MIB for each in of],
            "etcd": [each.store_memory / MIB for each in of],
        },
    )
    _curves(
        axes[1][0],
        f"a new service of {CHANGED_TASKS} tasks assigned, ms",
        tasks,
        {
            "median": [median(each.changes) * 1000 for each in of],
            "slowest": [max(each.changes) * 1000 for each in of],
        },
    )
    _curves(
        axes[1][1],
        "API calls while tasks start, ms",
        tasks,
        {
            "median": [_share(each.answers, 0.5) * 1000 for each in of],
            "99%": [_share(each.answers, 0.99) * 1000 for each in of],
        },
    )
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _curves(axis: Any, title: str, tasks: Sequence[int], curves: dict[str, list[Any]]) -> None:
    for name, values in curves.items():
        axis.loglog(tasks, values, marker="o", markersize=4, label=name)
    axis.set_title(title)
    axis.set_xlabel("tasks")
    axis.grid(visible=True, which="major", alpha=0.3)
    if len(curves) > 1:
        axis.legend(frameon=False)


def _share(values: Sequence[float], share: float) -> float:
    """The value below which that share of all is."""
    ordered = sorted(values) or [0.0]
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
