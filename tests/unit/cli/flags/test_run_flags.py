# SPDX-License-Identifier: Apache-2.0
"""Docker's flags of `run` and its like: those that Orc has, and the words for those it has not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from orchestrator.cli.app.docker_hints import FLAGS
from orchestrator.cli.container.container_spec import container_request
from orchestrator.cli.container.run_commands import run as run_command
from orchestrator.cli.flags.container_flags import with_repeatable
from orchestrator.cli.flags.spec_flags import split_publish, unassigned_ports
from orchestrator.cli.main import orc
from orchestrator.model.convert import from_proto
from orchestrator.model.specs import PortSpec, Protocol

Refused = Callable[..., str]


def test_ports_with_and_without_a_number_of_the_node() -> None:
    texts = ["8080:80", "80", ":81/udp", "published=1,target=2"]
    assert split_publish(texts) == (["8080:80", "published=1,target=2"], ["80", "81/udp"])
    assert split_publish(["0.0.0.0:8080:80", "[::]:81:81", "0.0.0.0::82"]) == (
        ["8080:80", "81:81"],
        ["82"],
    )
    assert unassigned_ports(["80", "81-82/udp", "80/tcp"]) == (
        PortSpec(0, 80),
        PortSpec(0, 81, Protocol.UDP),
        PortSpec(0, 82, Protocol.UDP),
    )
    published = (PortSpec(8080, 80),)
    assert unassigned_ports(["80/tcp", "80/udp"], published) == (PortSpec(0, 80, Protocol.UDP),)


@pytest.mark.parametrize("text", ["127.0.0.1:8080:80", "127.0.0.1::80", "[::1]:80:80"])
def test_port_at_one_address_is_an_error(text: str) -> None:
    with pytest.raises(click.BadParameter, match="for one address"):
        split_publish([text])


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("run", "--link", "db", "hello:1"), "use --network"),
        (("create", "-a", "stdin", "hello:1"), "by -i"),
        (("pull", "--all-tags", "hello"), "each tag"),
        (("container", "run", "--link", "db", "hello:1"), "use --network"),
        (("volume", "create", "--scope", "single"), "cluster volumes (CSI) are not"),
        (("compose", "up"), "use 'orc stack deploy"),
        (("swarm", "init"), "'orc swarm init' is not a command; use 'orc cluster init"),
        (("swarm",), "'orc swarm' is not a command; use 'orc cluster'"),
        (("node", "drain", "node1"), "use 'orc node update --availability drain NODE'"),
        (("drain", "node1"), "use 'orc node update --availability drain NODE'"),
        (("get", "pods"), "use 'orc ps', or 'orc service ps SERVICE'"),
        (("apply", "x.yaml"), "use 'orc stack deploy -c FILE NAME'"),
        (("update", "--memory-reservation", "1g", "web"), "use --reserve-memory"),
        (("container", "update", "--blkio-weight", "9", "web"), "cannot be set per container"),
    ],
)
def test_unsupported_docker_flags_have_hints(
    refused: Refused, config: Path, words: tuple[str, ...], instead: str
) -> None:
    line = refused(*words, status=2)
    flag = next((word for word in words if word.startswith("-")), None)
    assert f"has no option {flag}: " in line if flag else "is not a command; " in line
    assert instead in line


@pytest.mark.parametrize("path", FLAGS)
def test_no_hint_for_a_supported_flag(path: str) -> None:
    command: click.Command | None = orc
    for word in path.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    has = {text for param in command.params for text in param.opts}
    assert not has & FLAGS[path].keys()


def test_id_files_are_per_host(manager: Any, refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "id"
    file.write_text("another's")
    line = refused("run", "--cidfile", str(file), "hello:1", status=125)
    assert "exists already" in line
    assert file.read_text() == "another's"
    missing = tmp_path / "nowhere" / "id"
    assert "cannot write" in refused("run", "--cidfile", str(missing), "hello:1", status=125)
    # Nothing came of it: the manager has no such service.
    fresh = tmp_path / "fresh"
    refused("run", "--cidfile", str(fresh), "hello:1", status=125)
    assert not fresh.exists()


def test_only_one_container_is_attached_to(manager: Any, refused: Refused) -> None:
    assert "only one container" in refused("start", "-a", "one", "two", status=2)


@pytest.mark.parametrize(
    ("flags", "constraints", "generic"),
    [
        ("--gpus 2", [], ["gpu=2"]),
        ("--gpus count=1,capabilities=utility", [], ["gpu=1"]),
        ("--gpus all", [], ["gpu=all"]),
        ("--gpus device=0,GPU-7", [], ["gpu=device=0,GPU-7"]),
        ('--gpus "device=0,1",capabilities=utility', [], ["gpu=device=0,1"]),
        ("--generic-resource fpga=all", [], ["fpga=all"]),
        ("--platform linux/arm64", ["node.platform.arch==aarch64"], []),
        (
            "--constraint node.role==worker --platform amd64 --generic-resource fpga=1 --gpus 1",
            ["node.role==worker", "node.platform.arch==x86_64"],
            ["fpga=1", "gpu=1"],
        ),
    ],
)
def test_docker_s_flags_of_placement(
    flags: str, constraints: list[str], generic: list[str]
) -> None:
    words = [*flags.split(), "hello:1"]
    request = container_request(run_command.make_context("run", words).params, start=False)
    assert list(request.constraints) == constraints
    found = request.spec.generic_resources
    assert [str(from_proto(each)) for each in found] == generic


@pytest.mark.parametrize("text", ["", "some", "0", "count=2,device=0", "device=", "options=a"])
def test_invalid_gpus(text: str) -> None:
    with pytest.raises(click.BadParameter):
        run_command.make_context("run", ["--gpus", text, "hello:1"])


def test_annotations_are_added_replaced_and_removed() -> None:
    words = ["--annotation", "a.b/c=1=2", "--annotation", "flag", "hello:1"]
    request = container_request(run_command.make_context("run", words).params, start=False)
    assert dict(request.spec.container.annotations) == {"a.b/c": "1=2", "flag": ""}
    known = from_proto(request.spec).container
    after = with_repeatable(
        known, {"annotation_add": ("x=y", "a.b/c=3"), "annotation_rm": ("flag",)}
    )
    assert after.annotations == {"a.b/c": "3", "x": "y"}
    with pytest.raises(click.BadParameter, match="not of the form KEY=VALUE"):
        with_repeatable(known, {"annotation_add": ("=x",)})
