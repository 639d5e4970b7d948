from __future__ import annotations

from nsfixtures import host, hosts, netns_folder

__all__ = ["host", "hosts", "netns_folder"]
