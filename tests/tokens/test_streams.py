"""Token streams: the shift by one, the first input, inputs of tokens whose samples are gone."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.tokens.layouts import interleave
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.tokens.streams import INPUTS, TOKENS, TokenStream, shift

STREAMS = [TokenStream(Quantizer(quantization, bits), name)
           for name in INPUTS for quantization in ("linear", "mu_law") for bits in (3, 8, 16)]
STREAMS += [TokenStream(Quantizer(bits=bits), tokens="bytes") for bits in (5, 8, 16, 24)]


def layout(x, fill, strategy="blocking-3"): return interleave(x, strategy)


@given(st.integers(1, 3), st.integers(0, 20), st.integers(1, 7), st.sampled_from((torch.int64, torch.float64)))
@settings(max_examples=60, deadline=None)
def test_shift_is_a_delay_in_whole_and_in_parts(batch, length, size, dtype):
    feed = torch.randint(256, (batch, length, 1)).to(dtype)
    naive = [[-1, *row[:-1]] if row else [] for row in feed[..., 0].tolist()]
    whole = shift(feed, -1)
    assert whole.dtype == dtype and whole.shape == feed.shape and whole[..., 0].tolist() == naive
    parts, last = [], torch.full((batch, 1, 1), -1)
    for part in feed.split(size, 1):
        parts.append(shift(part, last))
        last = part[:, -1:]
    assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_targets_are_the_codes_and_the_input_before_them_is_silence(stream):
    wave = torch.rand(2, 10, 2)*2 - 1
    y, feed = stream.encode(wave, layout)
    assert y.shape == feed.shape == (2, 20*stream.tokens_per_sample, 1)
    codes = TokenStream(stream.quantizer).encode(wave, layout)[0]
    if stream.tokens == "codes": assert torch.equal(y, codes)
    silent = stream.encode(torch.zeros(1, 1, 1), layout)[1][0, -1, 0].item()
    if stream.input != "dequantized": assert silent == stream.first_input   # a level of mu-law may miss 0.0
    assert type(stream.first_input) is (float if INPUTS[stream.input] == "float" else int)


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_known_tokens_are_fed_as_in_training(stream):
    y, feed = stream.encode(torch.rand(2, 11, 2)*2 - 1, layout)
    if stream.input == "raw": feed = TokenStream(stream.quantizer, "dequantized").inputs(y)
    for start in range(5):
        assert torch.equal(stream.inputs(y[:, start:], start % stream.tokens_per_sample), feed[:, start:])


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_only_codes_can_be_bytes(name, tokens):
    if tokens == "bytes" and name != "codes":
        with pytest.raises(ValueError, match="expected input='codes'"): TokenStream(input=name, tokens=tokens)
    else: assert TokenStream(input=name, tokens=tokens).tokens_per_sample == 1


def test_errors_name_the_file():
    with pytest.raises(ValueError, match="song.wav"):
        TokenStream().encode(torch.full((1, 3, 1), 2.0), layout, "song.wav")
