# SPDX-License-Identifier: Apache-2.0
"""Contexts that go to another host and back."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from orchestrator.cli.app.contexts import Context, load_context, save_context


def a_context(name: str) -> Context:
    return Context(name, (f"{name}.example:7420",), "CA", "CERT", "KEY")


@pytest.fixture
def two(config: Path) -> None:
    save_context(a_context("one"))
    save_context(a_context("two"), use=False)


def test_exported_context_can_be_imported_under_another_name(
    run: Any, two: None, tmp_path: Path
) -> None:
    file = tmp_path / "two.json"
    assert run("context", "export", "two", str(file)).stdout == f"{file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("context", "import", "again", str(file)).stdout == "again\n"
    assert load_context() == Context(**{**vars_of(a_context("two")), "name": "again"})
    piped: Result = run("context", "export", "one", "-")
    assert run("context", "import", "--no-use", "piped", "-", input=piped.stdout).exit_code == 0
    assert load_context().name == "again"
    assert load_context("piped").endpoints == ("one.example:7420",)


def vars_of(context: Context) -> dict[str, Any]:
    return {name: getattr(context, name) for name in context.__slots__}


def test_context_in_use(run: Any, two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("context", "show").stdout == "one\n"
    monkeypatch.setenv("ORC_CONTEXT", "two")
    assert run("context", "show").stdout == "two\n"
    assert "two *" in run("context", "ls").stdout
    (row,) = json.loads(run("context", "inspect").stdout)
    assert (row["name"], row["endpoints"], row["current"]) == ("two", ["two.example:7420"], True)
    assert "KEY" not in run("context", "inspect", "one", "two").stdout
    assert run("context", "inspect", "one", "-f", "{{.name}}").stdout == "one\n"


def test_invalid_imports_and_exports(refused: Any, two: None, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("{}")
    assert "file exists" in refused("context", "export", "one", str(file))
    assert refused("context", "import", "new", str(file)) == (
        f"{file} is not a context; 'orc context export' writes one"
    )
    assert "context 'two' exists already" in refused("context", "import", "two", str(file))
    assert "no such file" in refused("context", "import", "new", f"{file}.no")
    assert "did you mean 'two'?" in refused("context", "export", "twoo")


def test_a_context_gets_other_managers(run: Any, refused: Any, two: None) -> None:
    words = ("--endpoint", "10.0.0.9", "--endpoint", "new.example:1")
    assert run("context", "update", *words, "two").stdout == "two\n"
    assert load_context("two").endpoints == ("10.0.0.9:7420", "new.example:1")
    assert load_context("two").key == "KEY"
    assert load_context().name == "one"
    run("context", "update", "--endpoint", "10.0.0.9")
    assert load_context("one").endpoints == ("10.0.0.9:7420",)
    assert "--endpoint" in refused("context", "update", status=2)
