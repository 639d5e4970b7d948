# SPDX-License-Identifier: Apache-2.0
"""The control plane under load: a real manager and etcd, and many simulated agents."""
