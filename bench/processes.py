"""Processes of a benchmark: pinned to cores, watched through /proc, and stopped by their ids."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_OWN = ("AIS_", "ETL_", "DIRECT_PUT", "BENCH_", "MAX_CONN", "NUM_WORKERS")


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without anything that would configure a server, and `extra`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OWN)} | dict(extra)


def pinned(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """`command`, on these cores only."""
    return ["taskset", "-c", ",".join(map(str, cores)), *command]


class Process:
    """A process of a benchmark, with its children. Leaving its context stops it."""

    def __init__(
        self, command: Sequence[str], *, cores: Sequence[int], log: Path, environment: Mapping[str, str], cwd: Path
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                pinned(command, cores),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=clean_environment(environment),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def pids(self) -> list[int]:
        """The process and all below it."""
        return tree(self._popen.pid)

    def tail(self, lines: int = 6) -> str:
        """The end of what it printed."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """End it at once, with its children. It leads a session of its own, so nothing else is hit."""
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def stop(self) -> None:
        """Ask it to end; end it where it does not."""
        self._popen.terminate()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            pass
        self.kill()
        self._popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def tree(root: int) -> list[int]:
    """A process and all below it, by their ids."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def reset_peak(pids: Sequence[int]) -> None:
    """Let the peak of memory count from now on."""
    for pid in pids:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            pass


def peak_memory(pids: Sequence[int]) -> int:
    """The sum of the peaks of resident memory, in bytes."""
    return sum(_status_kib(pid, "VmHWM:") for pid in pids) * 1024


def resident_memory(pids: Sequence[int]) -> int:
    """The resident memory of now, in bytes."""
    return sum(_status_kib(pid, "VmRSS:") for pid in pids) * 1024


def cpu_seconds(pids: Sequence[int]) -> float:
    """The CPU time that the processes have used."""
    total = 0
    for pid in pids:
        if fields := _stat(pid):
            total += int(fields[11]) + int(fields[12])
    return total * _TICK


def core_seconds(core: int) -> float:
    """The time that a core has been busy with processes, or was taken by the machine's host."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, steal = (int(fields[index]) for index in (0, 1, 2, 7))
            return (user + nice + system + steal) * _TICK
    raise ValueError(f"no core {core}")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the command: state, parent, …; None where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _status_kib(pid: int, field: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
