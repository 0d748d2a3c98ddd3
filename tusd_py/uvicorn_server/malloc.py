"""Settings of the C library's memory allocator, for a server that receives in large buffers."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
KEPT_SIZE = 128 << 20  # bytes free at the end of the heap before the kernel gets them back
MAX_ARENAS = 1  # with an arena for each thread, others could not use the memory that a thread has freed
MAX_HEAP_PIECE = 32 << 20  # bytes; larger pieces are mapped and unmapped one by one


def tune_malloc() -> bool:
    """Keep the pages of freed buffers instead of faulting them in again for every message; glibc only.

    The default settings map and unmap every buffer of 128 KiB and more: a third of a million page faults for a GiB.
    Call it before any thread is started, which fixes the number of heaps. Returns whether the settings were accepted.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {M_MMAP_THRESHOLD: MAX_HEAP_PIECE, M_TRIM_THRESHOLD: KEPT_SIZE, M_ARENA_MAX: MAX_ARENAS}
    return all(mallopt(parameter, value) for parameter, value in wanted.items())
