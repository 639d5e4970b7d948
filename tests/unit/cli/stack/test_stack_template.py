# SPDX-License-Identifier: Apache-2.0
"""Charts: a stack that is a template, and its values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import orc

HELLO = Path(__file__).parents[4] / "charts" / "hello"

STACK = """\
services:
  web:
    image: web:{{ tag }}
    environment: {NAME: {{ name | tojson }}}
    deploy: {replicas: {{ web.replicas }}}
{% if metrics.enabled %}
  metrics:
    image: metrics:1
{% endif %}
"""
VALUES = """\
tag: 1
name: 'it is "so": #1'
web: {replicas: 2, port: 80}
metrics: {enabled: false}
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    (tmp_path / "stack.yml").write_text(STACK)
    (tmp_path / "values.yml").write_text(VALUES)
    return tmp_path


def config(*arguments: str | Path) -> Result:
    return CliRunner().invoke(orc, ["stack", "config", "--format", "json", *map(str, arguments)])


def services(*arguments: str | Path) -> dict[str, Any]:
    result = config(*arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)["services"]
    return found


def refused(*arguments: str | Path) -> str:
    result = config(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_default_values_of_a_chart(chart: Path) -> None:
    found = services(chart)
    assert set(found) == {"web"}
    assert found["web"]["image"] == "web:1"
    assert found["web"]["deploy"]["replicas"] == 2
    assert found["web"]["environment"] == {"NAME": 'it is "so": #1'}


def test_precedence_of_values(chart: Path) -> None:
    (chart / "mine.yml").write_text("web: {replicas: 5}\nmetrics: {enabled: true}\ntag: 2\n")
    found = services("-f", chart / "mine.yml", "--set", "tag=3", "--set", "web.replicas=7", chart)
    assert set(found) == {"web", "metrics"}
    assert found["web"]["image"] == "web:3"
    assert found["web"]["deploy"]["replicas"] == 7


def test_variables_still_work(chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (chart / "stack.yml").write_text('services: {web: {image: "web:${TAG}-{{ tag }}"}}')
    monkeypatch.setenv("TAG", "x")
    assert services(chart)["web"]["image"] == "web:x-1"


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        ("a:\n  b: {{ tga }}", "stack.yml:2: 'tga' is undefined; did you mean 'tag'?"),
        ("a: {{ web.size }}", "stack.yml:1: 'dict object' has no attribute 'size'"),
        ("a:\n  b: {{ tag", "stack.yml:2: unexpected end of template"),
        ("{% if %}", "stack.yml:1: Expected an expression"),
        ("a: {{ name.__class__ }}", "stack.yml:1: access to attribute '__class__'"),
        ("a: {{ web.replicas / 0 }}", "stack.yml:1: division by zero"),
        ("services: {web: {imge: x}}", "services.web.imge: unknown key of a service"),
        ("{% include '/etc/passwd' %}", "stack.yml:1: "),
    ],
)
def test_mistakes_in_the_template(chart: Path, stack: str, said: str) -> None:
    (chart / "stack.yml").write_text(stack)
    assert said in refused(chart)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("tag: [1", "values.yml:"),
        ("- 1\n- 2", "values.yml: it is not a map of names"),
        (b"\xff", "cannot read values file"),
    ],
)
def test_mistakes_in_values(chart: Path, values: str | bytes, said: str) -> None:
    (chart / "values.yml").write_bytes(values.encode() if isinstance(values, str) else values)
    assert said in refused(chart)


@pytest.mark.parametrize("setting", ["tag", "=3", "a..b=3", ".a=3"])
def test_mistakes_in_set_options(chart: Path, setting: str) -> None:
    assert "write NAME=VALUE, such as web.replicas=3" in refused("--set", setting, chart)


def test_a_values_file_that_is_not_there(chart: Path) -> None:
    assert "no such file or directory" in refused("-f", chart / "none.yml", chart)


def test_values_files_are_for_templates(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {web: {image: x}}")
    result = config("-f", tmp_path / "mine.yml", tmp_path)
    assert result.exit_code == 2
    assert "-f is for a folder with a template" in result.output


def test_hello_chart() -> None:
    found = services("--set", "replicas=3", "--set", "update.order=stop-first", HELLO)
    assert found["web"]["deploy"]["replicas"] == 3
    assert found["web"]["deploy"]["update_config"]["order"] == "stop-first"
