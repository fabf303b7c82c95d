"""Files that are whole after a crash: written aside, flushed, renamed; folders flushed; folders locked."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

ASIDE = ".tmp-"
"""How names of unfinished files begin."""


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`: a reader finds what was there before or all of it, never a part.

    The new name survives a loss of power once the folder is flushed too, with `flush_folder`.
    """
    aside = path.with_name(f"{ASIDE}{secrets.token_hex(8)}")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            # Before the rename: some file systems write names earlier than contents.
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot, and flush names on their own.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def move_folder(folder: Path, target: Path) -> None:
    """Rename a folder beside itself, and make that survive a loss of power."""
    os.rename(folder, target)
    flush_folder(target.parent)


def discard(path: Path) -> None:
    """Remove a folder with all that is in it, or the link to one; what resists stays for another time."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def lock(path: Path) -> int:
    """Take the lock file at `path` until the descriptor is closed or the process ends, however it ends.

    Raises:
        BlockingIOError: where another process has it; `strerror` says which.
        OSError: where the file cannot be written, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOTSUP, "it needs file locks as Linux and macOS have them") from None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise BlockingIOError(errno.EWOULDBLOCK, f"process {holder or 'unknown'} holds it") from None
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
