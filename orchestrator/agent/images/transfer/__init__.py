# SPDX-License-Identifier: Apache-2.0
"""Images on their way to and from a node: registries, other nodes, archives and layouts.

The source of an image is chosen in `images.pulls`; which images are kept, in the store.
"""
