# SPDX-License-Identifier: Apache-2.0
"""Operations on the cluster itself: settings, nodes, certificates, audit trail, web sessions."""
