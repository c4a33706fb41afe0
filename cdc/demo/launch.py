"""Become another program, as another user, that dies with its parent: `python -I -S launch.py PARENT UID GID SIGNAL PROGRAM ARG…`.

Runs between fork and exec in a process of its own instead of in `preexec_fn`, which is unsafe, and warns, beside threads.
The order is the invariant: the kernel forgets the parent-death signal when the user changes, so it is asked for last.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, uid: int, gid: int, signal: int, command: list[str]) -> None:
    """Drop to `uid` and `gid` when we are root, arrange to get `signal` when `parent` ends, and become `command`."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0)
        if os.getppid() != parent:  # It ended before we asked: nobody would ever tell us.
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - replacing ourselves by the program is the point, and there is no shell


if __name__ == "__main__":
    parent, uid, gid, signal = map(int, sys.argv[1:5])
    main(parent, uid, gid, signal, sys.argv[5:])
