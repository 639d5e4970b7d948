# SPDX-License-Identifier: Apache-2.0
"""What goes into and comes out of a container: attach, exec, log files.

How bytes travel on to a client is the business of the agent's streams; how logs are shipped, of its
logging drivers.
"""
