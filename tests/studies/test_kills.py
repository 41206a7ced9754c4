"""Runs that SIGKILL ends in the middle of their work; a hundred of them by hand: tests/kill_study.py."""
import multiprocessing
import os
import time

import pytest
from kill_study import carry_out, differences

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")]


def test_a_run_that_is_killed_three_times_is_that_of_one_breath(tmp_path):
    """Killed while a checkpoint is written, between two scores, and while clips are written."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sashimi_wb.training.trainer", "sashimi_wb.studies.run"])
    for moment in ("*/training/.last.ckpt.*.tmp", "*/scores/6.ckpt", "*/*.flac"):
        process = context.Process(target=carry_out, args=(tmp_path/"broken",))
        process.start()
        while process.is_alive() and not list((tmp_path/"broken").glob(moment)): time.sleep(0.0005)
        process.kill()
        process.join(30)
        assert process.exitcode == -9 and not list((tmp_path/"broken").glob("*/result.json")), moment
    for name in ("broken", "whole"): carry_out(tmp_path/name)
    whole, = (tmp_path/"whole").iterdir()
    assert differences(whole, tmp_path/"broken"/whole.name) == []
