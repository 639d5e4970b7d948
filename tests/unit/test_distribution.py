# SPDX-License-Identifier: Apache-2.0
"""The Python distribution: its version, its license and what its wheel carries."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from orchestrator import __version__

REPOSITORY = Path(__file__).parents[2]
PINS = REPOSITORY / "packaging" / "lock"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_the_version_is_written_once() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"] == {
        "version": {"attr": "orchestrator.__version__"}
    }
    assert metadata("orc")["Version"] == __version__


def test_type_checkers_use_its_annotations() -> None:
    assert (REPOSITORY / "orchestrator" / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["orchestrator"]


def test_distribution_names_its_license() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    for name in PROJECT["project"]["license-files"]:
        assert (REPOSITORY / name).is_file()


def test_each_supported_python_is_a_classifier() -> None:
    named = set(PROJECT["project"]["classifiers"])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= named


def test_changelog_has_the_released_version_below_unreleased() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    released, present = Version(headings[1]), Version(__version__)
    assert released < present if present.is_prerelease else released == present


def pins(name: str) -> set[Requirement]:
    """What a file pins, each with the platforms that it is for."""
    lines = re.findall(r"^(\S+==.*?) \\$", (PINS / name).read_text(), re.M)
    return {Requirement(line) for line in lines}


def asked(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, with these extras and those that they name."""
    project = PROJECT["project"]
    found = [Requirement(each) for each in project["dependencies"]]
    for extra in extras:
        for each in map(Requirement, project["optional-dependencies"][extra]):
            found += asked(*each.extras) if each.name == project["name"] else [each]
    return found


@pytest.mark.parametrize(
    ("name", "extras"),
    [("client.txt", ()), ("hosts.txt", ("all", "traces")), ("dev.txt", ("dev",))],
)
def test_pinned_versions_are_those_that_are_asked_for(name: str, extras: tuple[str, ...]) -> None:
    """Otherwise run `make lock`."""
    pinned = pins(name)
    for each in asked(*extras):
        matching = [
            pin
            for pin in pinned
            if canonicalize_name(pin.name) == canonicalize_name(each.name)
            and each.specifier.contains(next(iter(pin.specifier)).version, prereleases=True)
        ]
        assert matching, each


def test_all_files_pin_the_same_versions() -> None:
    developers = {f"{pin.name}{pin.specifier}" for pin in pins("dev.txt")}
    for name in ("client.txt", "hosts.txt", "build.txt"):
        assert {f"{pin.name}{pin.specifier}" for pin in pins(name)} <= developers


def test_client_is_pinned_without_server_dependencies() -> None:
    servers = {"aetcd", "grpcio", "isal", "numpy", "prometheus-client", "textual"}
    servers |= {"starlette", "uvicorn"}
    assert not {pin.name for pin in pins("client.txt")} & servers


def test_every_pinned_package_has_hashes() -> None:
    for file in PINS.glob("*.txt"):
        for block in re.split(r"(?m)^(?=\S+==)", file.read_text())[1:]:
            assert "--hash=sha256:" in block
