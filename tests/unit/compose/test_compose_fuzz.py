# SPDX-License-Identifier: Apache-2.0
"""Whatever is in a file: it is a stack, or it is refused in one line."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from composekit import Given
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.compose.schema.file_keys import NETWORK, SECRET, VOLUME
from orchestrator.compose.schema.service_keys import (
    BUILD,
    DEPLOY,
    GRANT,
    HEALTHCHECK,
    MOUNT,
    PORT,
    SERVICE,
)
from orchestrator.compose.tree import ComposeError

_WORDS = (
    *("a", "a:1", "1", "-1", "80:80", "a=b", "/a", "./a:/b", "a:/b:ro", "1g", "5s", "true"),
    *("none", "bind", "volume", "node.role==worker", "rwm", "0440", "10.0.0.1", "${X:-1}"),
    *("web", "other", "default", "linux/arm64", "host", "nofile", "net.ipv4.x"),
)
_TEXTS = st.sampled_from(["", *_WORDS]) | st.text(max_size=4)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 70000), st.floats(), _TEXTS)
_KINDS = (SERVICE, BUILD, DEPLOY, GRANT, HEALTHCHECK, MOUNT, PORT, NETWORK, VOLUME, SECRET)
_INNER = {"limits", "reservations", "cpus", "memory", "constraints", "nofile", "soft", "condition"}
_KEYS = sorted({key for kind in _KINDS for key in kind.table} | _INNER)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


def _section(keys: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(sorted(keys)), _VALUES, max_size=5)


_SERVICE = _section(SERVICE.table).map(lambda body: {"image": "web:1", **body})
_FILES = st.fixed_dictionaries(
    {"services": st.fixed_dictionaries({"web": _SERVICE}, optional={"other": _SERVICE})},
    optional={
        "networks": st.dictionaries(st.sampled_from(["default", "a"]), _section(NETWORK.table)),
        "volumes": st.dictionaries(st.sampled_from(["a", "b"]), _section(VOLUME.table)),
        "secrets": st.dictionaries(st.sampled_from(["a", "b"]), _section(SECRET.table)),
        "include": _VALUES,
        "name": _VALUES,
    },
)


# Such trees take long to draw on a machine that has other things to do.
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(_FILES)
def test_any_tree_is_a_stack_or_an_error(document: dict[str, Any]) -> None:
    try:
        Given(json.dumps(document)).stack()
    except ComposeError as error:
        text = str(error)
    else:
        return
    assert text.startswith("/project/compose.yaml")
    assert len(text.splitlines()) <= 1, text


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#\n <,?%@`x0", max_size=60))
def test_any_text_is_parsed_or_an_error(text: str) -> None:
    with suppress(ComposeError):
        Given(text)
