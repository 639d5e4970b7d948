# SPDX-License-Identifier: Apache-2.0
"""The schema: which keys a file may have, as data, each with the kind of its value.

A kind checks a value, brings its short forms into the long one, and merges two. Not here: what the
keys mean in a cluster (`conversion`).
"""
