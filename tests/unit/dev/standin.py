# SPDX-License-Identifier: Apache-2.0
"""Stands for `orc` in the tests of the dev cluster: the same commands, no cluster behind them.

The manager listens where the real one does. An agent notes that it is ready and leaves a process
behind that outlives it, as containers do. `node ls` lists the agents that noted it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def context() -> Path:
    name = os.environ.get("ORC_CONTEXT", "")
    return Path(os.environ["XDG_CONFIG_HOME"], "orc", "contexts", f"{name}.json")


def main(arguments: list[str]) -> int:
    match arguments:
        case ["cluster", "init", *rest]:
            data = Path(option(rest, "--data-dir"))
            (data / "address").write_text(option(rest, "--advertise"))
            os.environ["ORC_CONTEXT"] = option(rest, "--context")
            context().parent.mkdir(parents=True, exist_ok=True)
            context().write_text(json.dumps({"hosts": str(data.parent.parent)}))
            (context().parent.parent / "current").write_text(os.environ["ORC_CONTEXT"])
        case ["cluster", "token", "worker", "-q"]:
            print("TOKEN")
        case ["cluster", "join", *rest]:
            assert option(rest, "--token") == "TOKEN"
            data = Path(option(rest, "--data-dir"))
            joined = data / "joined"
            assert not joined.exists()
            joined.write_text(f"{socket.gethostname()} {option(rest, '--address')}")
        case ["manager", *rest]:
            address = Path(option(rest, "--data-dir"), "address").read_text()
            with socket.create_server((address, 7420)) as server:
                while True:
                    server.accept()[0].close()
        case ["docker-api", *rest]:
            assert Path(os.environ["XDG_CONFIG_HOME"]).is_dir()
            with socket.socket(socket.AF_UNIX) as server:
                Path(option(rest, "--socket")).unlink(missing_ok=True)
                server.bind(option(rest, "--socket"))
                signal.pause()
        case ["agent", *rest]:
            data = Path(option(rest, "--data-dir"))
            assert (data / "joined").exists()
            container = subprocess.Popen(
                ["/bin/sleep", "3600"], start_new_session=True, stdout=subprocess.DEVNULL
            )
            print(f"container {container.pid} in {option(rest, '--cgroup-parent')}", flush=True)
            (data / "ready").touch()
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            while True:
                time.sleep(3600)
        case ["node", "ls", "--format", "json"]:
            hosts = Path(json.loads(context().read_text())["hosts"])
            ready = [path.parent.parent.name for path in hosts.glob("node*/data/ready")]
            node = {"state": "ready", "allowed": []}
            print(json.dumps([node | {"id": name, "hostname": name} for name in ready]))
        case ["node", "update", "--allow", "all", name]:
            print(name)
        case ["context", "use", name]:
            (context().parent.parent / "current").write_text(name)
        case ["context", "rm", "--back", name]:
            os.environ["ORC_CONTEXT"] = name
            context().unlink()
        case _:
            print(f"unknown: {arguments}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
