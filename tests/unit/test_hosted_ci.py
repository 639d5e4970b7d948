# SPDX-License-Identifier: Apache-2.0
"""The hosted CI file: it runs the parts of .ci/run, on each Python that Orc supports."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
JOBS = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"]


def commands(job: str) -> str:
    return "\n".join(step.get("run", "") for step in JOBS[job]["steps"])


def test_ci_runs_each_part() -> None:
    script = (REPOSITORY / ".ci/run").read_text()
    parts = set(re.findall(r"^#   (\w+)   ", script, re.MULTILINE))
    assert parts == {"bare", "host"}
    ran = {each for job in JOBS for each in re.findall(r"\.ci/run (\w+)", commands(job))}
    assert ran == parts


def test_ci_tests_every_supported_python() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    supported = {f"3.{each[len(prefix) :]}" for each in project["classifiers"] if prefix in each}
    assert set(JOBS["host"]["strategy"]["matrix"]["python"]) == supported
