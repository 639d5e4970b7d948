from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "cni"))

from nsfixtures import host, hosts, netns_folder

__all__ = ["host", "hosts", "netns_folder"]
