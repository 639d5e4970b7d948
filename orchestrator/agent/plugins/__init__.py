# SPDX-License-Identifier: Apache-2.0
"""Docker's plugin API, for volume and network plugins: discovery, HTTP calls, retries.

What volume plugins are asked is in `volumes.plugin_driver`, network plugins in
`netplugins.remote_driver`.
"""
