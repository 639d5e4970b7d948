# SPDX-License-Identifier: Apache-2.0
"""Operations on images, which live on nodes, and on registries."""
