# What a workspace may do where the kernel has AppArmor; loaded before a start. A second wall behind the capabilities,
# the filter of system calls and the masked paths: it says nothing that they allow to be undone.
profile skep-workspace flags=(attach_disconnected, mediate_deleted) {
  file,
  network,
  unix,
@CAPABILITIES@

  # Any process of the host that may kill may kill this one; from inside only its like can be reached.
  signal (receive),
  signal (send) peer=skep-workspace,
  ptrace (trace, read, tracedby, readby) peer=skep-workspace,

  deny mount,
  deny remount,
  deny umount,
  deny pivot_root,

  # The kernel's own switches: all of /proc that is no process's, and all of /sys.
  deny /proc/* wkl,
  deny /proc/[^0-9]*/** wklx,
  deny /proc/{acpi,asound,interrupts,kcore,keys,latency_stats,sched_debug,scsi,timer_list,timer_stats}{,/**} rwklx,
  deny /proc/sysrq-trigger rwklx,
  deny /sys/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** r,
}
