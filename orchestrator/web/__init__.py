# SPDX-License-Identifier: Apache-2.0
"""What Orc serves over HTTPS: metrics of managers and agents, service discovery, the web page.

gRPC is for Orc's own clients; HTTPS is for Prometheus and browsers. The server is uvicorn on the
host's own certificate, so a client verifies it with the cluster's CA (`manager.orc` and `node.orc`
are the names in it). A caller presents a certificate of the cluster, or a token.

Files: `https` (the listener: TLS 1.3, the caller's certificate), `scrape` (`/metrics`, and who may
read it). Managers and agents provide the content.
"""
