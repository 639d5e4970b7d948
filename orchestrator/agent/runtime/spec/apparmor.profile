# What AppArmor keeps from containers, loaded by each agent at its start. It repeats what namespaces,
# capabilities, masked paths and seccomp already refuse, so that a flaw in one of them is not enough.
profile orc-default flags=(attach_disconnected, mediate_deleted) {
  capability,
  file,
  network,
  umount,
  unix,

  # Its own processes, and those of the node that run it.
  signal (send, receive) peer=orc-default,
  signal (receive) peer=unconfined,
  signal (receive) peer=crun,
  signal (receive) peer=runc,
  ptrace (read, readby, trace, tracedby) peer=orc-default,
  ptrace (readby, tracedby) peer=unconfined,

  deny mount,

  # As seccomp, which does not see the arguments of the 32-bit call socketcall: the kernel's
  # cryptography, and the hypervisor.
  deny network alg,
  deny network vsock,

  # The kernel's settings, and its memory.
  deny /proc/* w,
  deny /proc/{acpi,bus,fs,irq,scsi,sys}/** wklx,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/{kcore,kmem,mem} rwklx,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/{debug,security,tracing}/** rwklx,
}
