# SPDX-License-Identifier: Apache-2.0
"""The addresses of a network namespace, as `ip address` shows them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.linux.host_addresses import host_addresses, is_bindable
from tests.enclosure import enclosed

SETUP = """
ip link set lo up
ip link add link0 type veth peer name link1
ip link set link0 up
ip link set link1 up
ip address add 10.1.2.3/24 dev link0
ip address add 10.1.2.4/24 dev link0 label link0:second
ip address add 169.254.7.7/16 dev link0
ip address add fd00:1::5/64 dev link0 nodad
ip address add fd00:1::6/64 dev link0 nodad preferred_lft 0
exec "$@"
"""
SHOW = """
from orchestrator.linux.host_addresses import host_addresses, interfaces
print(*sorted(interfaces()))
for each in host_addresses():
    print(each.interface, each.address)
"""


@pytest.mark.root
def test_reachable_addresses_are_listed_with_their_interfaces() -> None:
    command = ["sh", "-ec", SETUP, "sh", sys.executable, "-c", SHOW]
    done = subprocess.run(enclosed(command, "--net"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "link0 link1 lo",
        "link0 10.1.2.3",
        "link0 10.1.2.4",
        "link0 fd00:1::5",
    ]


def test_only_addresses_of_the_host_are_bindable() -> None:
    assert is_bindable("127.0.0.77")
    assert not is_bindable("192.0.2.1")
    assert all(is_bindable(each.address) for each in host_addresses())
