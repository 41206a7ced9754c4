"""Bins tile the line, are those of encoding, and hold their levels."""
import pytest
import torch

from sashimi_wb.prediction.bins import Bins, byte_intervals
from sashimi_wb.tokens.byte_tokens import to_bytes
from sashimi_wb.tokens.quantization import Quantizer

KINDS = [("linear", "full_scale"), ("linear", "clip_minmax"), ("mu_law", "full_scale"), ("mu_law", "clip_minmax")]


@pytest.mark.portable
@pytest.mark.parametrize("quantization, scaling", KINDS)
@pytest.mark.parametrize("bits", range(1, 17))
def test_levels_lie_in_bins_that_tile_the_line(quantization, scaling, bits):
    bins, codes = Bins(Quantizer(quantization, bits, scaling)), torch.arange(2**bits)
    assert bins.edges.dtype == bins.levels.dtype == torch.float64
    assert bins.edges[0] == -torch.inf and bins.edges[-1] == torch.inf and (bins.edges.diff() > 0).all()
    assert torch.equal(bins.lower(codes), bins.edges[:-1]) and torch.equal(bins.upper(codes), bins.edges[1:])
    assert torch.equal(bins.level(codes), bins.levels)
    assert ((bins.edges[:-1] < bins.levels) & (bins.levels < bins.edges[1:])).all()
    assert torch.equal(bins.code(bins.levels), codes) and torch.equal(bins.code(bins.edges[1:-1]), codes[1:])
    assert bins.code(torch.tensor([-1e9, 1e9])).tolist() == [0, 2**bits - 1]
    torch.testing.assert_close(bins.edges[1:-1].diff(), bins.widths.expand(2**bits - 2))
    torch.testing.assert_close(bins.levels, bins.quantizer.decode(codes).double()*bins.full_scale, rtol=0, atol=0)


@pytest.mark.parametrize("quantization", ["linear", "mu_law"])
@pytest.mark.parametrize("bits", range(1, 17))
def test_edges_are_where_encoding_changes_its_code(quantization, bits):
    bins = Bins(Quantizer(quantization, bits))
    inner, right = bins.edges[1:-1]/bins.full_scale, torch.arange(1, 2**bits)
    nudge = 1e-9*(inner.abs() + 1e-3)
    assert torch.equal(bins.quantizer.encode(inner - nudge), right - 1)
    assert torch.equal(bins.quantizer.encode(inner + nudge), right)


def test_24_bits_need_no_table():
    bins, codes = Bins(Quantizer(bits=24)), torch.tensor([[0, 1], [2**23, 2**24 - 1]])
    assert bins.level(codes).tolist() == [[-2**23, 1 - 2**23], [0, 2**23 - 1]]
    assert bins.lower(codes).tolist() == [[-torch.inf, 0.5 - 2**23], [-0.5, 2**23 - 1.5]]
    assert bins.upper(codes).tolist() == [[0.5 - 2**23, 1.5 - 2**23], [0.5, torch.inf]]
    assert not {"levels", "edges"} & vars(bins).keys()


@pytest.mark.parametrize("bits", [5, 8, 12, 16, 20, 24])
def test_byte_intervals_shrink_to_the_code(bits):
    codes = torch.randint(2**bits, (2, 9, 1))
    tokens = to_bytes(codes, bits)
    first, size = byte_intervals(tokens, bits).long().unbind(-1)
    assert ((first <= codes.repeat_interleave(tokens.shape[1]//9, 1)[..., 0])).all()
    k = tokens.shape[1]//9
    assert (first[:, ::k] == 0).all() and (size[:, ::k] == 256**(k - 1)).all()
    assert torch.equal((first + tokens[..., 0]*size)[:, k - 1::k], codes[..., 0]) and (size[:, k - 1::k] == 1).all()
    for i in range(1, k): assert torch.equal(first[:, i::k], (first + tokens[..., 0]*size)[:, i - 1::k])
