# SPDX-License-Identifier: Apache-2.0
"""Images on their way to and from a node: registries, other nodes, archives and layouts.

Which of them an image is fetched from is decided in `agent`; what is kept, in the store.
"""
