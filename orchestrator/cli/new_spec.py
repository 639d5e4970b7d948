"""A spec from the flags of `service create`, `run` and `create`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from orchestrator.cli.container_flags import image_and_command, with_many
from orchestrator.cli.document_flags import with_documents
from orchestrator.cli.flag_types import pairs
from orchestrator.cli.job_settings import blank_spec
from orchestrator.cli.logging_flags import with_logging
from orchestrator.cli.mount_flags import apply_mounts
from orchestrator.cli.network_flags import attachments
from orchestrator.cli.placement_flags import with_placement
from orchestrator.cli.settings import apply_settings
from orchestrator.cli.spec_flags import checked, environment, no_number, ports, preferences
from orchestrator.model.names import parse_image
from orchestrator.model.specs import ServiceMode, ServiceSpec


def new_spec(values: dict[str, Any]) -> ServiceSpec:
    """The spec that the flags of `create` describe. Raises a usage error for a bad one."""
    if values["entrypoint"] == ():
        # Given and empty: none, not the image's.
        values = {**values, "entrypoint": ("",)}
    mode = ServiceMode[values["mode"].upper().replace("-", "_")]
    if mode.is_global and values["replicas"] is not None:
        raise no_number(mode)
    image, command = image_and_command(values)
    name = values["name"] if values["name"] is not None else _name_for(image or "host")
    spec = with_placement(apply_settings(blank_spec(name, mode), values), values)
    container = replace(
        spec.task.container,
        image=image,
        command=command,
        env=environment(values["env"], values["env_file"]),
        labels=pairs("container label", values["container_label"]),
    )
    container = apply_mounts(container, values)
    container = with_documents(container, values)
    container = with_logging(with_many(container, values), values)
    task = replace(
        spec.task,
        container=container,
        ports=ports(values["publish"]),
        networks=attachments(values),
    )
    return checked(
        replace(
            spec,
            task=task,
            labels=pairs("label", values["label"]),
            constraints=(
                *values["constraint"],
                *filter(None, [values.get("platform")]),
            ),
            spread=preferences(values.get("placement_pref") or ()),
        )
    )


def _name_for(image: str) -> str:
    """A name for who gave none: the image's, and a little chance so that it is not taken."""
    import secrets  # takes its time, and most users give a name

    base = re.sub("[^a-z0-9]+", "-", parse_image(image).repository.rpartition("/")[2])
    return f"{base[:50]}-{secrets.token_hex(3)}"
