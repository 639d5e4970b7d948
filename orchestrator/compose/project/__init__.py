# SPDX-License-Identifier: Apache-2.0
"""Projects: the texts of several files become one tree.

YAML, variables, env files, `include`, `extends`, profiles and merging, and writing the result as
one file. Not here: which keys there are (`schema`).
"""
