# SPDX-License-Identifier: Apache-2.0
"""A dev cluster in a root file system of its own, on the same network, as in a container.

Brings NAME up with the stand-in for `orc`, prints its subnet, and takes it down when its standard
input is closed: `python otherroot.py NAME`, in a mount namespace of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator.dev.devcluster import DevCluster

STAND_IN = Path(__file__).with_name("standin.py")

for folder in ("/run", "/var/lib"):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
cluster = DevCluster(sys.argv[1], orc=[sys.executable, "-I", "-S", str(STAND_IN)])
print(cluster.up(1, 1, lambda _: None).subnet, flush=True)
sys.stdin.read()
print(cluster.down(), flush=True)
