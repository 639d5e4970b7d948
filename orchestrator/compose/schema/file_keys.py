# SPDX-License-Identifier: Apache-2.0
"""The keys of a compose file, and the kinds of their values (a service's are in `service_keys`)."""

from __future__ import annotations

from orchestrator.compose.schema import short_forms
from orchestrator.compose.schema.collection_kinds import Entries, Keys, Many, Pairs
from orchestrator.compose.schema.service_keys import SERVICE, check_service_name
from orchestrator.compose.schema.value_kinds import (
    NUMBER,
    Choice,
    External,
    Kind,
    Noted,
    Path,
    Refused,
    Text,
    Truth,
    adopt_name,
)
from orchestrator.model.documents import TEMPLATE_DRIVERS

NETWORK = Keys(
    {
        "name": Text(),
        "external": External(),
        "driver": Text(),
        "driver_opts": Entries(Text(also=NUMBER), needed=True),
        "attachable": Truth(),
        "internal": Truth(),
        "enable_ipv4": Refused("each network has IPv4", ("true",)),
        "enable_ipv6": Truth(),
        "labels": Pairs(),
        "ipam": Keys(
            {
                "driver": Text(),
                "config": Many(
                    Keys(
                        {
                            "subnet": Text(),
                            "ip_range": Text(),
                            "gateway": Text(),
                            "aux_addresses": Refused("take the addresses out of ip_range"),
                        },
                        "a network's addresses",
                    )
                ),
                "options": Entries(Text(), needed=True),
            },
            "a network's addresses",
        ),
    },
    "a network",
    finish=adopt_name,
)

VOLUME = Keys(
    {
        "name": Text(),
        "external": External(),
        "driver": Text(),
        "driver_opts": Entries(Text(also=NUMBER), needed=True),
        "labels": Pairs(),
    },
    "a volume",
    finish=adopt_name,
)

_FILE: dict[str, Kind] = {
    "name": Text(),
    "external": External(),
    "file": Path(),
    "environment": Text(),
    "content": Text(),
    "labels": Pairs(),
    "template_driver": Choice(TEMPLATE_DRIVERS),
}
CONFIG = Keys(_FILE, "a config", finish=adopt_name)
SECRET = Keys(
    {
        **_FILE,
        "driver": Refused("secrets are kept by Orc itself"),
        "driver_opts": Refused("secrets are kept by Orc itself"),
    },
    "a secret",
    finish=adopt_name,
)

INCLUDE = Many(
    Keys(
        {
            "path": Many(Path(), single=True),
            "project_directory": Path(),
            "env_file": Many(Path(), single=True),
        },
        "an include",
        short=short_forms.include,
        required=("path",),
    )
)

FILE = Keys(
    {
        "version": Noted(Text()),
        "name": Text(),
        "include": INCLUDE,
        "services": Entries(SERVICE, check_service_name),
        "networks": Entries(NETWORK),
        "volumes": Entries(VOLUME),
        "secrets": Entries(SECRET),
        "configs": Entries(CONFIG),
        "models": Refused("Orc runs no models; run them as a service"),
    },
    "a compose file",
)
"""A whole file."""
