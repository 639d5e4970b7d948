# SPDX-License-Identifier: Apache-2.0
"""Names of devices by the Container Device Interface, such as `vendor.com/gpu=0`.

Source: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md, "CDI JSON
Specification".
"""

from __future__ import annotations

import re

_WORD = r"[A-Za-z](?:[A-Za-z0-9{}]*[A-Za-z0-9])?"
_NAME = re.compile(
    f"(?P<kind>{_WORD.format('_.-')}/{_WORD.format('_-')})"
    "=(?P<device>[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?)"
)


def is_cdi(name: str) -> bool:
    """Whether it is the qualified name of a CDI device, `VENDOR/CLASS=DEVICE`."""
    return len(name) <= 255 and _NAME.fullmatch(name) is not None
