# SPDX-License-Identifier: Apache-2.0
"""Layers and containers' files as tar streams: unpacking, diffing, exporting.

The content of a tar, and files that a running container changes, are not trusted. So `untar` and
`rootreader` are separate programs, confined to the files that they work on, which `unpack` and
`rootfiles` start. Where layers are kept is decided in the store.
"""
