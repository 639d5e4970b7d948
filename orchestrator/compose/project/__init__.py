# SPDX-License-Identifier: Apache-2.0
"""Projects: reads several files into one tree.

YAML, variables, env files, `include`, `extends`, profiles and merging, and rendering the result as
one file. Not here: which keys exist (`schema`).
"""
