# SPDX-License-Identifier: Apache-2.0
"""Docker's commands on images, registries and builds."""
