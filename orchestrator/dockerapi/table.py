# SPDX-License-Identifier: Apache-2.0
"""All endpoints."""

from __future__ import annotations

from orchestrator.dockerapi import building, images, networks, system, unsupported, volumes
from orchestrator.dockerapi.containers import files, interaction, lifecycle, output
from orchestrator.dockerapi.http.routing import Router
from orchestrator.dockerapi.swarm import documents, nodes, services

ROUTER = Router(
    system.ROUTES,
    lifecycle.ROUTES,
    interaction.ROUTES,
    output.ROUTES,
    files.ROUTES,
    images.ROUTES,
    building.ROUTES,
    networks.ROUTES,
    volumes.ROUTES,
    services.ROUTES,
    nodes.ROUTES,
    documents.ROUTES,
    unsupported.ROUTES,
)
