"""Where the tools can be installed, in CI, a skipped test is a failed one; tests that take long run in parts; and
gemedge's child processes are forked from the tests' own.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from forked_children import popen

from gemedge import confined


def pytest_configure():
    """Some tests interrupt what they run, which a shell's & lets programs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def part(text: str) -> slice:
    """K/N as what takes the K-th of N parts of a list."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 1 <= K <= N")
    return slice(int(found[1]) - 1, None, int(found[2]))


def pytest_addoption(parser):
    parser.addoption(
        "--part", type=part, default=slice(None), metavar="K/N", help="every N-th long test, from the K-th"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """When -m and -k have chosen, so that each part has its share of every table."""
    long = [item for item in items if item.get_closest_marker("long")]
    others = set(long) - set(long[config.getoption("part")])
    config.hook.pytest_deselected(items=list(others))
    items[:] = [item for item in items if item not in others]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def forked_children():
    """Not where numeric libraries have threads, which a fork does not take along, nor where systems break by forks."""
    if os.environ.get("OMP_NUM_THREADS") == "1" and sys.platform == "linux":
        confined.subprocess = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
    yield
    confined.subprocess = subprocess
