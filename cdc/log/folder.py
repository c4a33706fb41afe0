"""The folder of an embedded log: what is where, whether it is ours, who may write, how much room is left.

    writer.lock                                flock of the one writer, with its pid
    segments/<first checkpoint number>.sqlite  the log; `segments` appears at once, with its first file: a log exists or does not
    schemas.sqlite  signals.sqlite  readers.sqlite

A folder that lacks `segments` but has anything else of these is a damaged log, never a new one (rule R3).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cdc.errors import CdcError
from cdc.log.checkpoint import random_id
from cdc.log.database import companions, give_to_owner_of, remove_file, sync_folder

SIDE_FILES = ("schemas.sqlite", "signals.sqlite", "readers.sqlite")
LEFT_S = 60.0  # nobody takes that long to make a file
_SEGMENT = re.compile(r"(\d{16})\.sqlite\Z")
# POSIX locks or shared memory maps are not dependable on these.
_REMOTE = re.compile(
    r"(nfs\d*|cifs|smb\d*|smbfs|9p|afs|ceph|lustre|glusterfs|ocfs2|gfs2|beegfs|davfs|ncpfs"
    r"|fuse\.(sshfs|glusterfs|rclone|s3fs|gcsfuse|ceph|davfs2?|cephfs|smbnetfs|curlftpfs|goofys|mount-s3))\Z"
)


def filesystem_type(path: str, mounts: str) -> str:
    """The type of the file system that holds `path` (absolute, resolved), from the text of /proc/self/mounts."""
    best, found = -1, "unknown"
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # of two mounts on one point the later one is seen
            best, found = len(point), fields[2]
    return found


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > LEFT_S
    except FileNotFoundError:
        return False


class Folder:
    """Paths of one log. Construction checks the folder itself, and makes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.segments = path / "segments"
        try:
            found = path.lstat()
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise self._denied(error) from error
        if found is not None:
            self._check(found)
        self._check_local()

    def _check(self, found: os.stat_result) -> None:
        if stat.S_ISLNK(found.st_mode):
            raise CdcError("CDC-LOG-102", "it is a symbolic link", where=str(self.path))
        if not stat.S_ISDIR(found.st_mode):
            raise CdcError("CDC-LOG-102", "it is not a folder", where=str(self.path))
        if os.geteuid() not in (0, found.st_uid):
            raise CdcError(
                "CDC-LOG-102", f"it belongs to user {found.st_uid}, not to {os.geteuid()}", where=str(self.path)
            )

    def _check_local(self) -> None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape")
        except OSError:
            return  # not Linux, or no /proc: nothing can be told
        kind = filesystem_type(str(self.path.resolve()), mounts)
        if _REMOTE.match(kind):
            raise CdcError("CDC-LOG-306", f"the file system's type is {kind}", where=str(self.path))

    def _denied(self, error: OSError) -> CdcError:
        return CdcError("CDC-LOG-305", f"{errno.errorcode.get(error.errno or 0, 'error')}", where=str(self.path))

    def exists(self) -> bool:
        """Whether a log is here. Raises CDC-LOG-104 when only parts of one are, CDC-LOG-102 when something else is."""
        try:
            names = set(os.listdir(self.path))  # noqa: PTH208 (names, not paths)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._denied(error) from error
        if "segments" in names:
            return True
        if parts := names.intersection(SIDE_FILES):
            raise CdcError("CDC-LOG-104", f"there is {min(parts)} but no segment", where=str(self.segments))
        foreign = {name for name in names - {"writer.lock", "lost+found"} if not name.endswith(".tmp")}
        if foreign:
            raise CdcError(
                "CDC-LOG-102", f"it holds {min(foreign)!r}, which is not part of a log", where=str(self.path)
            )
        return False

    def create(self, first_segment: Callable[[Path, str], object]) -> None:
        """Make a new log. Another process may be doing the same: one of the two logs stands, whole.

        `first_segment(path, log_id)` makes the file.
        """
        try:
            self._make(first_segment)
        except OSError as error:
            if not self.segments.exists():
                raise self._denied(error) from error
        except CdcError:
            if not self.segments.exists():
                raise

    def _make(self, first_segment: Callable[[Path, str], object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
            sync_folder(self.path.parent)
        temporary = self.path / f"{random_id()}.tmp"
        temporary.mkdir(mode=0o700)
        try:
            give_to_owner_of(self.path, temporary)
            first_segment(path := temporary / self.segment(0).name, str(uuid.uuid4()))
            try:
                temporary.rename(self.segments)
            except OSError:
                remove_file(path)  # the other process was faster
                raise
        finally:
            if temporary.exists():
                temporary.rmdir()
        sync_folder(self.path)

    def segment(self, first: int) -> Path:
        return self.segments / f"{first:016}.sqlite"

    def firsts(self) -> list[int]:
        """First checkpoint numbers of the segments, ascending. Raises CDC-LOG-104 when there is none."""
        try:
            names = os.listdir(self.segments)  # noqa: PTH208
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise self._denied(error) from error
        numbers = sorted(int(found[1]) for name in names if (found := _SEGMENT.match(name)))
        if not numbers:
            raise CdcError("CDC-LOG-104", "there is no segment", where=str(self.segments))
        return numbers

    def tidy(self) -> None:
        """Remove what a crash left: unnamed files, and companions of unlinked segments. For the writer, under its lock. A young
        unnamed file may be one that a reader is just making: readers have no lock."""
        for path in (*self.segments.glob("*.tmp*"), *self.path.glob("*.tmp*")):
            if not _is_old(path):
                continue
            if path.is_dir():
                for inner in path.iterdir():
                    inner.unlink(missing_ok=True)
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        for companion in (*self.segments.glob("*.sqlite-wal"), *self.segments.glob("*.sqlite-shm")):
            if not companion.with_name(companion.name[:-4]).exists():
                companion.unlink(missing_ok=True)

    def size_bytes(self) -> int:
        total = 0
        for path in (*(self.segment(first) for first in self.firsts()), *(self.path / name for name in SIDE_FILES)):
            for part in (path, *companions(path)):
                with suppress(FileNotFoundError):
                    total += part.stat().st_size
        return total

    def free_bytes(self) -> int:
        """Room that this user may still fill. Raises CDC-LOG-109 when the folder is gone."""
        try:
            room = os.statvfs(self.segments)
        except OSError as error:
            raise CdcError("CDC-LOG-109", "the folder is gone", where=str(self.segments)) from error
        return room.f_bavail * room.f_frsize


class WriterLock:
    """The flock of a log's writer, on a file of its own, held until `release`; the kernel drops it when the process dies."""

    def __init__(self, folder: Folder) -> None:
        self._path = folder.path / "writer.lock"
        self._folder, self._handle = folder, -1

    def acquire(self) -> None:
        """Raises CDC-LOG-201, naming the holder's pid, at once when another holds it. Holding it already is fine, unless the file was
        removed meanwhile: then that lock means nothing, and it is taken anew."""
        if self._handle >= 0:
            if self._is_current():
                return
            self.release()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(self._path, flags, 0o600)
            give_to_owner_of(self._folder.path, self._path)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._handle, 32, 0).decode("ascii", "replace").strip() if self._handle >= 0 else ""
            self.release()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES) and holder:
                raise CdcError("CDC-LOG-201", f"process {holder} holds it", where=str(self._path)) from error
            if error.errno == errno.EWOULDBLOCK:
                raise CdcError(
                    "CDC-LOG-201", "a process that is just starting holds it", where=str(self._path)
                ) from error
            raise CdcError(
                "CDC-LOG-305", errno.errorcode.get(error.errno or 0, "error"), where=str(self._path)
            ) from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
