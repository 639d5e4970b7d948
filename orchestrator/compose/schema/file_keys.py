# SPDX-License-Identifier: Apache-2.0
"""Top-level keys of a compose file and their kinds (keys of services are in `service_keys`)."""

from __future__ import annotations

from orchestrator.compose.schema import short_forms
from orchestrator.compose.schema.collection_kinds import ListOf, MapOf, Object, StringMap
from orchestrator.compose.schema.service_keys import SERVICE, check_service_name
from orchestrator.compose.schema.value_kinds import (
    NUMBER,
    Boolean,
    Choice,
    External,
    Ignored,
    Kind,
    Path,
    Text,
    Unsupported,
    with_external_name,
)
from orchestrator.model.documents import TEMPLATE_DRIVERS

NETWORK = Object(
    {
        "name": Text(),
        "external": External(),
        "driver": Text(),
        "driver_opts": MapOf(Text(also=NUMBER), needed=True),
        "attachable": Boolean(),
        "internal": Boolean(),
        "enable_ipv4": Unsupported("networks always have IPv4", ("true",)),
        "enable_ipv6": Boolean(),
        "labels": StringMap(),
        "ipam": Object(
            {
                "driver": Text(),
                "config": ListOf(
                    Object(
                        {
                            "subnet": Text(),
                            "ip_range": Text(),
                            "gateway": Text(),
                            "aux_addresses": Unsupported("exclude the addresses with ip_range"),
                        },
                        "a network's addresses",
                    )
                ),
                "options": MapOf(Text(), needed=True),
            },
            "a network's addresses",
        ),
    },
    "a network",
    finish=with_external_name,
)

VOLUME = Object(
    {
        "name": Text(),
        "external": External(),
        "driver": Text(),
        "driver_opts": MapOf(Text(also=NUMBER), needed=True),
        "labels": StringMap(),
    },
    "a volume",
    finish=with_external_name,
)

_FILE: dict[str, Kind] = {
    "name": Text(),
    "external": External(),
    "file": Path(),
    "environment": Text(),
    "content": Text(),
    "labels": StringMap(),
    "template_driver": Choice(TEMPLATE_DRIVERS),
}
CONFIG = Object(_FILE, "a config", finish=with_external_name)
SECRET = Object(
    {
        **_FILE,
        "driver": Unsupported("secrets are stored by Orc itself"),
        "driver_opts": Unsupported("secrets are stored by Orc itself"),
    },
    "a secret",
    finish=with_external_name,
)

INCLUDE = ListOf(
    Object(
        {
            "path": ListOf(Path(), single=True),
            "project_directory": Path(),
            "env_file": ListOf(Path(), single=True),
        },
        "an include",
        short=short_forms.include,
        required=("path",),
    )
)

FILE = Object(
    {
        "version": Ignored(Text()),
        "name": Text(),
        "include": INCLUDE,
        "services": MapOf(SERVICE, check_service_name),
        "networks": MapOf(NETWORK),
        "volumes": MapOf(VOLUME),
        "secrets": MapOf(SECRET),
        "configs": MapOf(CONFIG),
        "models": Unsupported("run the model as a service"),
    },
    "a compose file",
)
"""A compose file."""
