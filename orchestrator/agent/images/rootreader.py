"""A program: read the files of a container that may be changing them meanwhile.

One argument, JSON: `{"verb": "root", "root": …, "layers": [...], "ids": [FIRST, COUNT]}` writes a
tar of all files, `{"verb": "layer", "upper": …, "mounts": [...], "ids": …}` one of the writable
layer, and `{"verb": "changes", "upper": …, "layers": [...], "mounts": [...]}` what that changed,
each a kind and a path, with a NUL at its end; see `rootfiles` and `layerfiles`.

The program is confined to the container's files (`runtime.confine`), so that a symbolic link in
them cannot lead it to the host's. It prints one line and exits with status 1 if it fails.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from orchestrator.agent.images.layerfiles import changes, write_layer, write_root
from orchestrator.agent.runtime.confine import (
    READ_ONLY,
    confine,
    limit_memory,
    mount_overlay,
    unshare_mounts,
)
from orchestrator.agent.runtime.mountcalls import detached


def main(argv: list[str]) -> None:
    """Do what the order says."""
    limit_memory()
    try:
        _read(json.loads(argv[0]))
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        sys.exit(f"the container's files cannot be read: {(error.strerror or str(error)).lower()}")
    except MemoryError:
        sys.exit("the container's files take more memory to read than they may")


def _read(order: dict[str, Any]) -> None:
    output = sys.stdout.buffer
    mounts = frozenset(order.get("mounts", ()))
    first, count = order.get("ids", (0, 0))
    ids = range(first, first + count)
    match order["verb"]:
        case "root":
            root, layers = order["root"], order["layers"]
            if layers:
                unshare_mounts()
                mount_overlay(layers, root)
            confine({"root": detached(root, READ_ONLY)})
            write_root(Path("/root"), output, ids)
        case "layer":
            confine({"upper": detached(order["upper"], READ_ONLY)})
            write_layer(Path("/upper"), output, mounts, ids)
        case "changes":
            places = {str(number): path for number, path in enumerate(order["layers"])}
            places["upper"] = order["upper"]
            confine({name: detached(path, READ_ONLY) for name, path in places.items()})
            below = [Path(f"/{number}") for number in range(len(order["layers"]))]
            for kind, path in changes(Path("/upper"), below, mounts):
                output.write(os.fsencode(kind + path) + b"\0")
    output.flush()
