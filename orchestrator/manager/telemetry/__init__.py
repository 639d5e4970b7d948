# SPDX-License-Identifier: Apache-2.0
"""What operators and their tools observe: events, metrics, task traces, scrape targets."""
