"""What runs on a device that is not the CPU (`tests/device_checks.py`), in a process of its own.

Torch counts its devices at the first backward pass of a process, so that one which is there only later has no queue;
and once it is there, autocast and forked random states ask it, in tests that know nothing of it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("device_checks.py")


@pytest.mark.parametrize("which", ["not two_devices and not xlprobe", "two_devices or xlprobe"])
def test_everything_runs_on_another_device_and_agrees(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which, str(CHECKS)]
    done = subprocess.run(command, cwd=CHECKS.parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
