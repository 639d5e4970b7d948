# SPDX-License-Identifier: Apache-2.0
"""Operations on networks, volumes, secrets and configs, and on the disk space that they take."""
