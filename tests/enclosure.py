"""Commands in namespaces of their own, of which nothing stays when their parent is killed."""

from __future__ import annotations

from collections.abc import Sequence


def enclosed(command: Sequence[str], *namespaces: str) -> list[str]:
    """The command with processes and mounts of its own, and further namespaces such as `--net`.

    When it is over, or its parent has ended in whatever way, the kernel ends all that it has
    started, daemons too, and with them goes what they have mounted.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", *namespaces, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("tini", "-s", "--"),  # process 1: somebody must reap what daemons leave
        *command,
    ]
