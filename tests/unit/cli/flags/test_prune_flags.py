# SPDX-License-Identifier: Apache-2.0
"""`--filter` of the commands that remove what nobody needs, and of `events`."""

from __future__ import annotations

import time

import click
import pytest

from orchestrator.cli.flags.prune_flags import PruneFilters, prune_options
from orchestrator.cli.system.event_commands import matches
from orchestrator.pb import containers_pb2


def read(*texts: str) -> PruneFilters:
    @click.command()
    @prune_options
    def command(filters: PruneFilters, force: bool) -> PruneFilters:
        return filters

    words = [word for text in texts for word in ("--filter", text)]
    found: PruneFilters = command.main(words, standalone_mode=False)
    return found


@pytest.mark.parametrize(
    ("texts", "labels", "age", "held"),
    [
        ((), {}, 0.0, True),
        (("label=tier",), {"tier": "db"}, 0.0, True),
        (("label=tier=db",), {"tier": "web"}, 0.0, False),
        (("label!=keep",), {"keep": ""}, 0.0, False),
        (("label!=keep=yes",), {"keep": "no"}, 0.0, True),
        (("until=1h",), {}, 7200.0, True),
        (("until=1h",), {}, 60.0, False),
        (("until=1h", "label=tier"), {}, 7200.0, False),
    ],
)
def test_prune_filters(
    texts: tuple[str, ...], labels: dict[str, str], age: float, held: bool
) -> None:
    assert read(*texts).hold(labels, time.time() - age) is held


@pytest.mark.parametrize("text", ["size=3", "label", "until=", "until=soon"])
def test_invalid_filters(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"not one of until=|not understood"):
        read(text)


DEATH = containers_pb2.Event(
    type="container", action="die", id="c123", name="web.1", node="node1",
    attributes={"image": "hello:1", "service": "web", "tier": "db", "exitCode": "3"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "held"),
    [
        ("type", "container", True),
        ("event", "die", True),
        ("event", "di", False),
        ("container", "web.1", True),
        ("container", "c12", True),
        ("service", "web", True),
        ("image", "hello:1", True),
        ("node", "node1", True),
        ("node", "node2", False),
        ("label", "tier", True),
        ("label", "tier=web", False),
        ("scope", "local", True),
        ("scope", "swarm", False),
        ("volume", "c123", False),
    ],
)
def test_filters_of_events(key: str, value: str, held: bool) -> None:
    assert matches(DEATH, key, value) is held
