# SPDX-License-Identifier: Apache-2.0
"""Tracing with OpenTelemetry, from a user's call to the running container.

`spans` is the interface that code calls; `configuration` decides whether tracing is enabled; only
`otlp` imports OpenTelemetry, and only if it is.
"""
