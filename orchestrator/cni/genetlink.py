"""Generic netlink (Linux, Documentation/userspace-api/netlink/intro.rst): families by name."""

from __future__ import annotations

import errno
import struct
import sys

from orchestrator.cni.rtnetlink import NetlinkError, NetlinkSocket, Request, attributes, text

NETLINK_GENERIC = 16
HEAD = struct.Struct("=BBH")  # genlmsghdr: command, version, reserved
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 3, 1, 2


class GenericSocket(NetlinkSocket):
    """A socket for the families of generic netlink."""

    def __init__(self) -> None:
        super().__init__(NETLINK_GENERIC)

    def family(self, name: str) -> int | None:
        """The number of a family; None if the kernel has none of this name.

        The kernel loads the module that has it, where it can.
        """
        body = HEAD.pack(CTRL_CMD_GETFAMILY, 1, 0) + text(CTRL_ATTR_FAMILY_NAME, name)
        try:
            answer = self.get(Request(GENL_ID_CTRL, body))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return int.from_bytes(attributes(answer, HEAD.size)[CTRL_ATTR_FAMILY_ID], sys.byteorder)
