"""Samples as bytes: the round trip, the places of bytes, and models on byte tokens."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.tokens.byte_tokens import from_bytes, n_bytes, place_bytes, silent_input, to_bytes
from sashimi_wb.tokens.layouts import deinterleave, interleave
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.tokens.streams import shift


@pytest.mark.parametrize("bits", range(1, 25))
def test_round_trip(bits):
    some = torch.cat([torch.tensor([0, 2**bits - 1, 2**(bits - 1)]), torch.randint(2**bits, (500,))])
    codes = (torch.arange(2**bits) if bits <= 16 else some).view(1, -1, 1)
    tokens = to_bytes(codes, bits)
    assert tokens.shape == (1, codes.shape[1]*n_bytes(bits), 1) and 0 <= int(tokens.min()) <= int(tokens.max()) <= 255
    assert torch.equal(from_bytes(tokens, bits), codes)
    naive = [b for code in codes.flatten().tolist() for b in code.to_bytes(n_bytes(bits), "big")]
    assert tokens.flatten().tolist() == naive


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bytes_of_any_layout(data):
    bits, channels = data.draw(st.sampled_from((8, 16, 24))), data.draw(st.integers(1, 3))
    strategy = data.draw(st.sampled_from(("temporal", "blocking", "blocking-3")))
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=channels, max_size=30))
    codes = torch.tensor(values[:len(values)//channels*channels]).view(1, -1, channels)
    tokens = to_bytes(interleave(codes, strategy), bits)
    assert torch.equal(deinterleave(from_bytes(tokens, bits), strategy, channels), codes)
    n, cut = n_bytes(bits), data.draw(st.integers(0, tokens.shape[1]))
    placed = place_bytes(tokens, n)
    assert torch.equal(torch.cat([place_bytes(tokens[:, :cut], n), place_bytes(tokens[:, cut:], n, cut % n)], 1),
                       placed)
    assert torch.equal(placed % 256, tokens) and placed.max() < 256*n


@pytest.mark.parametrize("bits, last", [(8, 128), (16, 0), (24, 0), (12, 0), (4, 8)])
def test_input_before_the_first_byte_is_silence(bits, last):
    code = torch.full((1, 1, 1), Quantizer(bits=bits).zero_code)
    placed = place_bytes(to_bytes(code, bits), n_bytes(bits))
    assert silent_input(bits) == placed[0, -1, 0] == last + 256*(n_bytes(bits) - 1)


def test_errors():
    long = torch.long
    for call, words in (
        (lambda: to_bytes(torch.tensor([[[256]]]), 8), "0 to 255"),
        (lambda: to_bytes(torch.zeros(1, 2, 1), 8), "expected integers"),
        (lambda: to_bytes(torch.zeros(2, 3, dtype=long), 8), "expected .b l 1."), (lambda: n_bytes(25), "1 to 24"),
        (lambda: from_bytes(torch.zeros(1, 5, 1, dtype=long), 16), "expected 2 bytes"),
        (lambda: from_bytes(torch.tensor([[[300]]]), 8), "0 to 255"),
    ):
        with pytest.raises(ValueError, match=words): call()


@pytest.mark.slow
@pytest.mark.parametrize("bits", (8, 16, 24))
@pytest.mark.parametrize("form", ("dplr", "diag"))
def test_windows_steps_and_one_convolution_agree(bits, form):
    "One convolution equals windows that cut samples in two, and stepping, in float64."
    torch.manual_seed(bits)
    config = ModelConfig(bits, head="bytes", backbone=SaShiMiConfig(8, 1, (2, 3), kernel=KernelConfig(form, 8)))
    model = WaveModel(config).double()
    y = to_bytes(torch.randint(2**bits, (2, 23, 1)), bits)
    x = shift(place_bytes(y, n_bytes(bits)), silent_input(bits))
    with torch.no_grad():
        whole, _ = model(x)
        state, parts = model.initial_state(2), []
        for part in x.split(7, 1):
            params, state = model(part, state)
            parts.append(params)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)
        state, steps = model.initial_state(2), []
        for t in range(x.shape[1]):
            params, state = model.step(x[:, t], state)
            steps.append(params)
        torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-9, atol=1e-9)


def test_a_model_learns_the_place_of_a_byte():
    """The upper byte is constant and the lower one uniform: 8 bits suffice if the place is known, else 9 or more."""
    torch.manual_seed(0)
    codes = torch.randint(2**8, (32, 64, 1)) + 77*256
    model = WaveModel(ModelConfig(16, head="bytes",
                                  backbone=SaShiMiConfig(16, 1, (), ff=1, kernel=KernelConfig("diag", 4))))
    y = to_bytes(codes, 16)
    x = shift(place_bytes(y, 2), silent_input(16))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 2*loss.item()/torch.log(torch.tensor(2.0)) < 8.7
