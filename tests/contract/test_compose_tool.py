# SPDX-License-Identifier: Apache-2.0
"""What `orc stack config` takes and prints, compared with Debian's docker-compose.

    composesamples/same      both take them, and docker-compose takes what Orc prints for the same
    composesamples/refused   docker-compose takes them, and Orc does not, for a reason that the
                             first line has and docs/how-to/from-compose.md lists
    composesamples/invalid   neither takes them

A sample is a file, or a folder with `compose.yaml` and maybe `override.yaml`. Starting
docker-compose is slow, so it reads all samples of a kind at once, by `include`: their services,
networks and so on have names of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.stack.deploy_commands import config

SAMPLES = Path(__file__).parent / "composesamples"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "from-compose.md"
VALUES = {
    "PATH": os.environ["PATH"],
    "HOME": "/home/user",
    "SET": "set",
    "EMPTY": "",
    "NUM": "5",
    "TRUE": "true",
    "DOLLAR": "a$b",
    "COMPOSE_PROFILES": "debug",
}
Files = tuple[Path, ...]


def samples(kind: str) -> dict[str, Files]:
    found: dict[str, Files] = {path.stem: (path,) for path in SAMPLES.glob(f"{kind}/*.yaml")}
    for folder in SAMPLES.glob(f"{kind}/*/"):
        names = (folder / name for name in ("compose.yaml", "override.yaml"))
        found[folder.name] = tuple(path for path in names if path.exists())
    return dict(sorted(found.items()))


SAME, REFUSED, INVALID = samples("same"), samples("refused"), samples("invalid")


def docker_compose(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["docker-compose", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=VALUES, check=False, timeout=60
    )


def together(folder: Path, given: Iterable[Files]) -> Any:
    """What docker-compose makes of projects that are included in one."""
    file = folder / "together.json"
    entries = [
        {"path": list(map(str, files)), "project_directory": str(files[0].parent)}
        for files in given
    ]
    file.write_text(json.dumps({"include": entries}))
    done = docker_compose("-p", "all", "-f", str(file), "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def orc(files: Files, form: str = "yaml") -> Result:
    words = [word for file in files for word in ("-c", str(file))]
    return CliRunner().invoke(config, [*words, "--format", form], prog_name="orc")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*os.environ} - {"PYTEST_CURRENT_TEST"}:
        monkeypatch.delenv(name)
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)


def meaning(project: Mapping[str, Any]) -> dict[str, Any]:
    """A project without what is only another form: one number for both limits, `{}` for null."""
    services = {}
    for name, service in project["services"].items():
        services[name] = _with_both_limits(service)
        if build := service.get("build"):
            services[name]["build"] = _with_both_limits(build)
        if services[name].get("deploy") == {"resources": {}, "placement": {}}:
            del services[name]["deploy"]
    return {**project, "services": services}


def _with_both_limits(section: Mapping[str, Any]) -> dict[str, Any]:
    limits = {
        kind: {"soft": each, "hard": each} if isinstance(each, int) else each
        for kind, each in section.get("ulimits", {}).items()
    }
    return {**section, **({"ulimits": limits} if limits else {})}


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        nothing = "nothing"
        return [
            line
            for key in sorted({*one, *other})
            for line in differences(one.get(key, nothing), other.get(key, nothing), f"{at}.{key}")
        ]
    return [] if one == other else [f"{at}: {one!r} became {other!r}"]


def test_samples_are_at_least_sixty() -> None:
    assert len(SAME) + len(REFUSED) + len(INVALID) >= 60


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_printed_file_is_equivalent_for_docker_compose(form: str, tmp_path: Path) -> None:
    printed = []
    for name, files in SAME.items():
        done = orc(files, form)
        assert done.exit_code == 0, done.output
        file = tmp_path / f"{name}.{form}"
        file.write_text(done.stdout)
        printed.append((file,))
    before, after = together(tmp_path, SAME.values()), together(tmp_path, printed)
    assert "\n".join(differences(meaning(before), meaning(after))) == ""


def test_docker_compose_accepts_files_that_orc_refuses(tmp_path: Path) -> None:
    assert together(tmp_path, REFUSED.values())["services"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_a_line_and_is_listed(name: str) -> None:
    (file,) = REFUSED[name]
    reason = file.read_text().splitlines()[0].removeprefix("# ")
    done = orc((file,))
    assert done.exit_code == 1
    assert f"{name}.yaml:" in done.output
    assert reason in done.output
    assert reason in PAGE.read_text()


def test_each_listed_refusal_is_the_message_of_a_sample() -> None:
    section = PAGE.read_text().partition("\n## Values that are refused\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)[2:]
    assert len(rows) >= 40
    messages = "\n".join(orc(files).output for files in REFUSED.values())
    quoted = [each for _, text in rows for each in text.split("; in the long form: ")]
    assert [each for each in quoted if each.replace("\\|", "|") not in messages] == []


@pytest.mark.parametrize("name", INVALID)
def test_files_refused_by_docker_compose_are_refused_with_a_line_number(name: str) -> None:
    files = INVALID[name]
    words = [word for file in files for word in ("-f", str(file))]
    assert docker_compose(*words, "config", "-q").returncode
    done = orc(files)
    assert done.exit_code == 1
    assert ".yaml:" in done.output.replace(f"{files[0]}: ", "")
