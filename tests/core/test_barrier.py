"""Two threads and their barrier: results, a partner that never comes, one that is too slow, and work that fails."""
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from sashimi_wb.core.barrier import (
    ABOUT,
    ASKED,
    CLAIMED,
    DONE,
    JOINED,
    MOST_MISSED,
    MOST_PAUSE,
    MOST_WAITS,
    OFFERED,
    OVER,
    PARTNER,
    PAUSE,
    WAITED,
    Team,
    claim,
    enlarge,
    join,
    mark,
    meet,
    new_cells,
    offer,
    read,
    replace,
    share,
    with_partner,
    write,
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


PARTS, STEPS = 2, 5   # of a piece


@jit
def ten_sums(x, cells, piece, begin, last, team):
    """The sums of a piece, as those of the levels of a model."""
    owner, row = team.me or team.size == 1, 10*piece - 10
    for i in range(PARTS):
        end = mark(piece, i + 1, 0) if i < PARTS - 1 else mark(piece + 1, 0, 0)
        for k in range(STEPS):
            at = mark(piece, i, k)
            if at < begin: continue
            if not owner and at >= last: return
            if owner: team = enlarge(team, at)
            sums(x, row + i*STEPS + k, row + i*STEPS + k + 1, team)
        if end <= begin: continue
        if owner: write(cells, DONE, end)
        meet(team)
        if owner: team = Team(team.me, np.int64(1), cells)


@jit
def get_done(x, cells, piece, last):
    team, begin = join(cells, last)
    if begin < last: ten_sums(x, cells, piece, begin, last, team)


@jit
def work(x, idle, cells, me):
    """Rows in pieces of ten; `idle` sums are done between the offer and the need. Returns the offers that were seen."""
    seen, piece, own = 0, np.int64(0), np.int64(0)
    while me and not read(cells, OVER):
        if read(cells, OFFERED) > piece:
            piece = read(cells, OFFERED)
            if claim(cells, piece): ten_sums(x, cells, piece, np.int64(0), np.int64(0), Team(me, np.int64(1), cells))
    for piece in range(1, len(x)//10 + 1 if me == 0 else 1):
        seen += offer(cells, 10*piece)
        for k in range(idle): own += x[0, k % x.shape[1]]
        get_done(x, cells, piece, mark(piece, 1, 0))       # the first part
        for k in range(idle): own += x[0, k % x.shape[1]]
        get_done(x, cells, piece, mark(piece + 1, 0, 0))   # the rest
    return seen if own >= 0 else -1


@jit
def hog(stop):
    while read(stop, 0) == 0: pass


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
        for me in (0, 1): assert share(n, 16, Team(me, 1, new_cells())) == (0, n)


def test_two_threads_give_the_result_of_one():
    x, cells = rows(), new_cells()
    with ThreadPoolExecutor(2) as pool: list(pool.map(lambda me: sums(x, 0, 100, Team(me, 2, cells)), (0, 1)))
    assert np.array_equal(x, expected()) and cells[0] == cells[8] == 101


@pytest.mark.parametrize("n_hogs", (0, 3))
def test_a_partner_takes_part_or_not_with_the_same_result(n_hogs):
    "Also with less work than a meeting takes, with more, and on a machine whose cores are busy."
    stop, want = np.zeros(1, np.int64), expected()
    with ThreadPoolExecutor(1 + n_hogs) as pool:
        for _ in range(n_hogs): pool.submit(hog, stop)
        try:
            for i in range(300):
                x = rows()
                assert 0 <= with_partner(partial(work, x, i % 4*100), pool) <= 10
                assert np.array_equal(x, want)
        finally: stop[0] = 1


def test_without_a_partner_and_with_one_that_never_comes():
    held = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.wait)
        found = []
        for where in (None, pool):
            x = rows()
            found.append(with_partner(partial(work, x, 0), where))
            assert np.array_equal(x, expected())
        held.set()   # the partner then finds that everything is done
    assert found == [0, MOST_MISSED]


def test_the_partner_leaves_when_the_work_fails():
    started = threading.Event()

    def fails(cells, me):
        if me:
            started.set()
            return work(rows(), 0, cells, me)
        started.wait(60)
        raise KeyboardInterrupt
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt): with_partner(fails, pool)


@jit
def joined(cells, last):
    "`join` for Python: how many threads, and from where on."
    team, begin = join(cells, last)
    return team.size, begin


@jit
def asked(cells, at): return enlarge(Team(np.int64(1), np.int64(1), cells), at).size == 2


@jit
def replaced(cells, old, new): return replace(cells, PARTNER, old, new)


def test_of_two_that_claim_one_does():
    cells = new_cells()
    assert claim(cells, 1) and not claim(cells, 1) and claim(cells, 2) and not claim(cells, 1)
    assert cells[CLAIMED] == 2 and not replaced(cells, 1, 5) and cells[PARTNER] == 0
    assert replaced(cells, 0, 5) and cells[PARTNER] == 5


def test_a_piece_that_nobody_has_claimed_is_done_alone():
    cells = new_cells()
    assert offer(cells, 7) and list(cells[[OFFERED, ABOUT]]) == [1, 7]
    assert joined(cells, mark(2, 0, 0)) == (1, 0) and cells[ASKED] == 0
    cells[DONE] = mark(2, 0, 0)
    assert joined(cells, mark(2, 0, 0)) == (1, mark(2, 0, 0))    # nothing is left


def test_thread_0_comes_in_at_the_next_step_of_a_piece_that_another_one_does():
    cells = new_cells()
    offer(cells, 0)
    claim(cells, 1)
    def come():
        while cells[ASKED] == 0: pass
        assert asked(cells, mark(1, 2, 3))
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come)
        assert joined(cells, mark(2, 0, 0)) == (2, mark(1, 2, 3))
        coming.result()
    assert not asked(cells, mark(2, 0, 0)) and cells[JOINED] == mark(1, 2, 3)   # not that far


def test_offers_pause_after_long_waits_and_longer_each_time():
    cells = new_cells()
    for pause in (8, 16, 32):
        cells[WAITED] = MOST_WAITS + 1
        offers = [offer(cells, 0) for _ in range(pause + 1)]
        assert offers == [False]*pause + [True] and cells[WAITED] == 0
    for left in (31, 30, 29):          # each piece without a long wait makes the next pause shorter
        assert offer(cells, 0) and cells[PAUSE] == left
    cells[[WAITED, PAUSE]] = MOST_WAITS + 1, MOST_PAUSE
    offer(cells, 0)
    assert cells[PAUSE] == MOST_PAUSE
    assert not offer(new_cells(False), 0)
