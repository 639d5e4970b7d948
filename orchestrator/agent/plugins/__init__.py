# SPDX-License-Identifier: Apache-2.0
"""Docker's plugin API, for volume and network plugins: discovery, HTTP calls, retries.

The calls to volume plugins are in `volumes.plugin_driver`, those to network plugins in
`netplugins.remote_driver`.
"""
