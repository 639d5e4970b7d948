# SPDX-License-Identifier: Apache-2.0
"""Features of managers: behaviour that begins only when every manager knows it.

During an upgrade the managers of a cluster have different versions. Each lists its features in its
`Manager` object. What an older manager would not understand, or would undo, is named here, and its
code asks `shared_features` before it acts.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.model.administration.managers import Manager

SCHEMA_VERSION = 1
"""The newest version of the store's schema that this release reads and writes
(`manager.cluster.schema`)."""


def schema_feature(version: int) -> str:
    """The feature of managers that know a version of the store's schema."""
    return f"schema-{version}"


EXTERNAL_CA = "external-ca"
"""Managers ask an external CA to sign."""

AUTOSCALING = "autoscaling"
"""The leader autoscales services."""

AUTOSCALING_QUERIES = "autoscaling-queries"
"""The leader autoscales services by queries to Prometheus, too."""

MANAGER_FEATURES = (
    *(schema_feature(each) for each in range(1, SCHEMA_VERSION + 1)),
    EXTERNAL_CA,
    AUTOSCALING,
    AUTOSCALING_QUERIES,
)
"""All features of a manager of this version."""


def shared_features(managers: Iterable[Manager]) -> frozenset[str]:
    """The features that every manager has. One that is joining counts, too."""
    sets = [frozenset(each.features) for each in managers]
    return frozenset.intersection(*sets) if sets else frozenset()
