# SPDX-License-Identifier: Apache-2.0
"""`orc volume`, `orc secret` and `orc config`: data and files for containers."""
