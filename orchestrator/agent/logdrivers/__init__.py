"""Logging drivers: sends what containers write to files, journald or syslog.

conmon keeps the newest lines of each container in files on the node, and `orc logs` reads them. A
driver that sends lines elsewhere reads the same files (`source`), remembers how far it has come
(`state`), and gives the lines to a target (`jsonfile`, `journald`, `syslog`). So the files are its
buffer: a target that is slow or gone holds up no container, an agent that is restarted continues
where it was, and what is more than the buffer is dropped, counted and reported.
"""
