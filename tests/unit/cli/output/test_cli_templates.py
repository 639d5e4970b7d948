# SPDX-License-Identifier: Apache-2.0
"""`--format` with templates as Docker's users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from orchestrator.cli.output.listings import Column, column, template_lines
from orchestrator.model.convert import to_proto
from orchestrator.model.formats.gotemplate import BadTemplate, Template, snake_case
from orchestrator.model.nodes import Node, NodeDescription
from orchestrator.pb import control_pb2

ROW = {
    "id": "c123456789abcdef",
    "name": "web",
    "state": "running",
    "oom_killed": False,
    "exit_code": None,
    "labels": {"tier": "front", "owner": "me"},
    "addresses": {"default": "10.0.0.2"},
    "ports": [{"published": 8080, "target": 80}, {"published": 53, "target": 53}],
    "command": ["sleep", "9"],
    "_status": "Up 3 minutes",
}
COLUMNS = [
    Column("CONTAINER ID", lambda row: row["id"][:12]),
    column("STATUS", "_status"),
    Column("CPU %", lambda row: "0.10%"),
    Column("MEM USAGE / LIMIT", lambda row: "1MiB / 2MiB"),
    column("NAMES", "name"),
    Column("", lambda row: "marks"),
]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.ID}} {{.Names}}", "c123456789ab web"),
        ("{{.Status}}, {{.CPUPerc}}, {{.MemUsage}}", "Up 3 minutes, 0.10%, 1MiB / 2MiB"),
        ("{{.name}}: {{.OOMKilled}} {{.ExitCode}}.", "web: false ."),
        ('{{.Label "tier"}}|{{.Label "none"}}|{{index .labels "owner"}}', "front||me"),
        ("{{.labels}} {{.command}}", "map[owner:me tier:front] [sleep 9]"),
        ("{{json .addresses}}", '{"default":"10.0.0.2"}'),
        ("{{.addresses.default}}", "10.0.0.2"),
        ("{{range .ports}}{{.published}}>{{.target}};{{end}}", "8080>80;53>53;"),
        ("{{range $k, $v := .labels}}{{$k}}={{$v}} {{end}}", "tier=front owner=me "),
        ("{{range $i, $p := .ports}}{{if $i}},{{end}}{{$p.target}}{{end}}", "80,53"),
        ('{{if eq .state "running"}}yes{{else}}no{{end}}', "yes"),
        ('{{if .exit_code}}a{{else if .name}}b{{else}}c{{end}}', "b"),
        ("{{with .addresses}}{{.default}} of {{$.name}}{{end}}", "10.0.0.2 of web"),
        ('{{join .command " "}} {{.name | upper}} {{len .ports}}', "sleep 9 WEB 2"),
        ('{{(index .ports 1).target}} {{(index .ports 0).published}}', "53 8080"),
        ('{{slice .ID 0 4}} {{printf "%s=%v %3d|" .name .OOMKilled 7}}', "c123 web=false   7|"),
        ('{{printf "%q" .state}}', '"running"'),
        ("a  {{- .name -}}  b\\t{{println}}", "awebb\t\n"),
    ],
)  # fmt: skip
def test_a_template_s_text(template: str, text: str) -> None:
    assert template_lines([ROW], COLUMNS, template) == [text]


def test_json_function_matches_json_output() -> None:
    (line,) = template_lines([ROW], COLUMNS, "{{json .}}")
    assert '"name":"web"' in line
    assert "_status" not in line
    assert "Names" not in line


def test_a_table_of_a_template_has_headings() -> None:
    lines = template_lines([ROW], COLUMNS, "table {{.Names}}\\t{{.CPUPerc}}\\t{{.state}}")
    assert lines == ["NAMES   CPU %   STATE", "web     0.10%   running"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{.Nothing}}", "there is no .Nothing here; there is .id, .name"),
        ("{{.name", "without its }}"),
        ("{{end}}", "nothing to end"),
        ("{{if .name}}", "without its {{end}}"),
        ("{{shout .name}}", "unknown function 'shout'"),
        ("{{len .exit_code}}", "'len' cannot take"),
        ("{{$x}}", "no variable \\$x"),
        ("{{}}", "empty"),
        ("{{(index .ports 1) .target}}", "cannot be read at '.target'"),
        ('{{printf "%d" .name}}', "'printf' cannot take"),
    ],
)
def test_invalid_template_is_a_usage_error(template: str, words: str) -> None:
    with pytest.raises(BadTemplate, match=words):
        Template(template).render(ROW)


@pytest.mark.parametrize(
    ("docker", "ours"),
    [("ID", "id"), ("CreatedAt", "created_at"), ("OOMKilled", "oom_killed"), ("name", "name")],
)
def test_dockers_spelling_is_ours(docker: str, ours: str) -> None:
    assert snake_case(docker) == ours


def test_a_listing_takes_a_template(
    manager: Any, run: Callable[..., Result], refused: Callable[..., str]
) -> None:
    node = Node(id="n123", description=NodeDescription(hostname="node1"), role="worker")
    manager.script.answers["ListNodes"] = control_pb2.ListNodesReply(
        nodes=[control_pb2.NodeRow(node=to_proto(node))]
    )
    done = run("node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Role}}")
    assert done.stdout == "n123 node1 worker\n"
    assert "{{ without its }}" in refused("node", "ls", "--format", "{{.ID", status=2)
    assert "no .Size here" in refused("node", "ls", "--format", "{{.Size}}", status=2)
