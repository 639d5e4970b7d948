# SPDX-License-Identifier: Apache-2.0
"""`orc top` and `orc stats`: resource usage, live."""
