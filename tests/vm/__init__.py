# SPDX-License-Identifier: Apache-2.0
"""Orc on other kernels than this machine's: in virtual machines, each of which is a test.

Which cgroup version a host has, and which modules its kernel, cannot be tried in a namespace: the
kernel is one, and a controller belongs either to version 1 or to version 2. So `make vm-test` boots
Debian's kernels in QEMU. It emulates the processor where there is no KVM, which is slow (some 20
times), so what runs inside is little and has much time.

**No disk image.** The virtual machine's root folder is this machine's, read-only over 9p, with an
overlay in memory on top: what is installed here, the virtual environment and this very tree are
there, and nothing that happens inside gets out. What must be its own (`/run`, `/tmp`, the state of
dev clusters) is a tmpfs. It has no network to the outside.

    kernel      Debian's packages, unpacked and not installed; the modules that it needs, in order
    cpio        the initramfs: busybox, modules, `init`
    machine     one boot of QEMU: what it printed, and the exit status of what ran in it
    init        process 1 inside: loads modules, mounts, runs the command, switches off
    on_cgroups  what is tried inside on each cgroup version
    no_vxlan    what is tried inside where the kernel lacks VXLAN
    wireguard   encrypted networks in a kernel that has WireGuard, as this machine's may not: hosts
                are namespaces, so what is lost, seen and refused is looked at packet by packet
    between_hosts   the same between two machines, which have a cable (10.99.0.0/24) to each other.
                Manager and commands are on this machine, and so not emulated; what a test wants
                done in a machine, `hand` does there, and `echo` is the containers' stream

    testbed     the testbed of `vagrant/`: machines with a Debian of their own, made by Vagrant and
                libvirt, where systemd runs what the package brought

The modules of tests are named so that `make test` does not collect them.

Debian 13's kernel has no memory and no cpuset controller for cgroup version 1 any more
(CONFIG_MEMCG_V1, CONFIG_CPUSETS_V1), so that version is tried on Debian 12's.
"""
