"""pytests.py PROVIDER VARIANT OUT LOG: runs rdma-core's tests, forking for each so that no test can take others down.

Adds to OUT/plan.tsv and OUT/results.tsv one row a test, named pyverbs/MODULE.CLASS.TEST. Ends with 0 when all tests ran
and the provider that served them is the one meant; whether a test passed is for the reader of the rows.
"""

import gc
import os
import random
import select
import signal
import sys
import time
import unittest

VENDORS = ("test_mlx5", "test_efa", "test_cuda", "test_hns")
LIMIT = 180  # seconds for one test
ROOT = "/usr/src/rdma-core"

provider, variant, out, log = sys.argv[1:]
sys.path[:0] = [ROOT, ROOT + "/tests"]
sys.argv[1:] = ["--dev", "rxe0", "--port", "1", "--gid", "1"]

from args_parser import parser  # noqa: E402

parser.parse_args()
import tests  # noqa: E402


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def left_out(test):
    """The driver of 5.10 makes queue pairs of raw packets, whose sends never complete; holdfast refuses, as later drivers do."""
    return os.uname().release.startswith("5.10.") and "_raw_qp" in test.id()


def collect():
    names = sorted(f[:-3] for f in os.listdir(ROOT + "/tests") if f.startswith("test_") and f.endswith(".py"))
    for name in names:
        if not name.startswith(VENDORS):
            module = sys.modules["tests." + name]
            yield from flatten(unittest.defaultTestLoader.loadTestsFromModule(module))


def wrong_provider():
    """What the maps of this process say against the run, if anything."""
    with open("/proc/self/maps") as maps:
        text = maps.read()
    has = {"holdfast": "libholdfast" in text, "stock": "librxe-rdmav" in text}
    if provider == "holdfast" and not has["holdfast"]:
        return "holdfast is not mapped"
    other = "stock" if provider == "holdfast" else "holdfast"
    return f"{other} is mapped" if has[other] else ""


def child(test, pipe):
    # What a test leaves to chance is the same with each provider.
    random.seed(test.id())
    result = unittest.TestResult()
    unittest.TestSuite([test]).run(result)
    for _, trace in result.errors + result.failures:
        print(trace)
    if result.errors or result.failures or result.unexpectedSuccesses:
        status = "fail"
        note = (result.errors + result.failures + [(None, "unexpected success")])[0][1].strip().splitlines()[-1]
    elif result.skipped:
        status, note = "skip", result.skipped[0][1]
    else:
        status, note = "pass", ""
    wrong = wrong_provider()
    result = test = None
    gc.collect()  # objects that close late close now, while a crash still counts
    sys.stdout.flush()
    note = " ".join(note.split())[:160]
    os.write(pipe, f"{status}\t{note}\t{wrong}".encode())


def run(test, logfile):
    read, write = os.pipe()
    logfile.write(f"== {test.id()}\n".encode())
    logfile.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            os.dup2(logfile.fileno(), 1)
            os.dup2(logfile.fileno(), 2)
            child(test, write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    ready, _, _ = select.select([read], [], [], LIMIT)
    answer = os.read(read, 4096).decode() if ready else ""
    os.close(read)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not ready:
        return "fail", "timed out", ""
    if not answer:
        ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        return "fail", f"crashed: {ended}", ""
    return answer.split("\t")


def main():
    everything = [test for test in collect() if not left_out(test)]
    names = ["pyverbs/" + t.id().removeprefix("tests.") for t in everything]
    with open(out + "/plan.tsv", "a") as plan:
        plan.writelines(f"{name}\t{variant}\n" for name in names)
    counts = {"pass": 0, "skip": 0, "fail": 0}
    wrongs = set()
    with open(log, "wb") as logfile, open(out + "/results.tsv", "a") as results:
        for name, test in zip(names, everything):
            started = time.monotonic()
            status, note, wrong = run(test, logfile)
            counts[status] += 1
            wrongs.add(wrong)
            results.write(f"{name}\t{variant}\t{status}\t{time.monotonic() - started:.1f}\t{note}\n")
            results.flush()
    wrongs.discard("")
    if wrongs:
        sys.exit("wrong provider: " + ", ".join(sorted(wrongs)))
    if not counts["pass"]:
        sys.exit("no test passed")
    print(", ".join(f"{n} {what}" for what, n in counts.items()))


main()
