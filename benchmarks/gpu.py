"""Everything about speed that needs a GPU, by one command and within eight minutes: checks, ratios, images a second.

    PYTHONPATH=src python benchmarks/gpu.py --out DIR [--device cuda] [--quick] [--only pace,bench]

Needs a checkout and what the library itself needs, not its pinned versions; what is missing, pytest included, costs the
part that wants it, and the report says so. Each part (`gpu_parts.py`, `gpu_checks.py`) runs in a process of its own and
with a time limit, so that one that fails leaves the others alone. DIR gets gpu.json, gpu.txt (what is printed) and what
the parts wrote. `--device cpu --quick` runs all that a CPU can, on small models: to see that the script works, not for
figures. Exit code 1 where a part failed or a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Part -> seconds it may take: 480 together.
PARTS = {"machine": 20, "tests": 90, "equality": 70, "synchronisation": 30, "bench": 90, "pace": 150, "profile": 30}
HERE = Path(__file__).parent


def run_part(name: str, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """What a part found: its own dictionary, or `failed` with the end of what it said."""
    result = args.out / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "gpu_parts.py"), name, "--device", args.device, "--out", str(args.out)]
    if args.quick:
        command.append("--quick")
    start = time.monotonic()
    # A group of its own: what the part has started, such as compilers, ends with it.
    part = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = part.communicate(timeout=seconds)
        said, status = err or out, f"exit code {part.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(part.pid, signal.SIGKILL)
        said, status = part.communicate()[1], f"more than {seconds:.0f} seconds"
    found: dict[str, Any] = {}
    if result.exists():
        found = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
    if status != "exit code 0":
        found["failed"] = f"{status}: {said[-2000:]}"
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def in_words(name: str, found: dict[str, Any]) -> list[str]:
    """The lines of the report on a part."""
    lines = [f"{name} ({found['seconds']} s)"]
    for key, value in found.items():
        if key == "seconds" or value == []:
            continue
        if isinstance(value, dict):
            lines.append(f"  {key}")
            lines += [f"    {inner}: {_short(of)}" for inner, of in value.items()]
        else:
            lines.append(f"  {key}: {_short(value)}")
    return lines


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"expected --only to name some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    lines: list[str] = []
    for name in chosen:
        # On a CPU the limits would say nothing; there is no lease that runs out.
        found[name] = run_part(name, PARTS[name] if args.device.startswith("cuda") else 3600, args)
        lines += in_words(name, found[name])
        print("\n".join(in_words(name, found[name])), flush=True)
        # Written after each part: what was measured stays, whatever comes.
        (args.out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (args.out / "gpu.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    missed = [f"{name}: {goal}" for name, part in found.items() for goal in part.get("missed", [])]
    failed = [name for name, part in found.items() if "failed" in part]
    print(f"failed: {', '.join(failed) or 'none'}; missed: {'; '.join(missed) or 'none'}")
    sys.exit(1 if failed or missed else 0)


if __name__ == "__main__":
    main()
