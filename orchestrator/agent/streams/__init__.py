# SPDX-License-Identifier: Apache-2.0
"""Streams that managers request beside the session, one module per kind of request.

`tunnels` opens a stream for each `OpenTunnel` and dispatches to a handler: exec and attach, files
into and out of containers, images and builds, logs. Requests about resource usage are in
`telemetry`, about volumes in `volumes`, diagnoses in `diagnostics`.
"""
