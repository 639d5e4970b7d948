# SPDX-License-Identifier: Apache-2.0
"""Stop signals, and name servers of the host."""

from __future__ import annotations

import signal

import pytest

from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.runtime.interface import (
    Container,
    RuntimeFailure,
    signal_number,
    stop_signal,
)
from orchestrator.agent.runtime.spec.node_facts import parse_resolver
from orchestrator.model.specs import ContainerSpec, TaskSpec


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), (" SIGHUP ", 1), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)],
)
def test_parsing_signal_names(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "SIGNOPE", "-9", "SIGRTMIN+99", "SIG_DFL"])
def test_invalid_signal_names(name: str) -> None:
    with pytest.raises(RuntimeFailure, match="is not a signal"):
        signal_number(name)


def test_stop_signal_of_spec_and_image() -> None:
    def made(spec: str, image: str) -> Container:
        task = TaskSpec(container=ContainerSpec(stop_signal=spec))
        local = LocalImage("sha256:0", (), ImageConfig(stop_signal=image))
        return Container("a", "a", task, local, None)

    assert stop_signal(made("", "")) == signal.SIGTERM
    assert stop_signal(made("", "SIGQUIT")) == signal.SIGQUIT
    assert stop_signal(made("INT", "SIGQUIT")) == signal.SIGINT


def test_name_servers_of_the_host() -> None:
    text = "# by hand\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver ::1\nsearch a b\n\n"
    assert parse_resolver(text) == (("9.9.9.9",), ("a", "b"))
    assert parse_resolver("nameserver nonsense\nnameserver\n") == ((), ())
    assert parse_resolver("nameserver fe80::1%eth0\n") == (("fe80::1%eth0",), ())
