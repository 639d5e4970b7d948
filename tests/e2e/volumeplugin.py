# SPDX-License-Identifier: Apache-2.0
"""A volume plugin for hosts of a dev cluster: `volumeplugin.py SOCKET FOLDER SCOPE`.

Keeps a folder a volume in FOLDER. While `FOLDER.hang` exists it answers nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

SOCKET, FOLDER, SCOPE = sys.argv[1], Path(sys.argv[2]), sys.argv[3]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        while FOLDER.with_suffix(".hang").exists():
            time.sleep(0.1)
        answer = json.dumps(_answer(self.path, json.loads(body or b"{}"))).encode()
        # Who asked may have given up meanwhile.
        with suppress(BrokenPipeError):
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        return

    def address_string(self) -> str:
        return "agent"


def _answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
    folder = FOLDER / body.get("Name", "")
    match path.rpartition(".")[2]:
        case "Activate":
            return {"Implements": ["VolumeDriver"]}
        case "Capabilities":
            return {"Capabilities": {"Scope": SCOPE}}
        case "List":
            return {"Volumes": [{"Name": name} for name in os.listdir(FOLDER)]}
        case "Create":
            folder.mkdir(exist_ok=True)
        case "Remove":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        case _ if not folder.exists():
            return {"Err": f"no volume {folder.name}"}
        case "Get":
            return {"Volume": {"Name": folder.name}}
    return {"Mountpoint": str(folder), "Err": ""}


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    Path(SOCKET).parent.mkdir(parents=True, exist_ok=True)
    Path(SOCKET).unlink(missing_ok=True)
    Path(SOCKET).with_suffix(".pid").write_text(str(os.getpid()))
    Server(SOCKET, Handler).serve_forever()
