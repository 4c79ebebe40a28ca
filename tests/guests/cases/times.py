#!/usr/bin/env python3
"""times.py CLIENT HOLDFAST: how long the deaths of a device took, by what verbs-death and holdfast's log say of them. To be run in the
same boot: one has the time of day, the other that since boot."""

import re
import sys
import time
from datetime import datetime, timezone


def human(seconds):
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def spread(seconds):
    """Nearest ranks."""
    seconds = sorted(seconds)
    at = [seconds[max(0, -(-len(seconds) * share // 100) - 1)] for share in (50, 90, 99, 100)]
    return "p50 {}, p90 {}, p99 {}, max {}".format(*map(human, at)) + f" of {len(seconds)}"


def main(client, holdfast):
    boot = time.time() - time.monotonic()
    times, finals, gates, sign = {}, [], [], None
    for line in open(client, errors="replace"):
        took = re.match(r"[0-9.]+ time (\S+) (-?[0-9.]+)$", line)
        if took:
            times.setdefault(took[1], []).append(float(took[2]))
        event = re.match(r"([0-9.]+) event DEVICE_FATAL/0$", line)
        if event:
            finals.append(float(event[1]))
    for line in open(holdfast, errors="replace"):
        words = re.match(r"holdfast\[\d+\] (\S+)Z (\w+): (.*)", line)
        if not words:
            continue
        at = datetime.fromisoformat(words[1]).replace(tzinfo=timezone.utc).timestamp()
        if ": opened, served by" in words[3]:
            # Two threads that append at once to a file of the host's may lose a line: no sign waits for the next death's gate.
            sign = None
        elif words[2] == "warn" and sign is None:
            sign = at
        elif words[3].endswith("gate closed") and sign is not None:
            times.setdefault("sign_to_gate_closed", []).append(at - sign)
            gates.append(at - boot)
            sign = None
    if len(gates) == len(finals):
        # Less than nothing: before the program's own thread had read the event.
        times["final_event_to_gate_closed"] = [gate - final for gate, final in zip(gates, finals)]
    for name in sorted(times, key=lambda name: ("gate" not in name, name)):
        print(f"{name}: {spread(times[name])}")


main(*sys.argv[1:])
