"""The range coder: the bytes of unbounded integers, and the length that the probabilities say."""
import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sashimi_wb.coding.range_coder import check_end, consume, decoder, encode, encoder, finish, quantile

TOTAL = 2**40


def coded_bytes(places, capacity=None):
    coder = encoder(5*len(places) + 1 if capacity is None else capacity)
    for start, size in places: encode(coder, start, size)
    return finish(coder)


def with_unbounded_integers(places):
    low, width, n_bytes = 0, 2**64 - 1, 0
    for start, size in places:
        low, width = low + (width >> 40)*start, (width >> 40)*size
        while width < 2**56: low, width, n_bytes = low << 8, width << 8, n_bytes + 1
    return (-(-low >> 56)).to_bytes(n_bytes + 1, "big")


@st.composite
def places(draw):
    size = draw(st.one_of(st.integers(1, TOTAL), st.integers(0, 40).map(lambda n: 2**n), st.just(1)))
    return draw(st.one_of(st.integers(0, TOTAL - size), st.just(0), st.just(TOTAL - size))), size


@pytest.mark.portable
@given(st.lists(places(), max_size=60))
def test_every_sequence_comes_back(symbols):
    coded = coded_bytes(symbols)
    assert coded == with_unbounded_integers(symbols)
    reader = decoder(coded)
    for start, size in symbols:
        assert start <= quantile(reader) < start + size
        consume(reader, start, size)
    check_end(reader)
    assert coded_bytes(symbols, len(coded)) == coded
    assert coded_bytes(symbols, len(coded) - 1) is None


def test_as_short_as_constriction():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(256, 0.3))
    starts = np.append((np.concatenate([[0], np.cumsum(p)[:-1]])*(TOTAL - 512)).astype(np.int64)
                       + 2*np.arange(256), TOTAL)
    symbols = rng.choice(256, 30_000, p=p)
    ideal = -np.log2(np.diff(starts)[symbols]/TOTAL).sum()/8
    theirs = constriction.stream.queue.RangeEncoder()
    theirs.encode(symbols.astype(np.int32), constriction.stream.model.Categorical(p, perfect=False))
    ours = len(coded_bytes(np.stack([starts[:-1], np.diff(starts)], 1)[symbols].tolist()))
    assert ideal <= ours + 1 and abs(ours/ideal - 1) < 1e-3
    assert abs(ours/(4*len(theirs.get_compressed())) - 1) < 1e-3


@pytest.mark.parametrize("change, why", [(lambda b: b[:-3], "missing"), (lambda b: b + b"x", "left over")])
def test_another_number_of_bytes_is_noticed(change, why):
    symbols = [(7*i, 1000 + i) for i in range(200)]
    reader = decoder(change(coded_bytes(symbols)))
    for start, size in symbols: consume(reader, start, size)
    with pytest.raises(ValueError, match=why): check_end(reader)
