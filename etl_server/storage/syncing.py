"""Many files to disk at once: a file system as a whole where it can be relied on, else file by file."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

_FEW = 4
"""Files up to which each is synced by itself."""
_THREADS = 16
_WHOLE = frozenset(("ext4", "xfs", "f2fs", "tmpfs"))
"""File systems that write all of their files to disk in one go, and tell when they could not."""
_REPORTING_SINCE = (5, 8)
"""The Linux since which syncfs() tells of data that could not be written."""


def sync_all(files: Sequence[tuple[int, str]]) -> list[OSError | None]:
    """Have all files, each by a directory's descriptor and its name there, on disk.

    Returns:
        For each why it is not, or None.
    """
    one_by_one: dict[int, tuple[int, str]] = {}
    by_device: dict[int, list[int]] = {}
    devices: dict[int, int] = {}
    results: list[OSError | None] = [None] * len(files)
    for index, (directory, _) in enumerate(files):
        if directory not in devices:
            devices[directory] = os.fstat(directory).st_dev
        by_device.setdefault(devices[directory], []).append(index)
    for device, indices in by_device.items():
        if len(indices) > _FEW and _syncs_as_a_whole(device):
            error = _sync_file_system(files[indices[0]][0])
            for index in indices:
                results[index] = error
        else:
            one_by_one.update((index, files[index]) for index in indices)
    if len(one_by_one) == 1:
        for index, file in one_by_one.items():
            results[index] = _sync_file(file)
    elif one_by_one:
        with ThreadPoolExecutor(min(_THREADS, len(one_by_one))) as pool:
            for index, error in zip(one_by_one, pool.map(_sync_file, one_by_one.values()), strict=True):
                results[index] = error
    return results


def _sync_file(file: tuple[int, str]) -> OSError | None:
    directory, name = file
    try:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    return None


def _sync_file_system(descriptor: int) -> OSError | None:
    """Sync the file system that an open directory is in."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) == 0:
        return None
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


@cache
def _syncs_as_a_whole(device: int) -> bool:
    release = os.uname().release.split(".")
    if tuple(int(part) for part in release[:2] if part.isdigit()) < _REPORTING_SINCE:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    mounts = [line.partition(" - ") for line in lines]
    return any(mount.split()[2] == number and kind.split()[0] in _WHOLE for mount, _, kind in mounts)
