# SPDX-License-Identifier: Apache-2.0
"""Configurations and environments for tests of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nshosts import NsHost


def conf(host: NsHost, version: str = "1.1.0", **more: Any) -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "testnet",
        "type": "orc-cni",
        "bridge": "orc0",
        "subnet": "10.128.0.0/24",
        "clusterCIDR": "10.128.0.0/14",
        "dataDir": str(host.state),
        **more,
    }


def environment(box: Path | str, container: str = "c1", ifname: str = "eth0") -> dict[str, str]:
    return {"CNI_CONTAINERID": container, "CNI_NETNS": str(box), "CNI_IFNAME": ifname}
