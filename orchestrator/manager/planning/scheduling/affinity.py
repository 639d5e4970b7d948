# SPDX-License-Identifier: Apache-2.0
"""Affinities to nodes and services, as filters and as scores.

A node is near a service if it has a task of that service which is not being stopped, or is in the
same zone as such a node (`within`). A hard affinity holds when a task is placed; services that come
later do not move it. A hard anti-affinity goes both ways: a task is not placed beside one whose
service has an anti-affinity to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.manager.planning.eligibility import satisfies_rule
from orchestrator.manager.planning.scheduling.capacity import BoolArray, IntArray
from orchestrator.manager.planning.scheduling.node_table import Demand, Filter, NodeTable
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.scheduling.constraints import SERVICE, SERVICE_LABELS, Rule, read_attribute
from orchestrator.model.services import Service


def affinity_filters(view: ClusterView, table: NodeTable, demand: Demand) -> Iterator[Filter]:
    """The demand's hard affinities, and other services' hard anti-affinities to it. Raises
    RuleError for one that cannot be parsed."""
    own = view.services.get(demand.service_id)
    for each in demand.affinities:
        if each.hard:
            yield _filter(view, each, own)
    if own is None:
        return
    for other in table.with_affinities:
        for each in other.spec.affinities:
            if each.hard and each.anti and other.id != own.id and _names(each.parsed, own):
                yield _anti_affinity_of(other, each)


def affinity_scores(view: ClusterView, table: NodeTable, demand: Demand) -> IntArray | None:
    """For each node, the sum of the weights of the soft affinities that it satisfies, in tasks of
    the service; more is better. None if there are no soft affinities."""
    soft = [each for each in demand.affinities if not each.hard]
    if not soft:
        return None
    total = np.zeros(len(table.nodes), dtype=np.int64)
    for each in soft:
        total += np.where(_near(view, table, each), -each.weight if each.anti else each.weight, 0)
    return total


@dataclass(frozen=True, slots=True)
class Effect:
    """What a placed task changes for the next one of its demand."""

    elsewhere: bool = False
    """Other nodes than its own change."""
    closed: bool = False
    """Its node can take no other."""
    bonus: int = 0
    """What its node gains in affinity, in tasks of the service."""


NO_EFFECT = Effect()


class OwnAffinities:
    """A demand's affinities to its own service: a placed task changes where the next one may go."""

    def __init__(self, view: ClusterView, table: NodeTable, demand: Demand) -> None:
        self._table = table
        own = view.services.get(demand.service_id)
        self._rules = [
            (each, _near(view, table, each))
            for each in demand.affinities
            if own is not None and each.parsed.of_services and _names(each.parsed, own)
        ]
        """Each with the nodes that are near now."""

    def place(self, row: int) -> Effect:
        """Count a task on a node, and say what follows."""
        closed, bonus = False, 0
        for each, near in self._rules:
            if near[row] or (
                each.within and not read_attribute(self._table.nodes[row], each.within)
            ):
                continue
            if each.within or (each.hard and not each.anti):
                return Effect(elsewhere=True)
            near[row] = True
            closed = closed or each.hard
            bonus += 0 if each.hard else -each.weight if each.anti else each.weight
        return Effect(closed=closed, bonus=bonus) if closed or bonus else NO_EFFECT


def _filter(view: ClusterView, affinity: Affinity, own: Service | None) -> Filter:
    rule, where = affinity.parsed, f" in the same {affinity.within}" if affinity.within else ""
    if not rule.of_services:
        words = f"anti-affinity {affinity.rule}" if affinity.anti else f"affinity {affinity.rule}"
        words += "" if affinity.anti else " not met"
    elif affinity.anti:
        words = f"anti-affinity: a task with {affinity.rule} is {where.strip() or 'there'}"
    else:
        words = f"affinity: no task with {affinity.rule} is {where.strip() or 'there'}"

    def check(table: NodeTable) -> BoolArray:
        near = _near(view, table, affinity)
        if affinity.anti:
            return ~near
        # The first task of a service with an affinity to itself has no task to be near to.
        alone = rule.of_services and own is not None and _names(rule, own) and not near.any()
        return np.ones_like(near) if alone else near

    return Filter(check, words, lasting=not rule.of_services)


def _anti_affinity_of(other: Service, affinity: Affinity) -> Filter:
    def check(table: NodeTable) -> BoolArray:
        return ~_zoned(table, table.tasks_of_service(other.id) > 0, affinity.within)

    return Filter(check, f"service {other.spec.name} has an anti-affinity to it")


def _near(view: ClusterView, table: NodeTable, affinity: Affinity) -> BoolArray:
    rule = affinity.parsed
    if not rule.of_services:
        return table.each_node(("rule", affinity.rule), lambda node: satisfies_rule(rule, node))
    near = np.zeros(len(table.nodes), dtype=np.bool_)
    for service in view.services.values():
        if _names(rule, service):
            near |= table.tasks_of_service(service.id) > 0
    return _zoned(table, near, affinity.within)


def _zoned(table: NodeTable, marked: BoolArray, within: str) -> BoolArray:
    """The marked nodes, and with an attribute all that have the same value of it."""
    if not within:
        return marked
    values = [read_attribute(node, within) for node in table.nodes]
    zones = {value for value, mark in zip(values, marked, strict=True) if mark and value}
    return np.array([value in zones for value in values], dtype=np.bool_)


def _names(rule: Rule, service: Service) -> bool:
    """Whether a rule about services is about this one."""
    if rule.attribute == SERVICE:
        return rule.accepts(service.spec.name)
    return rule.accepts(service.spec.labels.get(rule.attribute.removeprefix(SERVICE_LABELS)))
