# SPDX-License-Identifier: Apache-2.0
"""The command `orc-cni` as container runtimes execute it: a thin client of a warm server.

It hands its environment and stdin to the server (`server`) of its network namespace, and prints the
answer. If there is none, `starter` begins one.

A start of Python costs more than connecting a container, and the standard library's own `socket`
and `os` cost as much again. So this file imports only what is compiled into the interpreter, and is
installed (`installer`) with the options that leave everything else out, and with the folders of
this package and of the libraries that it needs.

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
    """All that there is."""
    found = b""
    while part := posix.read(descriptor, 1 << 16):
        found += part
    return found


def socket_path() -> bytes:
    """The server's for this network namespace, and this view of the file system."""
    network, mounts = (posix.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt"))
    return posix.environ.get(b"ORC_CNI_RUN", FOLDER) + b"/%d-%d" % (network, mounts)


def ask(path: bytes, request: bytes) -> bytes:
    """The server's answer; empty if there is no server, or if it died over it."""
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
    # Nothing is left to do: the interpreter need not tidy up, which takes a millisecond.
    posix._exit(answer[0] - ord("0"))


if __name__ == "__main__":
    main()
