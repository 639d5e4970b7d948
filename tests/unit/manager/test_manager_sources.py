"""Whose turn it is at a registry and at the nodes; and what is kept of a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.manager.credentials import registry_name
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.sources import SERVED_BY_ONE, Turns, needs_registry
from orchestrator.manager.vault import KEY_FILE, Vault, VaultError
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.tasks import Task


def test_one_at_a_time_at_the_registry_and_a_few_at_each_node() -> None:
    turns = Turns()
    assert turns.take("x", []) == ""
    assert turns.take("x", []) is None
    assert turns.take("y", []) == ""
    given = [turns.take("x", ["a", "b"]) for _ in range(2 * SERVED_BY_ONE)]
    assert sorted(str(source) for source in given) == ["a"] * SERVED_BY_ONE + ["b"] * SERVED_BY_ONE
    assert turns.take("x", ["a", "b"]) is None
    changed = turns.changed
    turns.give_back("x", "a")
    assert changed.is_set()
    assert turns.take("x", ["a", "b"]) == "a"
    turns.give_back("x", "")
    assert turns.take("x", []) == ""


def test_what_is_sealed_opens_here_for_its_purpose_only(tmp_path: Path) -> None:
    vault = Vault.at(tmp_path)
    sealed = vault.seal("s3cret", "registry a")
    assert "s3cret" not in sealed
    assert Vault.at(tmp_path).open(sealed, "registry a") == "s3cret"
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    with pytest.raises(VaultError):
        vault.open(sealed, "registry b")
    (tmp_path / "other").mkdir()
    with pytest.raises(VaultError, match=r"cluster\.key"):
        Vault.at(tmp_path / "other").open(sealed, "registry a")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("r.example:5000", "r.example:5000"),
        ("https://r.example/v2/", "r.example"),
    ],
)
def test_a_registry_has_one_name(text: str, name: str) -> None:
    assert registry_name(text) == name


def test_a_node_gets_the_credentials_of_registries_that_its_tasks_come_from() -> None:
    spec = TaskSpec(container=ContainerSpec(image="r.example:5000/web:1"))
    tasks = [Task(id="t1", node_id="n1", spec=spec), Task(id="t2", node_id="n2")]
    view = ClusterView.of(tasks)
    assert needs_registry(view, "n1", "r.example:5000/other:2")
    assert not needs_registry(view, "n1", "other.example/web:1")
    assert not needs_registry(view, "n1", "web:1")
    assert not needs_registry(view, "n2", "r.example:5000/web:1")
