"""Images as rows: the dicts whose keys scripts rely on, and their table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.cli.groups import CliError
from orchestrator.cli.output import Column, Row, column, is_named, moment, short
from orchestrator.model.convert import from_proto
from orchestrator.model.names import parse_image, short_id
from orchestrator.model.objects import Image
from orchestrator.model.units import format_ago, format_size, parse_moment


def image_rows(messages: Iterable[Any], hostnames: Mapping[str, str]) -> list[Row]:
    """From the images of a ListImagesReply: a row a name, newest first."""
    images: list[Image] = [from_proto(message) for message in messages]
    rows = []
    given = {name for image in images for name in image.names}
    for image in sorted(images, key=lambda image: (-image.created_at, image.id)):
        reported = [name for name in image.reported_names if name not in given]
        for name in image.names or reported or ("",):
            parsed = parse_image(name) if name else None
            rows.append(
                {
                    "id": image.id,
                    "repository": parsed.name if parsed else "<none>",
                    "tag": (parsed.tag if parsed else "") or "<none>",
                    "digest": image.indexes[0] if image.indexes else image.id,
                    "dangling": not name,
                    "reported": bool(name) and not image.names,
                    "size": image.size,
                    "nodes": sorted(hostnames.get(node, node) for node in image.nodes),
                    "layers": list(image.layers),
                    "labels": image.labels,
                    "config_digest": image.config_digest,
                    "created_at": moment(image.created_at),
                    "_created": image.created_at,
                }
            )
    return rows


_AGES = {"before", "since", "until"}


def by_age(
    rows: list[Row], filters: Mapping[str, Sequence[str]]
) -> tuple[list[Row], dict[str, Sequence[str]]]:
    """The images that `before=IMAGE`, `since=IMAGE` and `until=TIME` leave, and the other
    filters. Raises CliError for an image that is none of the rows."""
    rest = {key: values for key, values in filters.items() if key not in _AGES}
    kept = rows
    for key in _AGES & filters.keys():
        for value in filters[key]:
            moment = _moment_of(key, value, rows)
            kept = [
                row
                for row in kept
                if (row["_created"] > moment if key == "since" else row["_created"] < moment)
            ]
    return kept, rest


def _moment_of(key: str, value: str, rows: Sequence[Row]) -> float:
    if key == "until":
        try:
            return parse_moment(value, time.time(), "until")
        except ValueError as error:
            raise CliError(str(error)) from None
    for row in rows:
        if is_named(row, value) or short_id(row["id"]).startswith(value) or row["id"] == value:
            return float(row["_created"])
    raise CliError(f"no image '{value}'; see 'orc images'")


def image_columns(whole: bool, digests: bool, now: float) -> list[Column]:
    columns = [
        column("REPOSITORY", "repository"),
        Column("TAG", lambda row: row["tag"] + (" (reported)" if row["reported"] else "")),
    ]
    if digests:
        columns.append(column("DIGEST", "digest"))
    return [
        *columns,
        short("IMAGE ID", "id", whole),
        Column("CREATED", lambda r: format_ago(r["_created"], now) if r["_created"] else ""),
        Column("CONTENT SIZE", lambda row: format_size(row["size"])),
        Column("NODES", lambda row: ", ".join(row["nodes"])),
    ]
