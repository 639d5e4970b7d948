# SPDX-License-Identifier: Apache-2.0
"""`--log-driver` and `--log-opt` of a new container and of an update."""

from __future__ import annotations

from typing import Any

import click
import pytest

from orchestrator.cli.flags.container_flags import with_logging
from orchestrator.model.specs import ContainerSpec, LogConfig

OLD = LogConfig("json-file", {"max-size": "1m", "max-file": "2"})


@pytest.mark.parametrize(
    ("old", "values", "new"),
    [
        (LogConfig(), {}, LogConfig()),
        (LogConfig(), {"log_driver": "none"}, LogConfig("none")),
        (LogConfig(), {"log_opt": [("max-size", "2m")]}, LogConfig("", {"max-size": "2m"})),
        (OLD, {"log_driver": None, "log_opt": ()}, OLD),
        (OLD, {"log_driver": "syslog"}, LogConfig("syslog")),
        (
            OLD,
            {"log_opt": [("max-file", "3")]},
            LogConfig("json-file", {**OLD.options, "max-file": "3"}),
        ),
        (
            OLD,
            {"log_driver": "json-file", "log_opt": [("tag", "a")]},
            LogConfig("json-file", {**OLD.options, "tag": "a"}),
        ),
    ],
)
def test_logging_options_merge_unless_the_driver_changes(
    old: LogConfig, values: dict[str, Any], new: LogConfig
) -> None:
    assert with_logging(ContainerSpec(logging=old), values).logging == new


def test_an_option_of_another_driver_is_refused() -> None:
    values = {"log_driver": "journald", "log_opt": [("max-size", "1m")]}
    with pytest.raises(click.UsageError, match="'max-size' of logging driver journald is unknown"):
        with_logging(ContainerSpec(), values)
