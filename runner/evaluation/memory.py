"""The most memory that this process ever held."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """Returns the peak resident set of the calling process, in bytes.

    On Linux it is VmHWM, which starts anew with the program; ru_maxrss would inherit the parent's.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
