# SPDX-License-Identifier: Apache-2.0
"""Shell completion of names that live in the cluster. Imported only while a shell completes."""
