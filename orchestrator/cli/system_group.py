"""`orc system …`: the nodes' disks, the hosts, and what may go."""

from __future__ import annotations

import click

from orchestrator.cli.groups import Lazy, OrcGroup, example

_CLI = "orchestrator.cli"


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("df", f"{_CLI}.disk:df", "What is on the nodes' disks"),
                Lazy("prune", f"{_CLI}.prune:system", "Remove what nobody needs"),
                Lazy("info", f"{_CLI}.info:info", "The cluster in figures"),
                Lazy("top", f"{_CLI}.cluster_top:top", "What the nodes' containers use, live"),
                Lazy("events", f"{_CLI}.events:events", "What happens in the cluster"),
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
