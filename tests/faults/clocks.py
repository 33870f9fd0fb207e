"""Processes whose clocks lie: ahead, behind, jumping while they run, or stopped for a sleep.

What Python is told of wall time and of monotonic time is shifted, in the process and in all that
it starts, from its first line on; not what C code and ``datetime.now()`` read, as qnb asks neither.
A server's clock is set by a library that is loaded before its own.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

from tests.conftest import unavailable

_ROOT = Path(__file__).parents[2]

#: read by every Python that finds it on its path
_SITE = """\
import mmap, os, struct, time

with open(os.environ["QNB_TEST_CLOCK"], "rb") as _file:
    _shifts = mmap.mmap(_file.fileno(), 24, prot=mmap.PROT_READ)


def _shifted(name, place):
    real, unit = getattr(time, name), 1 if name.endswith("_ns") else 1e9

    def now(*clock):
        shift = struct.unpack_from("q", _shifts, place)[0]
        return real(*clock) + (shift if unit == 1 else shift / unit)

    setattr(time, name, now)


for _name in ("time", "time_ns"):
    _shifted(_name, 0)
for _name in ("monotonic", "monotonic_ns"):
    _shifted(_name, 8)
_shifted("clock_gettime_ns", 16)
"""

_SHIM = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *shift;
static int (*real)(clockid_t, struct timespec *);

static void begin(void) {
    int file = open(getenv("QNB_TEST_CLOCK"), O_RDONLY);
    shift = mmap(NULL, 24, PROT_READ, MAP_SHARED, file, 0);
    real = dlsym(RTLD_NEXT, "clock_gettime");
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (!real) begin();
    int failed = real(clock, t);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        t->tv_sec += *shift / 1000000000;
    return failed;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The clock of the processes that are started with its ``env``."""

    def __init__(self, folder: Path, ahead: float = 0) -> None:
        folder.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(_SITE)
        self._file = folder / "clock"
        self._wall, self._monotonic, self._steady = ahead, 0.0, 0.0
        self._set()
        paths = [str(folder), str(_ROOT), os.environ.get("PYTHONPATH", "")]
        self.env = {
            "QNB_TEST_CLOCK": str(self._file),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self._wall += seconds
        self._set()

    def missed(self, seconds: float) -> None:
        """Let the monotonic clock have stood still so long, as it does while a machine sleeps."""
        self._monotonic -= seconds
        self._set()

    def slept(self, seconds: float) -> None:
        """Let so long have passed in no time, as a machine that slept finds when it wakes."""
        self._wall += seconds
        self._steady += seconds
        self._set()

    def for_a_server(self) -> dict[str, str]:
        """The environment of a server that has this clock; it goes by whole seconds."""
        compiler = shutil.which("cc")
        if compiler is None:
            unavailable("a C compiler")
        source, library = self._file.with_suffix(".c"), self._file.with_suffix(".so")
        source.write_text(_SHIM)
        subprocess.run([compiler or "", "-shared", "-fPIC", "-o", library, source], check=True)
        return {"QNB_TEST_CLOCK": str(self._file), "LD_PRELOAD": str(library)}

    def _set(self) -> None:
        shifts = (round(each * 1e9) for each in (self._wall, self._monotonic, self._steady))
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("qqq", *shifts))
