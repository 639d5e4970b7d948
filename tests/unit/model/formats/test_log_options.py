# SPDX-License-Identifier: Apache-2.0
"""Logging drivers and options: what is valid, and the errors."""

from __future__ import annotations

import re

import pytest

from orchestrator.model.formats.log_options import (
    DRIVERS,
    Source,
    check,
    chosen,
    effective,
    kept,
    parse_address,
    tag,
)
from orchestrator.model.specs import LogConfig

WEB = Source("abcdefghijklmnop", "web.1", "web:1", "sha256:" + "12" * 32, "node-1", "serve -p 80")


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        *((driver, {}) for driver in ("", *DRIVERS)),
        ("local", {"max-size": "10m", "max-file": "3", "compress": "false"}),
        ("json-file", {"max-size": "1g", "labels": "a,b", "env": "C", "tag": "{{.Name}}"}),
        ("journald", {"tag": "{{.ImageName}}", "cache-max-size": "1m"}),
        ("syslog", {"syslog-address": "tcp://logs.example:601", "syslog-facility": "local7"}),
        ("syslog", {"syslog-address": "udp://[::1]", "syslog-format": "rfc3164"}),
        ("syslog", {"mode": "non-blocking", "max-buffer-size": "4m"}),
        ("", {"max-size": "10m", "syslog-facility": "3"}),
    ],
)
def test_options_of_docker_are_accepted(driver: str, options: dict[str, str]) -> None:
    check(LogConfig(driver, options))


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("jsonfile", {}, "logging driver 'jsonfile' is not supported; supported are local, json-"),
        ("gelf", {}, "'gelf' is not supported; ship the files of json-file, or use syslog; sup"),
        ("local", {"max-sise": "1"}, "option 'max-sise' of logging driver local is unknown; acce"),
        ("none", {"max-size": "1m"}, "'max-size' of logging driver none is unknown; it takes none"),
        ("journald", {"max-size": "1m"}, "'max-size' of logging driver journald is unknown"),
        ("", {"ratio": "1"}, "log option 'ratio' is unknown; accepted are cache-max-file"),
        ("local", {"max-size": "ten"}, "max-size 'ten' is not a size"),
        ("local", {"max-size": "0"}, "max-size '0' must be at least 1 byte"),
        ("local", {"max-file": "0"}, "max-file '0' is not a number of files from 1 to 1000"),
        ("json-file", {"compress": "true"}, "compress is not supported"),
        ("json-file", {"mode": "blocking"}, "a container never waits for a log target"),
        ("syslog", {"syslog-address": "http://a"}, "'http://a' is not of the form udp://HOST"),
        ("syslog", {"syslog-address": "unix://../a"}, "has no absolute path"),
        ("syslog", {"syslog-address": "tcp+tls://a"}, "TLS is not supported"),
        ("syslog", {"syslog-address": "tcp://a:99999"}, "is not of the form"),
        ("syslog", {"syslog-facility": "local8"}, "'local8' is unknown; it is a number from 0"),
        ("syslog", {"syslog-format": "rfc1"}, "'rfc1' is unknown; rfc5424, rfc5424micro, rfc3164"),
        ("syslog", {"syslog-tls-ca-cert": "x"}, "'syslog-tls-ca-cert' is not supported: TLS"),
        ("json-file", {"labels-regex": "x"}, "'labels-regex' is not supported: name each label"),
        ("json-file", {"tag": "{{.Nmae}}"}, "tag '{{.Nmae}}': "),
    ],
)
def test_unsupported_options_are_refused_by_name(
    driver: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check(LogConfig(driver, options))


def test_default_options_hold_for_containers_of_the_default_driver() -> None:
    default = LogConfig("json-file", {"max-size": "1m"})
    assert effective(LogConfig("", {"max-file": "2"}), default) == LogConfig(
        "json-file", {"max-size": "1m", "max-file": "2"}
    )
    assert effective(LogConfig("none"), default) == LogConfig("none")
    assert effective(LogConfig(), LogConfig()) == LogConfig("local")
    with pytest.raises(ValueError, match="of logging driver none is unknown"):
        effective(LogConfig("", {"max-file": "2"}), LogConfig("none"))


def test_sizes_of_files_on_the_node() -> None:
    assert kept(LogConfig(), 7, 3) == (7, 3)
    assert kept(LogConfig("local", {"max-size": "1k", "max-file": "9"}), 7, 3) == (1024, 9)
    assert kept(LogConfig("syslog", {"cache-max-size": "2k"}), 7, 3) == (2048, 3)


def test_tags() -> None:
    assert tag("", WEB) == "abcdefghijkl"
    text = "{{.ImageName}}/{{.Name}}/{{.FullID}}/{{.ImageID}}/{{.DaemonName}}"
    assert tag(text, WEB) == "web:1/web.1/abcdefghijklmnop/121212121212/orc"
    assert tag("{{if false}}a{{end}}", WEB) == "abcdefghijkl"


def test_labels_and_variables_that_lines_carry() -> None:
    options = {"labels": "a, c", "env": "D"}
    assert chosen(options, {"a": "1", "b": "2"}, {"D": "3", "E": "4"}) == {"a": "1", "D": "3"}


def test_syslog_addresses() -> None:
    assert parse_address("").path == "/dev/log"
    found = parse_address("tcp://[fd00::1]")
    assert (found.scheme, found.host, found.port) == ("tcp", "fd00::1", 514)
