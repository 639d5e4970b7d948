# SPDX-License-Identifier: Apache-2.0
"""Calls of a manager's API: gRPC over HTTP/2 and mutual TLS, without gRPC's modules.

`client` is what commands use; the other modules are its own.
"""
