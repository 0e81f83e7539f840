"""Processes that end with the one that started them."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
from tests.support.systems import needs_sigkill

from ai_finetuning.system.children import OWNER, isolated_environment

CHILD = "from ai_finetuning.system.children import end_with_owner; import time; end_with_owner(); print('up', flush=True); time.sleep(600)"
JOB = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=os.environ | {{"{OWNER}": str(os.getpid())}}, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@needs_sigkill
def test_what_a_job_has_started_ends_with_a_job_that_is_killed() -> None:
    job = subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE, env=isolated_environment(), text=True)
    assert job.stdout is not None
    child = psutil.Process(int(job.stdout.readline()))
    assert child.is_running()
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdout.close()
    child.wait(60)
