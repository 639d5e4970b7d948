# SPDX-License-Identifier: Apache-2.0
"""Raise or clear the alarm of a full etcd. Run in the network namespace of a manager's host.

python -m tests.chaos.etcdalarm /var/lib/orc-dev/NAME/manager1/data/etcd raise|clear
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc


def main() -> int:
    """Exit status 1 and etcd's words if it refuses."""
    folder, verb = Path(sys.argv[1]), sys.argv[2]
    tls = folder / "tls"
    port = json.loads((folder / "ports.json").read_text())["client"]
    credentials = grpc.ssl_channel_credentials(
        *((tls / name).read_bytes() for name in ("ca.pem", "client-key.pem", "client.pem"))
    )
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        request = rpc_pb2.AlarmRequest
        maintenance = rpc_pb2_grpc.MaintenanceStub(channel)
        try:
            if verb == "raise":
                # A member raises it for itself: managers do not know one of another kind.
                status = maintenance.Status(rpc_pb2.StatusRequest(), timeout=3.0)
                action, members = request.ACTIVATE, [status.header.member_id]
            else:
                found = maintenance.Alarm(request(action=request.GET), timeout=3.0)
                action, members = request.DEACTIVATE, [each.memberID for each in found.alarms]
            for member in members:
                alarm = request(action=action, memberID=member, alarm=rpc_pb2.NOSPACE)
                maintenance.Alarm(alarm, timeout=3.0)
        except grpc.RpcError as error:
            print(error.details(), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
