"""What a body leaves behind in its process: put back as it was, or found to be there for good."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading

__all__ = ["Traces", "heed_no_signals"]

#: seconds that threads of a body are given to end by themselves
THREADS = 0.05


class Traces:
    """Knows what a body finds and may change: streams, the folder, the umask, timers; and whose
    processes and threads are whose."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._own = set(_children())
        self._streams = sys.stdout, sys.stderr
        self._files = [self._file(fd) for fd in (1, 2)]
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._folder: int | None = None
        with contextlib.suppress(OSError):  # it may not be ours to read
            self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)

    def _restore(self) -> bool:
        """Put things back for the next body; False if that cannot be."""
        sys.stdout, sys.stderr = self._streams
        for number in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(number, 0)
        heed_no_signals()
        os.umask(self._umask)
        try:
            if self._folder is not None:
                os.fchdir(self._folder)
            # What the body has made of them cannot be undone for all that write there.
            return not any(stream.closed for stream in self._streams) and self._files == [
                self._file(fd) for fd in (1, 2)
            ]
        except OSError:
            return False

    @staticmethod
    def _file(fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino

    def flush(self) -> None:
        """Bring what was printed on its way before the outcome is."""
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):  # the body may have closed or replaced it
                getattr(sys, name).flush()
        self._libc.fflush(None)

    def remain(self, threads: int | None) -> bool:
        """Put things back for the next body; True if something of this one goes on for ever.

        ``threads``: how many there were before it, if it ran alone.
        """
        if not self._restore() or self._left_processes():
            return True
        return threads is not None and self._left_threads(threads)

    def _left_processes(self) -> bool:
        """Whether processes of the body live on; those that have ended are collected."""
        left = False
        for pid in _children():
            if pid not in self._own:
                try:
                    left |= os.waitpid(pid, os.WNOHANG)[0] == 0
                except ChildProcessError:
                    continue
        return left

    def _left_threads(self, before: int) -> bool:
        if threading.active_count() <= before:
            return False
        left = False
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                thread.join(THREADS)
                left |= thread.is_alive() and "qnb-task" not in thread.name
        return left


def _children() -> list[int]:
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return []  # nearly always; one cheap call
    import psutil

    return [child.pid for child in psutil.Process().children()]


def heed_no_signals() -> None:
    """The supervisor decides when to stop, also when it gets the same signal as this process.

    A handler that does nothing, for a program that a body starts would inherit that a signal is
    ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not _nothing:
            signal.signal(number, _nothing)
            signal.siginterrupt(number, False)


def _nothing(*_: object) -> None:
    """Not for this process."""
