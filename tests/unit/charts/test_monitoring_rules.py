# SPDX-License-Identifier: Apache-2.0
"""The monitoring chart's files, as Prometheus' own tools judge them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

CHART = Path(__file__).parents[3] / "charts" / "monitoring"


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alert_rules_are_valid_and_fire() -> None:
    folder = CHART / "prometheus"
    promtool("check", "rules", folder / "rules.yml", folder / "alerts.yml")
    promtool("test", "rules", folder / "tests.yml")


def test_the_configuration_is_one(tmp_path: Path) -> None:
    orc = Path(__file__).parents[3] / ".venv" / "bin" / "orc"
    stack = subprocess.run(
        [orc, "stack", "config", "--set", "ORC_MANAGER=10.0.0.1:7422", CHART],
        capture_output=True,
        check=True,
        timeout=60,
    )
    configs = yaml.safe_load(stack.stdout)["configs"]
    for name in ("rules", "alerts"):
        (tmp_path / f"{name}.yml").write_text((CHART / "prometheus" / f"{name}.yml").read_text())
    for name in ("token", "ca.pem"):
        (tmp_path / name).write_text("")
    config = tmp_path / "prometheus.yml"
    config.write_text(configs["prometheus"]["content"].replace("$$", "$"))
    promtool("check", "config", config)


def test_every_alert_is_tested_firing_and_silent() -> None:
    folder = CHART / "prometheus"
    groups = yaml.safe_load((folder / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    cases = [
        case
        for test in yaml.safe_load((folder / "tests.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    # These two are about a state that lasts from the first sample of their test.
    assert silent == alerts - {"NoLeader", "UpdateStopped"}
