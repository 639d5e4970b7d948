# SPDX-License-Identifier: Apache-2.0
"""Files in the style of what people have: all of them are read, and mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.compose.conversion.assembly import stack_of
from orchestrator.compose.project.loader import Loader, Project
from orchestrator.compose.project.rendering import escaped
from orchestrator.compose.project.yaml_tree import dump
from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.stack import Stack
from orchestrator.compose.tree import to_python
from orchestrator.model.dependencies import DependencyCondition
from orchestrator.model.documents import DocumentKind
from orchestrator.model.specs import ServiceMode, ServiceSpec

SAMPLES = Path(__file__).parent / "samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.yaml") if path.stem != "common")
VALUES = {"GRAFANA_PASSWORD": "hush", "MARIADB_ROOT_PASSWORD": "hush"}


def loaded(name: str) -> tuple[Project, Loader]:
    loader = Loader(lambda path: Path(path).read_bytes(), VALUES)
    document = loader.project([str(SAMPLES / f"{name}.yaml")], str(SAMPLES))
    return Project(document, loader.read, VALUES), loader


def stack(name: str) -> Stack:
    project, loader = loaded(name)
    return stack_of(project, name, ReadContext(str(SAMPLES), notes=loader.notes))


def services(name: str) -> dict[str, ServiceSpec]:
    return {each.key: each.spec for each in stack(name).services}


@pytest.mark.parametrize("name", NAMES)
def test_rendered_sample_round_trips(name: str) -> None:
    assert stack(name).services
    project, _ = loaded(name)
    printed = dump(escaped(project.document))
    loader = Loader(lambda path: printed.encode() if path == "/x" else Path(path).read_bytes(), {})
    again = loader.project(["/x"], "/")
    assert to_python(again) == to_python(project.document)


def test_number_of_samples() -> None:
    assert len(NAMES) >= 12


def test_ignored_keys_are_noted() -> None:
    _, loader = loaded("gitea")
    name, server, db = loader.notes
    assert "gitea.yaml:10: services.server.container_name: tasks are named SERVICE.SLOT" in name
    assert "gitea.yaml:20: services.server.volumes[0]: refers to" in server
    assert server.endswith("/gitea on the task's node, not on this machine")
    assert "services.db.volumes[0]: refers to" in db


def test_the_voting_app() -> None:
    found = services("voting")
    worker, result = found["worker"], found["result"]
    assert worker.labels == {"APP": "VOTING", "com.docker.stack.namespace": "voting"}
    assert worker.constraints == ("node.role == worker",)
    assert [each.network for each in worker.task.networks] == ["voting_frontend", "voting_backend"]
    assert [(each.service, each.condition) for each in result.depends_on] == [
        ("voting_db", DependencyCondition.HEALTHY)
    ]
    assert [each.name for each in stack("voting").networks] == ["voting_frontend", "voting_backend"]


def test_the_django_app() -> None:
    found = services("django")
    web, migrate = found["web"], found["migrate"]
    env = dict(entry.split("=", 1) for entry in web.task.container.env)
    assert env["SECRET_KEY"] == "k$y#1"
    assert env["ALLOWED_HOSTS"] == "shop.example.org www.shop.example.org"
    assert env["DATABASE_URL"] == "postgres://app:secret@db:5432/app"
    assert "beat" not in found
    assert (web.replicas, web.max_per_node, web.spread) == (4, 2, ("node.labels.zone",))
    assert migrate.task.restart.condition.name == "NONE"
    assert found["db"].task.container.health.test == (
        "CMD-SHELL",
        "pg_isready -U ${POSTGRES_USER} -d ${POSTGRES_DB}",
    )
    order = [each.key for each in stack("django").services]
    assert order.index("db") < order.index("migrate") < order.index("web")


def test_jobs_devices_and_platforms() -> None:
    report = services("rabbit")["report"]
    assert (report.mode, report.replicas) == (ServiceMode.REPLICATED_JOB, 4)
    gpu = services("gpu")
    assert [str(each) for each in gpu["llm"].task.generic_resources] == ["gpu=1"]
    assert [str(each) for each in gpu["train"].task.generic_resources] == ["fpga=2"]
    assert services("nginx")["web"].constraints == ("node.platform.arch==x86_64",)


def test_secrets_and_configs_are_referenced_by_services() -> None:
    found = stack("prometheus")
    containers = {each.key: each.spec.task.container for each in found.services}
    (secret,) = containers["grafana"].secrets
    assert (secret.source, secret.path(DocumentKind.SECRET)) == (
        "prometheus_grafana",
        "/run/secrets/grafana",
    )
    assert (secret.uid, secret.mode) == (472, 0o440)
    contents = {each.name: each.content for each in found.files}
    assert contents["prometheus_prometheus"].startswith(b"global: {scrape_interval: 15s}\n")
    assert contents["prometheus_grafana"] == b"hush"
