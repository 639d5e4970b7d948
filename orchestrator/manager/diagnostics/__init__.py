# SPDX-License-Identifier: Apache-2.0
"""Fault finding: the network doctor and support bundles.

`network_doctor` has nodes test their paths to each other, `path_measurements` holds the results,
`path_diagnosis` (pure) names causes and remedies.
"""
