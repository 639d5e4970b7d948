# SPDX-License-Identifier: Apache-2.0
"""`orc stack config` and what the commands of compose files take; no cluster is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]
Refused = Callable[..., str]

TEXT = """
services:
  web: {image: "web:${TAG}", environment: {WHO: "${WHO:-nobody}", PRICE: "5$$"}}
  debug: {image: debug, profiles: [debug]}
"""


@pytest.fixture
def chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a compose file and its values; no variable of it is in the environment."""
    for name in ("TAG", "WHO", "COMPOSE_PROFILES"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "chart"
    folder.mkdir()
    (folder / "compose.yaml").write_text(TEXT)
    (folder / "values.env").write_text("TAG=values\nWHO=values\n")
    return folder


def image(run: Run, *words: str) -> str:
    """The image of `web` as `orc stack config` prints it."""
    done = run("stack", "config", "--format", "json", *words)
    assert done.exit_code == 0, done.output
    found: str = json.loads(done.stdout)["services"]["web"]["image"]
    return found


def test_precedence_of_variables(run: Run, chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert image(run, str(chart)) == "web:values"
    (chart / ".env").write_text("TAG=dotenv")
    assert image(run, str(chart)) == "web:dotenv"
    (chart / "mine.env").write_text("TAG=mine")
    flags = ("--env-file", str(chart / "mine.env"))
    assert image(run, *flags, str(chart)) == "web:mine"
    monkeypatch.setenv("TAG", "environment")
    assert image(run, *flags, str(chart)) == "web:environment"
    assert image(run, *flags, "--set", "TAG=set", str(chart)) == "web:set"


def test_stack_name(run: Run, chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(*words: str) -> tuple[str, str]:
        done = run("stack", "config", "--format", "json", *words, str(chart))
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        return found["name"], found["services"]["web"]["environment"]["WHO"]

    monkeypatch.delenv("COMPOSE_PROJECT_NAME", raising=False)
    (chart / "values.env").write_text("WHO=values\n")
    text = TEXT.replace("${WHO:-nobody}", "${COMPOSE_PROJECT_NAME}").replace("${TAG}", "1")
    (chart / "compose.yaml").write_text(text)
    assert name() == ("chart", "chart")
    (chart / "compose.yaml").write_text("name: My.${WHO}\n" + text)
    assert name() == ("myvalues", "myvalues")
    (chart / "compose.override.yaml").write_text("name: later\n")
    assert name() == ("later", "later")
    (chart / ".env").write_text("COMPOSE_PROJECT_NAME=dotenv")
    assert name() == ("dotenv", "dotenv")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "environment")
    assert name() == ("environment", "environment")
    assert name("-p", "Flag") == ("Flag", "Flag")


def test_printed_config_is_valid_input(run: Run, chart: Path) -> None:
    first = run("stack", "config", str(chart))
    assert "PRICE: 5$$" in first.stdout
    again = run("stack", "config", "-c", "-", input=first.stdout)
    assert again.stdout == first.stdout


def test_variables_can_stay_uninterpolated(run: Run, chart: Path) -> None:
    (chart / "compose.yaml").write_text("""
services:
  web:
    image: web:${TAG}
    ports: ["${PORT}:80"]
    build: ${WHERE}
    env_file: ["${FILE}", b.env]
    read_only: ${READ_ONLY:-true}
    deploy: {replicas: "${N:?}", mode: $MODE, resources: {limits: {memory: $M}}}
""")
    raw = run("stack", "config", "--no-interpolate", str(chart)).stdout
    for line in ("image: web:${TAG}", "- ${PORT}:80", "build: ${WHERE}", "replicas: ${N:?}"):
        assert line in raw


def test_profiles_are_named_by_flag_or_environment(
    run: Run, chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def services(*words: str) -> list[str]:
        done = run("stack", "config", "--format", "json", *words, str(chart))
        return sorted(json.loads(done.stdout)["services"])

    assert services() == ["web"]
    assert services("--profile", "debug") == ["debug", "web"]
    monkeypatch.setenv("COMPOSE_PROFILES", "other,debug")
    assert services() == ["debug", "web"]


def test_an_override_in_the_folder_is_merged(run: Run, chart: Path) -> None:
    (chart / "compose.override.yaml").write_text("services: {web: {image: over:1}}")
    assert image(run, str(chart)) == "over:1"
    assert image(run, "-c", str(chart / "compose.yaml")) == "web:values"


def test_notes_go_to_stderr(run: Run, chart: Path) -> None:
    (chart / "compose.yaml").write_text(
        "services: {web: {image: 'a:1$NOT_SET', container_name: x1}}"
    )
    done = run("stack", "config", "--quiet", str(chart))
    assert done.stdout == ""
    container, variable = done.stderr.splitlines()
    assert "services.web.container_name: tasks are named SERVICE.SLOT" in container
    assert "variable NOT_SET is not set; using an empty string" in variable


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("config",), 2, "name a compose file with -c, or the folder that it is in"),
        (("config", "-c", "none.yaml"), 1, "none.yaml: cannot be read: no such file or directory"),
        (("config", "/none"), 1, "folder /none does not exist; name a file with -c"),
        (("deploy", "shop"), 2, "name a file or folder and the stack"),
        (("deploy", "-c", "a", "b", "c", "d"), 2, "name a file or folder and the stack"),
        (("deploy", "-c", "a.yaml", "s.p"), 2, "stack name 's.p' is not a DNS label"),
        (("deploy", "-c", "a.yaml", "-p", "a", "b"), 2, "the stack's name is given twice"),
        (("deploy",), 2, "name a file or folder and the stack"),
    ],
)
def test_missing_arguments(
    manager: object, refused: Refused, words: tuple[str, ...], status: int, line: str
) -> None:
    assert line in refused("stack", *words, status=status)


def test_a_folder_without_a_compose_file(refused: Refused, tmp_path: Path) -> None:
    assert "has no compose file; it is called compose.yaml" in refused(
        "stack", "config", str(tmp_path)
    )
