"""`orc system …`: the nodes' disks, the hosts, and what may go."""

from __future__ import annotations

import click

from orchestrator.cli.groups import Lazy, OrcGroup, example


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("df", "orchestrator.cli.disk:df", "What is on the nodes' disks"),
                Lazy("prune", "orchestrator.cli.prune:system", "Remove what nobody needs"),
                Lazy("info", "orchestrator.cli.info:info", "The cluster in figures"),
                Lazy(
                    "top",
                    "orchestrator.cli.cluster_top:top",
                    "What the nodes' containers use, live",
                ),
                Lazy("events", "orchestrator.cli.events:events", "What happens in the cluster"),
            ),
        ),
        (
            "On a host itself",
            (Lazy("check", "orchestrator.agent.check:check", "Whether this host can be a node"),),
        ),
    ),
    epilog=example("orc system df", "orc system prune"),
)
def system() -> None:
    """The cluster as a whole: its figures, its disks, and what nobody needs any more."""
