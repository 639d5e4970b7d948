# SPDX-License-Identifier: Apache-2.0
"""Queries to the cluster's Prometheus, for autoscaling.

Prometheus' HTTP API: `GET /api/v1/query` evaluates an expression now. Its result is a number, or a
vector of samples, of which the sum counts.
"""

from __future__ import annotations

import asyncio
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

TIMEOUT = 5.0
"""Seconds that an answer may take."""
MAX_ANSWER = 1 << 20
"""Bytes of an answer."""


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The manager's proxies are for registries."""


class QueryFailed(Exception):
    """A query has no value; one line with the reason."""


def check_url(text: str) -> str:
    """The base URL of a Prometheus, without a slash at the end; empty stays empty. Raises
    ValueError."""
    if not text:
        return ""
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(
            f"'{text[:200]}' is not the URL of a Prometheus, such as http://10.0.0.5:9090"
        )
    return text.rstrip("/")


async def ask_prometheus(url: str, query: str) -> float:
    """The value of a query, the sum of its samples. Raises QueryFailed."""
    return await asyncio.to_thread(_ask, url, query)


def _ask(url: str, query: str) -> float:
    arguments = urllib.parse.urlencode({"query": query})
    try:
        with _OPENER.open(f"{url}/api/v1/query?{arguments}", timeout=TIMEOUT) as answer:
            data = answer.read(MAX_ANSWER + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise QueryFailed(_refusal(error.read(MAX_ANSWER)) or f"{url}: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise QueryFailed(f"cannot ask {url}: {reason}") from error
    if len(data) > MAX_ANSWER:
        raise QueryFailed(f"the answer of {url} is larger than {MAX_ANSWER >> 20} MiB; use sum()")
    return value_of(data)


def _refusal(data: bytes) -> str:
    """Prometheus' words for what is wrong with a query; empty if there are none."""
    try:
        document = json.loads(data)
    except ValueError:
        return ""
    text = document.get("error") if isinstance(document, dict) else None
    return text if isinstance(text, str) else ""


def value_of(data: bytes) -> float:
    """The value in an answer. Pure. Raises QueryFailed."""
    try:
        result = json.loads(data)["data"]
        match result["resultType"]:
            case "scalar":
                samples = [result["result"]]
            case "vector":
                samples = [each["value"] for each in result["result"]]
            case other:
                raise QueryFailed(f"the query's result is a {other}, not a number or a vector")
        value = math.fsum(float(sample[1]) for sample in samples)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise QueryFailed(f"the answer is not Prometheus': {_shortened(data)}") from error
    if not samples:
        raise QueryFailed("the query has no samples; is the metric scraped?")
    if not math.isfinite(value):
        raise QueryFailed(f"the query's value is {value}")
    return value


def _shortened(data: Any) -> str:
    return repr(data[:80])
