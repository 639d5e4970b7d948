# SPDX-License-Identifier: Apache-2.0
"""`pip install orc` brings a client, and no package that only servers need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from scripted_manager import Manager

from orchestrator.pb import control_pb2, types_pb2

ROOT = Path(__file__).parents[3]
SERVERS = {"grpcio", "aetcd", "numpy", "prometheus-client", "isal", "textual"}
SERVERS |= {"starlette", "uvicorn"}


def required(requirements: list[str]) -> dict[str, Distribution]:
    """The distributions that these requirements, without extras, and all that they need in turn
    come to: those that are installed here."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        one = waiting.pop()
        name = one.name.lower().replace("_", "-")
        applies = one.marker is None or any(
            one.marker.evaluate({"extra": extra}) for extra in (one.extras or {""})
        )
        if name not in found and applies:
            found[name] = distribution(name)
            waiting += map(Requirement, found[name].requires or [])
    return found


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages as `pip install orc` makes it, from a wheel that is built here."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "orchestrator", source / "orchestrator", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", work, source),
        ],
        check=True,
    )
    (wheel,) = work.glob("orc-*.whl")
    site = work / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (metadata,) = site.glob("orc-*.dist-info")
    requirements = Distribution.at(metadata).requires or []
    needed = required([each for each in requirements if "extra ==" not in each])
    assert not needed.keys() & SERVERS
    for each in needed.values():
        for file in each.files or ():
            place = site / file
            if ".." not in file.parts and not place.exists() and Path(file.locate()).exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file.locate())
    return site


def orc(client: Path, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    # Neither this interpreter's packages nor the working directory: only the client's.
    code = f"import sys; sys.path.insert(0, {str(client)!r}); sys.argv[0] = 'orc'; "
    code += "from orchestrator.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *words],
        env={**os.environ, "XDG_CONFIG_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_client_has_help_for_everything(client: Path, tmp_path: Path) -> None:
    for words in ((), ("service", "create"), ("stack", "deploy"), ("cluster", "init"), ("top",)):
        done = orc(client, *words, "--help", home=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"Usage: orc {' '.join(words)}".strip())


def test_the_client_calls_a_manager(client: Path, manager: Manager, config: Path) -> None:
    node = types_pb2.Node(id="n1", description=types_pb2.NodeDescription(hostname="node1"))
    rows = [control_pb2.NodeRow(node=node)]
    manager.script.answers["ListNodes"] = control_pb2.ListNodesReply(nodes=rows)
    done = orc(client, "node", "ls", home=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "node1" in done.stdout


def test_missing_server_package_is_named_with_its_extra(client: Path, tmp_path: Path) -> None:
    for words in (
        ("cluster", "join", "--token", "x", "10.0.0.1:1"),
        ("manager", "--data-dir", str(tmp_path)),
    ):
        done = orc(client, *words, home=tmp_path)
        assert done.returncode == 1
        assert re.fullmatch(
            r"orc: this command needs the package \w+: pip install 'orc\[all\]'\n", done.stderr
        )
