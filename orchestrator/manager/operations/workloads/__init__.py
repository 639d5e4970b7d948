# SPDX-License-Identifier: Apache-2.0
"""Operations on services, jobs and containers, and streams to running containers."""
