# SPDX-License-Identifier: Apache-2.0
"""Flags of a daemon in a file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from orchestrator.agent.command import agent
from orchestrator.daemon.daemon_options import config_option
from orchestrator.manager.command import manager

PACKAGING = Path(__file__).parents[3] / "packaging"


@click.command()
@config_option
@click.option("--data-dir", default="/var")
@click.option("--port", type=click.IntRange(1, 100), default=7)
@click.option("--label", "labels", multiple=True)
def daemon(data_dir: str, port: int, labels: tuple[str, ...]) -> None:
    click.echo(f"{data_dir} {port} {' '.join(labels)}")


def run(tmp_path: Path, text: str, *arguments: str) -> Result:
    path = tmp_path / "daemon.toml"
    path.write_text(text)
    return CliRunner().invoke(daemon, ["--config", str(path), *arguments])


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("", [], "/var 7 "),
        ('data-dir = "/srv"\nport = 9', [], "/srv 9 "),
        ('data-dir = "/srv"\nport = 9', ["--port", "8"], "/srv 8 "),
        ('label = ["a=b", "c=d"]', [], "/var 7 a=b c=d"),
        ('[label]\na = "b"\nrank = 3', [], "/var 7 a=b rank=3"),
    ],
)
def test_typed_flags_raise_priority(
    tmp_path: Path, text: str, arguments: list[str], said: str
) -> None:
    assert run(tmp_path, text, *arguments).output == said + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 9", "there is no flag --prot; did you mean 'port'?"),
        ("port = 900", "900 is not in the range 1<=x<=100"),
        ('port = "http"', "'http' is not a valid integer range"),
        ("port = [1, 2]", "port takes one value"),
        ('label = "a=b"', "label takes a list"),
        ("[port]\na = 1", "port takes one value"),
        ("port = ", "is not TOML: "),
    ],
)
def test_invalid_configuration_files(tmp_path: Path, text: str, said: str) -> None:
    result = run(tmp_path, text)
    assert result.exit_code == 2
    assert said in result.output


def test_a_file_that_is_not_there() -> None:
    result = CliRunner().invoke(daemon, ["--config", "/nowhere/daemon.toml"])
    assert result.exit_code == 2
    assert "cannot read /nowhere/daemon.toml: no such file or directory" in result.output


@pytest.mark.parametrize(
    ("name", "command"), [("agent", agent), ("manager", manager)], ids=["agent", "manager"]
)
def test_packaged_file_lists_every_flag(name: str, command: click.Command) -> None:
    text = (PACKAGING / f"{name}.toml").read_text()
    of_one_start = {"config", "discard_secrets"}
    flags = {
        option.opts[0].lstrip("-")
        for option in command.params
        if isinstance(option, click.Option) and option.name not in of_one_start
    }
    named = {line.lstrip("#[ ").split(" =")[0].split("]")[0] for line in text.splitlines()}
    assert flags <= named
