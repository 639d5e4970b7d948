# SPDX-License-Identifier: Apache-2.0
"""HTTP as Docker's clients speak it: Unix sockets, endless streams, and connections that turn into
raw streams."""
