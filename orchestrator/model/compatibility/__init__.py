# SPDX-License-Identifier: Apache-2.0
"""Which releases of Orc work together, and what a cluster of several may use already.

    releases          versions, and the skew that is supported
    manager_features  behaviour that begins only when every manager knows it, the schema included
    agent_features    requirements of tasks that an older agent would ignore

Not here: how the store's schema is changed (`manager.cluster.schema`), and what is in the way of an
upgrade (`cli.cluster.upgrade_check`).
"""
