"""A second thread of the compiled engine that does every piece of work, or shares it, whatever the machine is doing."""
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from sashimi_wb.core.barrier import ASKED, CLAIMED, OFFERED, OVER, PARTNER, Team, mark, new_cells, read
from sashimi_wb.core.compiled import jit
from sashimi_wb.synthesis.compiled_step import descend, new_step

NEVER = 2**62   # of claims: so that thread 0 never does a piece itself


def assert_a_partner_changes_nothing(monkeypatch, module, name, found):
    """`found(threads)` gives equal arrays for one thread and for two, which call the function `name` of a module."""
    want, run = found(1), getattr(module, name)
    for shared in (False, True):
        meetings = []
        monkeypatch.setattr(module, name, sure_partner(run, shared, meetings))
        for a, b in zip(found(2), want): np.testing.assert_array_equal(a, b)
        if shared: assert min(meetings) > 0


def sure_partner(run, shared, meetings):
    """`run` or `run_beside` with a partner that comes in any case.

    It begins a piece when thread 0 asks for it, if the two shall share it, or at once. How often they met is appended
    to `meetings`."""
    def with_sure_partner(plan, config, w, table, state, ids, *rest):
        *others, _, me = rest
        if me: return None
        memory, cells = others[8], new_cells()
        cells[CLAIMED] = NEVER
        arguments = plan, config, w, table, state, ids, *others, cells, np.int64(0)
        with ThreadPoolExecutor(1) as pool:
            partner = pool.submit(partial(take_every_piece, shared), plan, config, w, state, len(ids), memory, cells)
            try: return run(*arguments)
            finally:
                cells[OVER] = 1
                partner.result()
                meetings.append(int(cells[PARTNER]))
    return with_sure_partner


@jit
def take_every_piece(shared, plan, config, w, state, n_rows, memory, cells):
    piece, step = np.int64(0), new_step(plan, config, w, state, n_rows, memory, cells, np.int64(1))
    while not read(cells, OVER):
        asked = read(cells, ASKED) > mark(piece + 1, 0, 0)   # in a pause for what it has not offered, too
        if not asked and (shared or read(cells, OFFERED) <= piece): continue
        piece += 1
        descend(step, piece, np.int64(0), np.int64(0), Team(np.int64(1), np.int64(1), cells))
