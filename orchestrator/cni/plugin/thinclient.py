# SPDX-License-Identifier: Apache-2.0
"""The command `orc-cni` as container runtimes execute it: a thin client of a warm server.

It sends its environment and stdin to the server (`warmserver`) of its network namespace, and prints
the answer. If there is no server, `launcher` starts one.

Starting Python takes longer than connecting a container, and importing the standard library's
`socket` and `os` as long again. So this file imports only modules that are compiled into the
interpreter, and `installer` installs it with interpreter options that import nothing else, and
with the folders of this package and of its libraries.

    ORC_CNI_RUN    folder of the servers' sockets         /run/orc-cni
"""

import posix
import sys
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

PACKAGES = __file__.rpartition("/orchestrator/")[0]
LIBRARIES = ""
PASSED = (b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME", b"CNI_ARGS")
FOLDER = b"/run/orc-cni"


def read(descriptor: int) -> bytes:
    """Read a descriptor to its end."""
    found = b""
    while part := posix.read(descriptor, 1 << 16):
        found += part
    return found


def socket_path() -> bytes:
    """The path of the server's socket for this network namespace and mount namespace."""
    network, mounts = (posix.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt"))
    return posix.environ.get(b"ORC_CNI_RUN", FOLDER) + b"/%d-%d" % (network, mounts)


def ask(path: bytes, request: bytes) -> bytes:
    """The server's answer; empty if there is no server, or if it died meanwhile."""
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.connect(path)
        sock.sendall(request)
        sock.shutdown(SHUT_WR)
        return read(sock.fileno())
    except OSError:
        return b""


def main() -> None:
    """Entry point of `orc-cni`."""
    data, answer, environment = b"", b"", posix.environ
    if environment.get(b"CNI_COMMAND"):
        data = read(0)
        path = socket_path()
        request = b"\0".join([*(environment.get(name, b"") for name in PASSED), data])
        answer = ask(path, request)
    if not answer:
        sys.path.insert(0, PACKAGES)
        sys.path.append(LIBRARIES or PACKAGES)
        from orchestrator.cni.plugin import launcher

        answer = launcher.answer(path, request, ask) if data else b""
        answer = answer or launcher.become_plugin(data)
    # The first byte is the exit status.
    printed = answer[1:]
    while printed:
        printed = printed[posix.write(1, printed) :]
    # Skip the interpreter's finalisation, which takes a millisecond.
    posix._exit(answer[0] - ord("0"))


if __name__ == "__main__":
    main()
