"""On glibc a large block comes from the heap and stays there when freed; by its own rules it is mapped and unmapped.

Asked of malloc itself (mallinfo), which counts exactly; page faults depend on the machine.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

REPORT = """
import ctypes, json, sys
from dotkd.allocator import keep_freed_memory

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Mallinfo = type("Mallinfo", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_int) for name in names]})
libc = ctypes.CDLL(None)
libc.mallinfo.restype = Mallinfo
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
granted = sys.argv[1] == "keep" and keep_freed_memory()
before = libc.mallinfo()
block = libc.malloc(SIZE)
held = libc.mallinfo()
libc.free(block)
after = libc.mallinfo()
print(json.dumps({"granted": granted, "mapped": held.hblks - before.hblks, "kept": after.arena - before.arena}))
"""
SIZE = 100 * 2**20  # more than any threshold that glibc chooses by itself


def report(word: str) -> dict[str, int]:
    code = REPORT.replace("SIZE", str(SIZE))
    done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept():
    kept = report("keep")
    assert kept["granted"]
    assert kept["mapped"] == 0
    assert kept["kept"] > 0.9 * SIZE
    plain = report("as it comes")
    assert plain["mapped"] == 1
    assert plain["kept"] < 0.1 * SIZE
