"""Runs that SIGKILL ends in the middle of their work; a hundred of them by hand: tests/kill_study.py."""
import os
import signal
import time

import pytest
from kill_study import carry_out, differences
from made_processes import fork_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")]


def test_a_run_that_is_killed_three_times_is_that_of_one_breath(tmp_path):
    """Killed while a checkpoint is written, between two scores, and while clips are written."""
    with fork_server("kill_study:carry_out", "kill_study:prepare") as server:
        for moment in ("*/training/.last.ckpt.*.tmp", "*/scores/6.ckpt", "*/*.flac"):
            process = server.start([str(tmp_path/"broken")], tmp_path/"said.txt")
            while process.poll() is None and not list((tmp_path/"broken").glob(moment)): time.sleep(0.0005)
            os.kill(process.pid, signal.SIGKILL)
            while process.poll() is None: time.sleep(0.01)
            assert process.poll() == -9 and not list((tmp_path/"broken").glob("*/result.json")), moment
    for name in ("broken", "whole"): carry_out(tmp_path/name)
    whole, = (tmp_path/"whole").iterdir()
    assert differences(whole, tmp_path/"broken"/whole.name) == []
