# SPDX-License-Identifier: Apache-2.0
"""What a command costs before it has said a word: which modules it imports."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from scripted_manager import Manager

from orchestrator.cli.app.lazy_imports import cleandoc
from orchestrator.pb import control_pb2, types_pb2

ORC = str(Path(sys.executable).with_name("orc"))

_HEAVY = ("ast", "asyncio", "cryptography", "grpc", "numpy", "rich", "google.protobuf.text_format")


def imported(*words: str, env: Mapping[str, str] | None = None) -> set[str]:
    """The modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ORC, *words],
        env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert lines, done.stderr
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("ps",),
        ("exec", "box", "true"),
        ("run", "--rm", "hello:1", "true"),
        ("logs", "box"),
    ],
)
def test_short_command_imports_few_modules(words: tuple[str, ...], tmp_path: Path) -> None:
    modules = imported(*words, env={"XDG_CONFIG_HOME": str(tmp_path)})
    heavy = {name for name in modules if name in _HEAVY}
    assert not heavy
    if words[0] == "run":
        assert "orchestrator.model.objects" not in modules


def test_node_listing_imports_few_model_modules(manager: Manager) -> None:
    nodes = [control_pb2.NodeRow(node=types_pb2.Node(id="n1", role="worker"))]
    manager.script.answers["ListNodes"] = control_pb2.ListNodesReply(nodes=nodes)
    modules = imported("node", "ls")
    assert "orchestrator.cli.rpc.calls" in modules
    model = {name for name in modules if name.startswith("orchestrator.model.")}
    assert {name.removeprefix("orchestrator.model.") for name in model} <= {
        *("bounds", "extensible", "names", "units"),
        *("validation", "validation.host_access"),
    }
    assert not {
        name for name in modules if name in (*_HEAVY, "orchestrator.cli.service.service_rows")
    }


def test_buffered_output_is_flushed_before_exit(tmp_path: Path) -> None:
    done = subprocess.run([ORC, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("hello:1\n")
    with open("/dev/full", "w") as full:
        done = subprocess.run([ORC, "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize(
    "doc",
    [
        "",
        "one line",
        "  first\n    indented\n      more\n\n    last\n    ",
        "\n\n   after blank lines\n",
        "\tfirst\n\tsecond\n \n\tthird",
    ],
)
def test_help_texts_are_dedented_as_by_inspect(doc: str) -> None:
    assert cleandoc(doc) == inspect.cleandoc(doc)


def test_all_of_inspect_is_there_once_it_is_used() -> None:
    program = (
        "from orchestrator.cli.app import lazy_imports; lazy_imports.install();"
        "import inspect, sys; assert 'ast' not in sys.modules;"
        "from inspect import signature; print(signature(lambda word: None), 'ast' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(word) True\n"
