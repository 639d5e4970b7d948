# SPDX-License-Identifier: Apache-2.0
"""Dev clusters for tests: named after this process, so that those of dead runs can be told."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from devtraces import STAND_IN, traces

from orchestrator.dev.devcluster import DevCluster, list_clusters

_numbers = itertools.count()


@pytest.fixture(scope="session")
def _no_leftovers() -> None:
    for name in list_clusters():
        owner = re.fullmatch(r"ut(\d+)n\d+", name)
        if owner and not Path("/proc", owner[1]).exists():
            DevCluster(name).down()


@pytest.fixture
def make_cluster(
    _no_leftovers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], DevCluster]]:
    """Makes clusters whose `orc` is the stand-in; all are removed in the end."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made: list[DevCluster] = []

    def make() -> DevCluster:
        name = f"ut{os.getpid()}n{next(_numbers)}"
        made.append(DevCluster(name, orc=[sys.executable, "-I", "-S", str(STAND_IN)]))
        return made[-1]

    yield make
    for cluster in made:
        cluster.down()
    left = [trace for cluster in made for trace in traces(cluster.name)]
    assert not left


@pytest.fixture
def cluster(make_cluster: Callable[[], DevCluster]) -> DevCluster:
    """One cluster, not up yet."""
    return make_cluster()
