# SPDX-License-Identifier: Apache-2.0
"""The testbed of `vagrant/` on virtual machines, as `vagrant up` makes it, and what it is for.

    box          Debian with what the packages depend on, made of Debian's packages
    hypervisor   libvirt in namespaces of its own, which end with the tests
    machines     what a test can do: Vagrant's verbs, a command as root, the plug
    conftest     the packages built, `vagrant up`, and a context for this machine's `orc`
    on_machines  what is tried

The packages are built here, by `scripts/deb`; the machines are provisioned by `vagrant/provision`,
as real hosts are. Commands are this machine's `orc`, which is not emulated, and reach the manager
through its private address.
"""
