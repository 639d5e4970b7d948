# SPDX-License-Identifier: Apache-2.0
"""Traces (opentelemetry.io): who waited for what, from a user's call to the process that runs.

`spans` is what the code calls; `configuration` decides whether spans are made; `otlp` alone imports
OpenTelemetry, where traces are asked for.
"""
