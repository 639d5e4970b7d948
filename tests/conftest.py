# SPDX-License-Identifier: Apache-2.0
"""What every test relies on."""

import os
import signal

import pytest
from hypothesis import settings

# Before gRPC: it sets what its core reads when it is imported.
import orchestrator  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has it ignored, and so would all that they
    # start; some tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's doing, not the code's.
settings.register_profile("orc", deadline=None)
settings.load_profile("orc")

_REAP = 'tail --pid="$1" -f /dev/null; pkill -KILL -f -- "-dir[= ]$2/"'


@pytest.fixture(scope="session", autouse=True)
def _servers_end_with_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Some tests start servers such as etcd as a manager does, in sessions of their own. End those
    that are left when this process ends, however it ends, by the folder that they were given."""
    folder = str(tmp_path_factory.getbasetemp())
    os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _REAP, "reaper", str(os.getpid()), folder],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)],
        setsid=True,
    )
