# SPDX-License-Identifier: Apache-2.0
"""Endpoints of functions that a cluster does not have: Docker's managed plugins, and others."""

from __future__ import annotations

from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.errors import not_found, unsupported
from orchestrator.dockerapi.http.exchange import Reply, Request
from orchestrator.dockerapi.http.routing import Handler, Routes
from orchestrator.dockerapi.parameters import filters

ROUTES = Routes()
route = ROUTES.route

_PLUGINS = "plugins are installed on the nodes, not by the API"


def _refusal(reason: str) -> Handler:
    def refuse(gateway: Gateway, request: Request) -> Reply:
        raise unsupported(reason)

    return refuse


@route("GET", "/plugins", "always empty: plugins of nodes are in `GET /info`", filters="ignored")
def list_plugins(gateway: Gateway, request: Request) -> Reply:
    """No managed plugins."""
    filters(request, ("capability", "enabled"))
    return Reply([])


@route("GET", "/plugins/{name}/json", "always 404: see `GET /plugins`")
def inspect_plugin(gateway: Gateway, request: Request) -> Reply:
    """None of them."""
    raise not_found("plugin", request["name"])


for _method, _path in (
    ("GET", "/plugins/privileges"),
    ("POST", "/plugins/pull"),
    ("POST", "/plugins/create"),
    ("DELETE", "/plugins/{name}"),
    ("POST", "/plugins/{name}/enable"),
    ("POST", "/plugins/{name}/disable"),
    ("POST", "/plugins/{name}/upgrade"),
    ("POST", "/plugins/{name}/push"),
    ("POST", "/plugins/{name}/set"),
):
    route(_method, _path, f"refused: {_PLUGINS}")(_refusal(_PLUGINS))

_VOLUMES = "cluster volumes of CSI plugins are not supported"
route("PUT", "/volumes/{name}", f"refused: {_VOLUMES}")(_refusal(_VOLUMES))
