"""Runs one command and notes what it took, as a process so small that it adds nothing to the figures.

A new process begins its peak of memory with that of the one that starts it: started from a test run of a
gigabyte, each command seems to take a gigabyte.

Usage: launcher.py FILE BYTES COMMAND...; the figures go to FILE as JSON, BYTES is the limit of address space.
"""

import json
import os
import resource
import sys


def main(usage_file: str, address_space: str, *command: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (int(address_space), int(address_space)))
            os.execv(command[0], command)
        finally:
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    with open(usage_file, "w", encoding="utf-8") as file:
        figures = {
            "code": os.waitstatus_to_exitcode(status),
            "bytes": usage.ru_maxrss * 1024,
            "seconds": usage.ru_utime + usage.ru_stime,
        }
        json.dump(figures, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
