# SPDX-License-Identifier: Apache-2.0
"""`orc cluster`, `orc node`, `orc context`: members, access, and which cluster is called."""
