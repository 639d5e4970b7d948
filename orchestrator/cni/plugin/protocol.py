# SPDX-License-Identifier: Apache-2.0
"""The plugin: CNI 1.1.0, also for callers of 1.0.0 and 0.4.0.

Configuration on stdin, CNI_* in the environment, a result or an error as JSON on stdout; exit
status 0 or 1. See https://www.cni.dev/docs/spec/. Runtimes execute the command `orc-cni`
(`thinclient`), which lets a warm process (`warmserver`) do the same.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.cni.attachments import attachment
from orchestrator.cni.attachments.attachment import Attachment, Host
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import TYPE_CHECKING
from orchestrator.cni.jsonfields import IDENTIFIER
from orchestrator.cni.netconf import SUPPORTED, VERSION, NetConf, decode, parse, version_of

if TYPE_CHECKING:
    from typing import Any

OpenHost = Callable[[Path], AbstractContextManager[Host]]
EXPECTED = (CniError, OSError)
TABLE = "inet orc_cni"


def open_host(data_dir: Path) -> Host:
    """This host for networks of other container runtimes, beside those of an agent."""
    return Host(data_dir, TABLE)


IFNAME = re.compile(rb"[^/:%\x00-\x20\x7f\xa0]{1,15}")
"""Names that the kernel accepts (dev_valid_name), without `%d`, which it replaces by a number."""
LONGEST_ID = 200
"""Characters of a container's id: a device's alias has it and the interface's name."""
SINCE_1_1 = frozenset({"STATUS", "GC"})
NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "STATUS": (),
    "GC": (),
    "VERSION": (),
}


def command_of(environment: Mapping[str, str]) -> str:
    """The operation; raises `CniError` INVALID_ENVIRONMENT naming all missing variables."""
    command = environment.get("CNI_COMMAND", "")
    if command not in NEEDED:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_COMMAND is {command!r}: use one of {', '.join(NEEDED)}",
        )
    missing = [name for name in NEEDED[command] if not environment.get(name)]
    if missing:
        raise CniError(Code.INVALID_ENVIRONMENT, f"{command} needs {', '.join(missing)}")
    return command


def attachment_of(environment: Mapping[str, str]) -> Attachment:
    """The attachment; raises `CniError` INVALID_ENVIRONMENT."""
    container_id = environment.get("CNI_CONTAINERID", "")
    ifname = environment.get("CNI_IFNAME", "")
    if not IDENTIFIER.fullmatch(container_id):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID {container_id!r}: use letters, digits, dots, dashes, underscores",
        )
    if len(container_id) > LONGEST_ID:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID has {len(container_id)} characters: use at most {LONGEST_ID}",
        )
    if not IFNAME.fullmatch(os.fsencode(ifname)) or ifname in (".", ".."):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME {ifname!r}: use up to 15 bytes, no slash, colon, percent sign or space",
        )
    return Attachment(container_id, ifname, environment.get("CNI_NETNS", ""))


def perform(
    command: str, conf: NetConf, environment: Mapping[str, str], open_host: OpenHost = open_host
) -> dict[str, Any] | None:
    """Perform one operation; return its result, if it has one."""
    if command in SINCE_1_1 and conf.version != VERSION:
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"{command} needs cniVersion {VERSION}, not {conf.version}"
        )
    with open_host(conf.data_dir) as host:
        match command:
            case "ADD":
                target = attachment_of(environment)
                attachment.restore_network(host, conf)
                return attachment.add(host, conf, target)
            case "DEL":
                attachment.delete(host, conf, attachment_of(environment))
            case "CHECK":
                if conf.previous is None:
                    raise CniError(Code.INVALID_CONFIG, "CHECK needs prevResult")
                from orchestrator.cni.attachments import verification

                verification.check(host, conf, attachment_of(environment))
            case "STATUS":
                from orchestrator.cni.attachments import verification

                verification.status(host, conf)
            case "GC":
                attachment.collect(host, conf, conf.valid)
    return None


def answer(
    data: bytes, environment: Mapping[str, str], open_host: OpenHost = open_host
) -> tuple[int, dict[str, Any] | None]:
    """The exit status and the document to print for one invocation. Never raises."""
    version = VERSION
    try:
        command = command_of(environment)
        raw = decode(data)
        if command == "VERSION":
            asked = str(raw.get("cniVersion") or VERSION)
            return 0, {"cniVersion": asked, "supportedVersions": list(SUPPORTED)}
        version = version_of(raw)
        return 0, perform(command, parse(raw), environment, open_host)
    except CniError as error:
        return 1, failure(version, error)
    except OSError as error:
        message = error.strerror or str(error)
        return 1, failure(version, CniError(Code.IO_FAILURE, message, repr(error)))
    except Exception as error:
        return 1, failure(version, CniError(Code.INTERNAL, "unexpected error", repr(error)))


def failure(version: str, error: CniError) -> dict[str, Any]:
    """The JSON document of an error, as in the specification."""
    document: dict[str, Any] = {"cniVersion": version, "code": int(error.code), "msg": str(error)}
    if error.details:
        document["details"] = error.details
    return document


def main() -> int:
    """Run one operation, or install the command."""
    if sys.argv[1:2] == ["install"] and len(sys.argv) == 3:
        from orchestrator.cni.plugin.installer import install

        print(f"orc-cni: {install(Path(sys.argv[2]))} is installed")
        return 0
    if not os.environ.get("CNI_COMMAND") and sys.stdin.isatty():
        print(
            f"orc-cni: a CNI plugin, version {VERSION}; container runtimes execute it."
            " To install it in their plugin folder: orc-cni install /opt/cni/bin"
        )
        return 0
    status, document = answer(sys.stdin.buffer.read(), os.environ)
    if document is not None:
        json.dump(document, sys.stdout)
        sys.stdout.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
