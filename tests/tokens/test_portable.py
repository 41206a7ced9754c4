"""Portable logarithm, exponential, cosine and sine: accuracy against decimal arithmetic, pinned bits, wrong input."""
import hashlib
import math
from decimal import Decimal, localcontext

import pytest
import torch

from sashimi_wb.tokens.portable import cos_sin, exp2, log1p

pytestmark = pytest.mark.portable   # also run as on other machines, by test_machines.py

K = torch.arange(1, 1001, dtype=torch.float64)
RANGES = {   # exact operations only, so that the numbers themselves are the same everywhere
    "log1p": (log1p, lambda v: (1 + v).ln(),
              torch.cat([torch.zeros(1).double(), K*2.0**-40, K*2.0**-12, K/7, K*65.5, K*2.0**100])),
    "exp2": (exp2, lambda v: 2**v, torch.cat([torch.zeros(1).double(), K*2.0**-40, K/61, -K/61, K/1.01, -K/1.01])),
}
PINNED = {   # SHA-256 of the doubles above, little-endian
    "log1p": "ea864c545c4b7b1fc406942d3704aa96ce5b089a9baae945ab58104c20c7ad9e",
    "exp2": "1283003981e1a8c5a829a6ee8c1616153dc71966f295e65997e740dd944f2cb0",
}


@pytest.mark.parametrize("name", RANGES)
def test_the_error_is_below_three_units_in_the_last_place(name):
    function, exact, x = RANGES[name]
    with localcontext() as c:
        c.prec = 45
        for got, v in zip(function(x).tolist(), x.tolist()):
            assert abs(Decimal(got) - exact(Decimal(v))) <= 3*Decimal(math.ulp(got)), (v, got)


@pytest.mark.parametrize("name", RANGES)
def test_float32_is_the_nearest(name):
    function, exact, x = RANGES[name]
    x = x[(x.abs() < 1e6) & ((x.abs() < 120) | (name == "log1p"))].float()
    with localcontext() as c:
        c.prec = 45
        want = torch.tensor([float(exact(Decimal(v))) for v in x.tolist()], dtype=torch.float64).float()
    assert torch.equal(function(x), want)


@pytest.mark.parametrize("name", RANGES)
def test_every_bit_is_pinned(name):
    function, _, x = RANGES[name]
    assert hashlib.sha256(function(x).numpy().astype("<f8").tobytes()).hexdigest() == PINNED[name]


@pytest.mark.parametrize("name", RANGES)
def test_argument_is_unchanged_and_parts_equal_the_whole(name):
    function, _, x = RANGES[name]
    x, before = x[:2001], x[:2001].clone()
    whole = function(x)
    assert torch.equal(x, before)
    # elements that fill vector registers, and the rest
    assert torch.equal(torch.cat([function(part) for part in x.split(7)]), whole)
    assert torch.equal(function(x.expand(2, -1).t())[:, 1], whole)                     # any strides
    assert function(x.half()).dtype == torch.float16 and function(x[:0]).shape == (0,) and function(x[5]).ndim == 0
    with pytest.raises(ValueError, match="expected floats.*int64"): function(torch.arange(3))


def test_cosine_and_sine():
    x = torch.cat([torch.zeros(1).double(), K*2.0**-40, K/61, -K/7, K*999.9])
    cos, sin = cos_sin(x)
    for c, s, v in zip(cos.tolist(), sin.tolist(), x.tolist()):
        assert abs(c - math.cos(v)) < 4e-16 and abs(s - math.sin(v)) < 4e-16, v
    content = torch.cat([cos, sin]).numpy().astype("<f8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "3177391ff757ab02"
    assert cos_sin(x.float())[0].dtype == torch.float32
