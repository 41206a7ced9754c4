"""Two threads and their barrier: results, a partner that never comes, one that is too slow, and work that fails."""
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from sashimi_wb.core.barrier import (
    ANSWER,
    DECISION,
    MOST_WAITS,
    OFFER,
    WAITED,
    Team,
    invite,
    join,
    meet,
    new_cells,
    next_stretch,
    share,
    with_partner,
)
from sashimi_wb.core.compiled import jit


@jit
def sums(x, begin, end, team):
    """Every row is the one before plus its sum; each thread writes its share of the columns."""
    lo, hi = share(x.shape[1], 16, team)
    for k in range(begin, end):
        meet(team)
        total = np.int64(0)
        for v in x[k]: total += v
        for i in range(lo, hi): x[k + 1, i] = x[k, i] + total
    meet(team)


@jit
def work(x, cells, me):
    """Returns how many of the rows this thread has computed together with another one."""
    k, together = np.int64(0), 0
    while True:
        k, size = next_stretch(cells, me, k, len(x)//10)
        if k == 0: return together
        sums(x, 10*k - 10, min(10*k, len(x) - 1), Team(me, size, cells))
        if size == 2: together += 1


def rows(n=101):
    x = np.zeros((n, 48), np.int64)
    x[0] = np.arange(48)
    return x


def expected():
    x = rows()
    for k in range(100): x[k + 1] = x[k] + x[k].sum()
    return x


def test_shares_are_whole_vectors_and_cover_everything():
    for n in range(0, 160, 16):
        (begin, middle), (again, end) = (share(n, 16, Team(me, 2, new_cells())) for me in (0, 1))
        assert (begin, end) == (0, n) and middle == again and middle % 16 == 0
        assert share(n, 16, Team(0, 1, new_cells())) == (0, n)


def test_two_threads_give_the_result_of_one():
    x, cells = rows(), new_cells()
    with ThreadPoolExecutor(2) as pool: list(pool.map(lambda me: sums(x, 0, 100, Team(me, 2, cells)), (0, 1)))
    assert np.array_equal(x, expected()) and cells[0] == cells[8] == 101


def test_a_partner_takes_part_or_not_with_the_same_result():
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            x = rows()
            with_partner(partial(work, x), pool)
            assert np.array_equal(x, expected())


def test_without_a_partner_and_with_one_that_never_comes():
    held = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.wait)
        for where in (None, pool):
            x = rows()
            assert with_partner(partial(work, x), where) == 0
            assert np.array_equal(x, expected())
        held.set()   # the partner then finds that everything is done


def test_the_partner_leaves_when_the_work_fails():
    started = threading.Event()

    def fails(cells, me):
        if me:
            started.set()
            return work(rows(), cells, me)
        started.wait(60)
        raise KeyboardInterrupt
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt): with_partner(fails, pool)


def test_a_partner_is_asked_for_an_answer_and_dismissed_after_long_waits():
    cells = new_cells()
    assert invite(cells, 1) == 1 and list(cells[[OFFER, DECISION]]) == [1, 2]   # no answer: alone
    cells[ANSWER] = 2
    assert invite(cells, 2) == 2 and list(cells[[OFFER, DECISION]]) == [2, 5]
    assert join(_answered(cells, 3)) == 3
    cells[WAITED] = MOST_WAITS + 1
    assert invite(cells, 4) == 1 and cells[OFFER] == -1
    assert join(cells) == 0 and invite(cells, 5) == 1


def _answered(cells, k):
    """Cells in which thread 0 has offered stretch k and decides for two as soon as the partner answers."""
    def decide():
        while cells[ANSWER] != k: pass
        cells[DECISION] = 2*k + 1
    cells[OFFER] = k
    threading.Thread(target=decide).start()
    return cells
