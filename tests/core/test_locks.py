"""Locks between machines: the lock file of another machine that is refreshed, silent, or has taken over ours."""
import os
import signal
import threading
import time

import filelock._soft
import pytest

from sashimi_wb.core import locks
from sashimi_wb.core.locks import holder, holding


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.6)
    monkeypatch.setattr(locks, "REFRESH_S", 0.1)


def foreign(folder, lease_s=0.6):
    """A lock file of another machine."""
    path, token = folder/".work.lock", "0"*32
    path.write_text(f"\nfilelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken={token}\nduration={lease_s}\nstart=1\n\n")
    return path


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_silent_machine_loses_its_lock(tmp_path, monkeypatch, exchanges):
    if not exchanges: monkeypatch.setattr(filelock._soft, "exchange_names", lambda *_: False)   # as NFS does
    foreign(tmp_path)
    began = time.perf_counter()
    with holding(tmp_path):
        assert time.perf_counter() - began > 0.5 and holder(tmp_path)["pid"] == os.getpid()
        with pytest.raises(ValueError, match="is in use"), holding(tmp_path, wait=False): pass
    assert not list(tmp_path.iterdir())


def test_a_refreshed_lock_of_another_machine_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 2.0)        # long against a pause of a busy machine
    path, ended = foreign(tmp_path, 2.0), threading.Event()
    def refresh():
        while not ended.wait(0.1): os.utime(path)
        path.unlink()
    other = threading.Thread(target=refresh)
    other.start()
    threading.Timer(2.6, ended.set).start()
    with holding(tmp_path): assert ended.is_set()
    other.join()


@pytest.mark.parametrize("on_interrupt", [signal.default_int_handler, signal.SIG_IGN])
def test_a_lock_that_was_taken_over_stops_its_holder(tmp_path, on_interrupt):
    "Also where interrupts are ignored, as in the background of a script."
    handlers = {signal.SIGINT: on_interrupt, signal.SIGTERM: signal.default_int_handler}
    before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
    try:
        with pytest.raises(KeyboardInterrupt), holding(tmp_path):
            (tmp_path/".work.lock").unlink()
            mine = foreign(tmp_path).read_text()
            for _ in range(50): time.sleep(0.1)
    finally:
        for s, handler in before.items(): signal.signal(s, handler)
    assert (tmp_path/".work.lock").read_text() == mine         # it is left to its new holder


def test_what_was_moved_aside_by_mistake_comes_back(tmp_path):
    path = foreign(tmp_path)
    locks._take_away(str(path), (0, 0))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    locks._take_away(str(path), locks._marker(path))
    assert not list(tmp_path.iterdir())
