import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.models.encoders import (
    ENCODERS,
    Embedding,
    EmbeddingSqueeze,
    LinearProjection,
    SinusoidalEmbedding,
    make_encoder,
)


def test_names_kinds_and_counts():
    assert list(ENCODERS) == ["embedding", "embedding_squeeze", "sinusoidal", "linear_projection"]
    assert [make_encoder(n, 256, 64).input for n in ENCODERS] == ["codes", "codes", "codes", "float"]
    assert [sum(p.numel() for p in make_encoder(n, 256, 64).parameters()) for n in ENCODERS] == [16384, 16384, 0, 128]
    assert sum(p.numel() for p in make_encoder("embedding", 2**16, 64).parameters()) == 4_194_304


@pytest.mark.parametrize("name", ["one_hot", "Embedding", None, ["embedding"]])
def test_unknown_name_lists_the_known(name):
    with pytest.raises(ValueError, match="embedding, embedding_squeeze, sinusoidal, linear_projection"):
        make_encoder(name, 256, 64)


@pytest.mark.parametrize("sizes", [(1, 64), (256, 0), ("256", 64), (256, 64.0), (True, 64)])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_sizes(name, sizes):
    with pytest.raises(ValueError, match="expected"): make_encoder(name, *sizes)


@pytest.mark.parametrize("d_model", [4, 64, 256])
def test_initial_spread(d_model):
    torch.manual_seed(0)
    assert abs(Embedding(4096, d_model).weight.norm(dim=1).mean() - 4) < 1e-3
    lines = [LinearProjection(d_model).linear for _ in range(400)]
    assert abs(torch.stack([line.weight for line in lines]).std() * d_model**.5 - 4) < .4
    assert abs(torch.stack([line.bias for line in lines]).std() * d_model**.5 - 1) < .1


@pytest.mark.parametrize("n_codes", [2, 3, 256, 768, 2**16])
def test_a_fixed_table(n_codes):
    "The rows with which an embedding starts at 8 bits, stored, and as close to each other at any depth."
    tables = []
    for kind in Embedding, SinusoidalEmbedding:
        torch.manual_seed(0)
        tables.append(kind(n_codes, 16))
    learned, fixed = tables
    assert torch.equal(learned.weight, fixed.weight) == (n_codes == 256)
    assert fixed.state_dict().keys() == learned.state_dict().keys() and not fixed.weight.requires_grad
    x = torch.arange(n_codes)[None]
    assert torch.equal(fixed(x)[0], fixed.weight)
    near = (fixed.weight[1:] - fixed.weight[:-1]).norm(dim=1)
    if n_codes > 2: assert .3 < near.mean() < 6
    learned.load_state_dict(fixed.state_dict())
    assert torch.equal(learned(x), fixed(x))


def test_the_first_norm_keeps_the_amplitude():
    torch.manual_seed(0)
    u = LinearProjection(64)(torch.tensor([[[.02], [.1], [.4]]]))
    quiet, middle, loud = torch.nn.functional.layer_norm(u, (64,))[0]
    assert (quiet - middle).norm() > 1 and (middle - loud).norm() > 1


@given(b=st.integers(1, 3), length=st.integers(1, 20), bits=st.integers(1, 10), h=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_shapes_and_steps(b, length, bits, h):
    codes = torch.randint(0, 2**bits, (b, length, 1))
    for name in ENCODERS:
        encoder = make_encoder(name, 2**bits, h)
        x = codes if encoder.input == "codes" else codes / 2**bits
        y = encoder(x)
        assert y.shape == (b, length, h)
        torch.testing.assert_close(torch.stack([encoder.step(x[:, i]) for i in range(length)], 1), y)


def test_dtypes():
    emb = Embedding(256, 8)
    codes = torch.randint(0, 256, (2, 5))
    for dtype in (torch.uint8, torch.int32, torch.int64): torch.testing.assert_close(emb(codes.to(dtype)), emb(codes))
    assert LinearProjection(8)(torch.rand(1, 3, 1, dtype=torch.float64)).dtype == torch.float32
    assert LinearProjection(8).double()(torch.rand(1, 3, 1)).dtype == torch.float64


@pytest.mark.parametrize("kind, x, words", [
    (Embedding, torch.rand(2, 5), "float32"),
    (Embedding, torch.zeros(2, 5, dtype=torch.bool), "bool"),
    (Embedding, torch.zeros(2, 5, 2, dtype=torch.long), "interleave"),
    (Embedding, torch.zeros(5, dtype=torch.long), "shape"),
    (Embedding, torch.tensor([[0, -1]]), r"got -1 at \(0, 1\)"),
    (Embedding, torch.tensor([[0], [256]])[..., None], r"got 256 at \(1, 0, 0\)"),
    (EmbeddingSqueeze, torch.zeros(2, 5, dtype=torch.long), "None"),
    (EmbeddingSqueeze, torch.rand(2, 5, 1), "linear_projection"),
    (SinusoidalEmbedding, torch.zeros(2, 5, 2, dtype=torch.long), "SinusoidalEmbedding: .*interleave"),
    (SinusoidalEmbedding, torch.tensor([[256]]), r"SinusoidalEmbedding: .*got 256 at \(0, 0\)"),
    (LinearProjection, torch.zeros(2, 5, 1, dtype=torch.long), "embedding"),
    (LinearProjection, torch.rand(2, 5), "shape"),
    (LinearProjection, torch.rand(2, 5, 2), "interleave"),
])
def test_wrong_input(kind, x, words):
    with pytest.raises(ValueError, match=words): kind.build(256, 8)(x)
