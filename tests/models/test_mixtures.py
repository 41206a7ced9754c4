"""The mixture of logistics at 8, 12 and 16 bits: sums over all codes, exact ranks, samples, and a training run."""
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_wb.core.ranks import code_rank
from sashimi_wb.models.heads import DMLHead
from sashimi_wb.models.mixture_rank import mixture_rank
from sashimi_wb.models.mixtures import (
    Mixture,
    mixture_cdf,
    mixture_log_prob,
    mixture_log_probs,
    mixture_of,
    mixture_sample,
    start_params,
)
from sashimi_wb.prediction.bins import Bins
from sashimi_wb.tokens.quantization import Quantizer

MUSIC = Path(__file__).parents[2]/"data"/"music"/"dvorak_largo.flac"
ROWS = {8: 100, 12: 30, 16: 4}


def linear(bits): return Bins(Quantizer(bits=bits))


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


def trained_like(n, bits):
    "Parts that agree on where the next sample is, to some hundredths of full scale, the heaviest the narrowest."
    center, spread = .3*torch.randn(n, 1), 10**(-3.5 + torch.rand(n, 1))
    return torch.cat([torch.linspace(2, -2, 10) + torch.randn(n, 10), 8*(center + spread*torch.randn(n, 10)),
                      spread.log() + .5*torch.randn(n, 10)], -1)


def at_the_ends(n, bits):
    raw = trained_like(n, bits)
    raw[:, 10:20] = torch.where(torch.rand(n, 1) < .5, -8., 8.) + .05*torch.randn(n, 10)
    return raw


def narrow(n, bits):
    "Parts of a few bins, and of a hundredth of a bin."
    return torch.cat([torch.randn(n, 10), 8*(.5*torch.randn(n, 1) + torch.randn(n, 10)*2.**(3 - bits)),
                      -bits*math.log(2) + 3*torch.randn(n, 10)], -1)


PARAMETERS = {
    "initial": lambda n, bits: start_params(10) + .1*torch.randn(n, 30),
    "random": lambda n, bits: start_params(10) + 3*torch.randn(n, 30),
    "trained": trained_like,
    "ends": at_the_ends,
    "narrow": narrow,
    "large": lambda n, bits: 1e4*torch.randn(n, 30),
    "largest": lambda n, bits: 1e30*torch.randn(n, 30),
}


@pytest.mark.parametrize("bits", ROWS)
@pytest.mark.parametrize("dtype, most", [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=["float64", "float32"])
def test_probabilities_sum_to_one(bits, dtype, most):
    for name, make in PARAMETERS.items():
        mix = mixture_of(make(ROWS[bits], bits).to(dtype), bits)
        table, codes = mixture_log_probs(mix, linear(bits)).double(), torch.arange(2**bits)
        error = (table.exp().sum(-1) - 1).abs().max().item()
        assert error < most, f"{name}: off by {error:.1e}"
        cdf = mixture_cdf(Mixture(*(field[:, None] for field in mix)), codes, linear(bits))
        assert (cdf.double() - table.exp().cumsum(-1)).abs().max() < most and (cdf.diff() >= 0).all()
        assert (cdf[:, -1] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 3, *ROWS])
@pytest.mark.parametrize("name", PARAMETERS)
def test_rank_is_that_of_the_table(bits, name):
    n = ROWS.get(bits, 60)
    mix = mixture_of(PARAMETERS[name](n, bits).double(), bits)
    table = mixture_log_probs(mix, linear(bits))
    likely = table.topk(min(2**bits, 12)).indices.gather(-1, torch.randint(min(2**bits, 12), (n, 1)))[:, 0]
    ends = torch.where(torch.rand(n) < .5, 0, 2**bits - 1)
    drawn, uniform = mixture_sample(mix, linear(bits)), torch.randint(2**bits, (n,))
    for codes, k in ((drawn, 10), (uniform, 300), (likely, 1), (likely, 10), (ends, 10)):
        assert torch.equal(mixture_rank(mix, codes, linear(bits), k), code_rank(table, codes).clamp(max=k))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("name", PARAMETERS)
def test_bins_of_unequal_width(bits, name):
    "Mu-law on the line of samples: sums, cumulative function, samples and ranks agree with the table of all codes."
    n, bins = ROWS.get(bits, 60), Bins(Quantizer("mu_law", bits))
    mix = mixture_of(PARAMETERS[name](n, 16).double(), 16)
    table, every = mixture_log_probs(mix, bins), Mixture(*(field[:, None] for field in mix))
    torch.testing.assert_close(mixture_log_prob(every, torch.arange(2**bits), bins), table, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(n, dtype=torch.float64))
    cdf = mixture_cdf(every, torch.arange(2**bits), bins)
    torch.testing.assert_close(cdf, table.exp().cumsum(-1))
    drawn = mixture_sample(Mixture(*(f[:1].expand(20_000, -1) for f in mix)), bins)
    assert (drawn.bincount(minlength=2**bits)/20_000 - table[0].exp()).abs().max() < .02
    likely = table.topk(min(2**bits, 12)).indices.gather(-1, torch.randint(min(2**bits, 12), (n, 1)))[:, 0]
    for codes, k in ((mixture_sample(mix, bins), 10), (torch.randint(2**bits, (n,)), 300), (likely, 10)):
        assert torch.equal(mixture_rank(mix, codes, bins, k), code_rank(table, codes).clamp(max=k))


def test_rank_of_equals_and_shapes():
    # symmetric: pairs of equal codes
    flat = Mixture(*(torch.tensor(v).expand(1, 1, 1) for v in (0., 3.5, 1.)))
    codes = torch.arange(256)[:, None]
    want = code_rank(mixture_log_probs(Mixture(*(f[0].double() for f in flat)), linear(8)).expand(256, -1), codes[:, 0])
    assert torch.equal(mixture_rank(flat, codes, linear(8), 256)[:, 0], want)
    assert want.sort().values.tolist() == list(range(256))
    raw, y = 3*torch.randn(2, 5, 30), torch.randint(2**12, (2, 5))
    ranks = mixture_rank(mixture_of(raw, 12), y, linear(12), 7)
    assert ranks.shape == (2, 5) and ranks.dtype == torch.int64 and ranks.max() <= 7
    head = DMLHead(4, 12)
    assert torch.equal(head.rank(raw, y, 7), ranks)
    assert mixture_rank(mixture_of(raw[:, :0], 12), y[:, :0], linear(12), 7).shape == (2, 0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", ["random", "trained", "ends", "narrow"])
def test_samples_follow_the_probabilities(bits, name):
    for raw in PARAMETERS[name](2, bits).double():
        mix, n = mixture_of(raw[None], bits), 30_000
        drawn = mixture_sample(Mixture(*(f.expand(n, -1) for f in mix)), linear(bits),
                               generator=torch.Generator().manual_seed(1)).bincount(minlength=2**bits)
        p = mixture_log_probs(mix, linear(bits))[0].exp()
        # about 200 cells of equal probability
        cell = ((p.cumsum(0) - p/2)*200).long().clamp(max=199)
        expected, seen = (torch.zeros(200, dtype=torch.float64).index_add_(0, cell, v) for v in (p*n, drawn.double()))
        kept = expected > 8
        statistic, free = ((seen - expected)[kept]**2/expected[kept]).sum().item(), max(int(kept.sum()) - 1, 1)
        assert (statistic - free)/math.sqrt(2*free) < 5


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_loss_and_gradient_are_finite_for_every_parameter(bits):
    for name, make in PARAMETERS.items():
        raw = make(200, bits).requires_grad_()
        mix = mixture_of(raw, bits)
        for codes in (torch.zeros(200).long(), torch.randint(2**bits, (200,)), torch.full((200,), 2**bits - 1)):
            nats = -mixture_log_prob(mix, codes, linear(bits))
            grad, = torch.autograd.grad(nats.sum(), raw, retain_graph=True)
            assert nats.isfinite().all() and (nats > -1e-5).all() and grad.isfinite().all(), name


@pytest.mark.slow
def test_sixteen_bits_are_learned_at_a_learning_rate_of_one_percent():
    wave, _ = soundfile.read(MUSIC, frames=2*44_100, start=44_100, dtype="float32", always_2d=True)
    quantizer = Quantizer("linear", 16)
    codes = quantizer.encode(torch.from_numpy(wave[::3, :1].copy())[None])[0, :, 0]
    # sixteen samples before each
    past = quantizer.decode(codes).unfold(0, 16, 1)[:-1]
    body, head = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU()), DMLHead(16, 16)
    parameters, bits = [*body.parameters(), *head.parameters()], []
    optimizer = torch.optim.AdamW(parameters, lr=.01)
    for _ in range(2000):
        at = torch.randint(len(past), (32,))
        loss = -head.log_prob(head(body(past[at])), codes[at + 16]).mean()
        optimizer.zero_grad()
        loss.backward()
        assert sum(p.grad.sum() for p in parameters).isfinite() and loss.isfinite()
        optimizer.step()
        bits.append(loss.item()/math.log(2))
    # 13.67: the floor of the public mixture
    assert np.mean(bits[-200:]) < min(13.67, np.mean(bits[:200]) - 1)
