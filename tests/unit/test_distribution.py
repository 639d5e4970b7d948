"""The Python distribution: its version, its license and what its wheel carries."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

from orchestrator import __version__

REPOSITORY = Path(__file__).parents[2]
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


def test_it_names_its_license() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    for name in PROJECT["project"]["license-files"]:
        assert (REPOSITORY / name).is_file()


def test_each_supported_python_is_a_classifier() -> None:
    named = set(PROJECT["project"]["classifiers"])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= named


def test_the_changelog_has_the_released_version_below_what_is_unreleased() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert __version__ in headings
