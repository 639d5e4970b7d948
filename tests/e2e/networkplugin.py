# SPDX-License-Identifier: Apache-2.0
"""A network and ipam plugin of Docker's protocol: `networkplugin.py SOCKET LOG [KIND…]`.

A network is a bridge on the host that it runs in, an endpoint a veth pair, with one end on it. Each
call is a line of LOG, `METHOD JSON`. While `LOG.METHOD` exists it answers a call of that method by
the error that is in it, and not at all if it is empty.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Network
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

SOCKET, LOG = Path(sys.argv[1]), Path(sys.argv[2])
KINDS = sys.argv[3:] or ["NetworkDriver", "IpamDriver"]
POOL = IPv4Network("10.99.0.0/24")

gateways: dict[str, str] = {}
"""Network → its gateway with the prefix length."""
given: set[str] = set()
"""Addresses that are somebody's."""


class Refused(Exception):
    """The plugin's own word."""


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def create_network(body: dict[str, Any]) -> dict[str, Any]:
    network, gateway = body["NetworkID"], body["IPv4Data"][0]["Gateway"]
    bridge = f"pl{network[:8]}"
    with suppress(Refused):
        ip("link", "add", bridge, "type", "bridge")
    if gateway:
        ip("address", "replace", gateway, "dev", bridge)
    for each in body["IPv6Data"]:
        ip("address", "replace", each["Gateway"], "dev", bridge)
    ip("link", "set", bridge, "up")
    gateways[network] = gateway
    return {}


def delete_network(body: dict[str, Any]) -> dict[str, Any]:
    ip("link", "delete", f"pl{body['NetworkID'][:8]}")
    return {}


def create_endpoint(body: dict[str, Any]) -> dict[str, Any]:
    host, inside = ends(body)
    with suppress(Refused):  # what a namespace that was removed has not taken along yet
        ip("link", "delete", host)
    ip("link", "add", host, "type", "veth", "peer", "name", inside)
    ip("link", "set", host, "master", f"pl{body['NetworkID'][:8]}", "up")
    digits = body["EndpointID"]
    mac = f"02:99:{digits[0:2]}:{digits[2:4]}:{digits[4:6]}:{digits[6:8]}"
    asked, mine = body["Interface"], {}
    if not asked["MacAddress"]:
        mine["MacAddress"] = mac
    if not asked["Address"]:  # nobody else gives it one
        mine["Address"] = f"10.98.0.{int(digits[:2], 16) % 200 + 2}/24"
    return {"Interface": mine}


def join(body: dict[str, Any]) -> dict[str, Any]:
    assert os.path.exists(body["SandboxKey"])
    return {
        "InterfaceName": {"SrcName": ends(body)[1], "DstPrefix": "eth"},
        "Gateway": gateways[body["NetworkID"]].partition("/")[0],
        "StaticRoutes": [{"Destination": "203.0.113.0/24", "RouteType": 1, "NextHop": ""}],
    }


def delete_endpoint(body: dict[str, Any]) -> dict[str, Any]:
    # It must have come back, under its name.
    ip("link", "delete", ends(body)[1])
    return {}


def request_pool(body: dict[str, Any]) -> dict[str, Any]:
    return {"PoolID": "pool1", "Pool": body["Pool"] or str(POOL), "Data": {}}


def request_address(body: dict[str, Any]) -> dict[str, Any]:
    wanted = body["Address"]
    if wanted in given:
        raise Refused(f"address {wanted} is taken")
    address = wanted or next(str(each) for each in POOL.hosts() if str(each) not in given)
    given.add(address)
    return {"Address": f"{address}/24"}


def release_address(body: dict[str, Any]) -> dict[str, Any]:
    given.discard(body["Address"])
    return {}


def ends(body: dict[str, Any]) -> tuple[str, str]:
    """The names of the two ends of an endpoint's veth pair."""
    return f"vh{body['EndpointID'][:8]}", f"vc{body['EndpointID'][:8]}"


CALLS = {
    "Plugin.Activate": lambda body: {"Implements": KINDS},
    "NetworkDriver.GetCapabilities": lambda body: {"Scope": "local"},
    "NetworkDriver.CreateNetwork": create_network,
    "NetworkDriver.DeleteNetwork": delete_network,
    "NetworkDriver.CreateEndpoint": create_endpoint,
    "NetworkDriver.DeleteEndpoint": delete_endpoint,
    "NetworkDriver.Join": join,
    "NetworkDriver.Leave": lambda body: {},
    "IpamDriver.GetCapabilities": lambda body: {"RequiresMACAddress": False},
    "IpamDriver.GetDefaultAddressSpaces": lambda body: {
        "LocalDefaultAddressSpace": "local",
        "GlobalDefaultAddressSpace": "global",
    },
    "IpamDriver.RequestPool": request_pool,
    "IpamDriver.ReleasePool": lambda body: {},
    "IpamDriver.RequestAddress": request_address,
    "IpamDriver.ReleaseAddress": release_address,
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        method = self.path.strip("/")
        with LOG.open("a") as log:
            log.write(f"{method} {text}\n")
        fault = Path(f"{LOG}.{method.rpartition('.')[2]}")
        while fault.exists() and not fault.read_text():
            time.sleep(0.05)
        status, answer = 200, {}
        if method not in CALLS:
            status, answer = 404, {"Err": "no such call"}
        elif fault.exists():
            answer = {"Err": fault.read_text()}
        else:
            try:
                answer = CALLS[method](json.loads(text or "{}"))
            except Refused as error:
                answer = {"Error" if method.startswith("Ipam") else "Err": str(error)}
        data = json.dumps(answer).encode()
        with suppress(BrokenPipeError):  # who asked may have given up
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        return

    def address_string(self) -> str:
        return "agent"


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    SOCKET.unlink(missing_ok=True)
    SOCKET.with_suffix(".pid").write_text(str(os.getpid()))
    Server(str(SOCKET), Handler).serve_forever()
