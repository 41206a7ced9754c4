import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.core.ranks import code_rank
from sashimi_wb.core.system import seed_everything
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.tokens.quantization_views import snr_db
from sashimi_wb.training.evaluation import evaluate, evaluate_whole, whole_files
from sashimi_wb.training.metrics import (
    Tally,
    accuracy_at,
    bits_per_byte,
    bits_per_sample,
    compression_ratio,
    perplexity,
)

REFERENCE = Path(__file__).parents[1]/"reference" / "metrics"
NAMES = {1: "accuracy", 3: "accuracy@3", 5: "accuracy@5", 10: "accuracy@10"}


@pytest.mark.parametrize("name", ["classes16", "classes256"])
def test_against_reference(name):
    data = np.load(REFERENCE / f"{name}.npz", allow_pickle=False)
    log_probs, y = torch.from_numpy(data["logits"]).double().log_softmax(-1), torch.from_numpy(data["y"])
    nats = -log_probs.gather(-1, y[..., None])[..., 0]
    bits = log_probs.shape[-1].bit_length() - 1
    result = Tally(bits).add(nats, None, code_rank(log_probs, y)).result()
    assert result["nats_per_token"] == pytest.approx(float(data["cross_entropy_f64"]), abs=1e-6)
    assert result["bits_per_sample"] == pytest.approx(float(data["bpb_f64"]), abs=1e-6)
    assert result["perplexity"] == pytest.approx(float(data["ppl_f64"]), rel=1e-6)
    for k, key in NAMES.items():
        assert accuracy_at(log_probs, y, k) == pytest.approx(float(data[f"{key}_f64"]), abs=1e-6)
        assert result[key] == accuracy_at(log_probs, y, k)


def test_padding_counts_as_wrong_there_and_not_here():
    data = np.load(REFERENCE / "classes16_padded.npz", allow_pickle=False)
    log_probs, y = torch.from_numpy(data["logits"]).double().log_softmax(-1), torch.from_numpy(data["y"])
    mask = y != -100
    assert 0 < (~mask).sum() == 5
    nats = -log_probs.gather(-1, y.clamp(min=0)[..., None])[..., 0]
    result = Tally(4).add(nats, mask, code_rank(log_probs, y.clamp(min=0))).result()
    assert result["nats_per_token"] == pytest.approx(float(data["cross_entropy_f64"]), abs=1e-6)
    for k, key in NAMES.items():
        theirs = float(data[f"{key}_f64"])
        ours = accuracy_at(log_probs, y, k, mask)
        assert ours == pytest.approx(accuracy_at(log_probs[mask], y[mask], k)) == pytest.approx(result[key])
        assert theirs == pytest.approx(ours * mask.sum().item() / mask.numel(), abs=1e-6) and ours > theirs
    with pytest.raises(ValueError, match="mask"): accuracy_at(log_probs, y, 1)


def test_three_figures():
    assert bits_per_sample(8 * math.log(2)) == pytest.approx(8) and bits_per_sample(math.log(2), 3) == pytest.approx(3)
    assert bits_per_byte(4, 16) == 2 and bits_per_byte(4, 8) == 4 and bits_per_byte(12, 24) == 4
    assert compression_ratio(4, 16) == 4 and compression_ratio(0, 8) == math.inf
    assert perplexity(math.log(7)) == pytest.approx(7) and perplexity(1e9) == math.inf
    for bits in (0, 25, "8", 8.0, True):
        for f in (bits_per_byte, compression_ratio):
            with pytest.raises(ValueError, match="1 to 24"): f(4, bits)


@given(v=st.integers(1, 12), n=st.integers(1, 20), seed=st.integers(0, 10**6), levels=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_rank_is_that_of_a_stable_sort(v, n, seed, levels):
    "With few levels there are many ties."
    g = torch.Generator().manual_seed(seed)
    scores, codes = torch.randint(0, levels, (n, v), generator=g).double(), torch.randint(0, v, (n,), generator=g)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(code_rank(scores, codes), (order == codes[:, None]).double().argmax(-1))
    assert accuracy_at(scores, codes, v) == 1


def test_accuracy_errors():
    scores, codes = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.long)
    for args, words in (((scores, codes[:, :4]), "shape"), ((scores, codes + 8), "8 to 8"),
                        ((scores, codes, 0), "positive"),
                        ((scores, codes, 1, torch.zeros(2, 5)), "at least one"),
                        ((scores, codes, 1, torch.ones(2, 4)), "mask")):
        with pytest.raises(ValueError, match=words): accuracy_at(*args)


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 39), min_size=0, max_size=4, unique=True))
@settings(max_examples=25, deadline=None)
def test_tally_does_not_depend_on_the_batches(seed, cuts):
    g = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(40, 16, generator=g).log_softmax(-1)
    codes, mask = torch.randint(0, 16, (40,), generator=g), torch.rand(40, generator=g) < .7
    mask[0] = True
    nats = -log_probs.gather(-1, codes[:, None])[:, 0]
    ranks = code_rank(log_probs, codes)
    whole = Tally(4).add(nats, mask, ranks).result()
    edges = [0, *sorted(cuts), 40]
    parts = Tally(4)
    for a, b in zip(edges, edges[1:]):
        parts.set_sums(parts.sums() + Tally(4).add(nats[a:b], mask[a:b], ranks[a:b]).sums())
    assert parts.result() == pytest.approx(whole, rel=1e-9)


def test_tally_shapes_and_errors():
    nats, ranks = torch.rand(2, 5), torch.zeros(2, 5, 1, dtype=torch.long)
    result = Tally(8).add(nats, torch.ones(2, 5, 1)).result()
    assert "accuracy" not in result and result["compression_ratio"] == pytest.approx(8 / result["bits_per_sample"])
    assert Tally(8).add(nats, None, ranks).result()["accuracy"] == 1
    as_bytes = Tally(16, tokens_per_sample=2).add(nats).result()
    assert as_bytes["bits_per_sample"] == pytest.approx(2 * nats.mean().item() / math.log(2))
    with pytest.raises(ValueError, match="at least one token"): Tally(8).add(nats, torch.zeros(2, 5)).result()
    with pytest.raises(ValueError, match="1 to 24"): Tally(0)


def test_snr():
    x = np.random.default_rng(0).standard_normal(1000)
    assert snr_db(x, x) == math.inf and snr_db(0 * x, x) == -math.inf
    assert snr_db(x, x * 1.1) == pytest.approx(20) and snr_db(torch.from_numpy(x), x * .9) == pytest.approx(20)
    with pytest.raises(ValueError, match="shape"): snr_db(x, x[:5])


@given(seed=st.integers(0, 10**6), n=st.integers(1, 3), cut=st.integers(1, 29))
@settings(max_examples=25, deadline=None)
def test_tally_by_place(seed, n, cut):
    g = torch.Generator().manual_seed(seed)
    nats, mask = torch.rand(2, 30, generator=g), torch.rand(2, 30, generator=g) < .7
    mask[:, :3] = True
    whole = Tally(8*n, (), n).add(nats, mask).result()
    parts = Tally(8*n, (), n).add(nats[:, :cut], mask[:, :cut]).add(nats[:, cut:], mask[:, cut:], first=cut).result()
    assert ("bits_by_byte" in whole) == (n > 1)
    if n > 1:
        assert parts.pop("bits_by_byte") == pytest.approx(whole.pop("bits_by_byte"))
        by_place = [nats[:, i::n][mask[:, i::n]].mean().item()/math.log(2) for i in range(n)]
        assert Tally(8*n, (), n).add(nats, mask).result()["bits_by_byte"] == pytest.approx(by_place, rel=1e-6)
    assert parts == pytest.approx(whole)


# whole files

LAYOUTS = [("mono", "temporal"), ("stereo", "temporal"), ("stereo", "blocking-48"), ("stereo", "blocking")]
INPUTS = [dict(bits=8), dict(bits=8, input="dequantized"), dict(bits=6, quantization="mu_law", input="raw"),
          dict(bits=16, tokens="bytes"), dict(bits=24, tokens="bytes")]


def write_waves(folder, lengths):
    rng = np.random.default_rng(0)
    for i, frames in enumerate(lengths):
        t = np.arange(frames)[:, None]/8000
        wave = .3*np.sin(2*np.pi*(200 + 90*i)*t*[1, 1.5]) + .05*rng.standard_normal((frames, 2))
        soundfile.write(folder/f"{i}.wav", wave, 8000, subtype="PCM_24")
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory): return write_waves(tmp_path_factory.mktemp("audio"), (700, 700, 523, 700, 190, 523))


@pytest.fixture(scope="module")
def even(tmp_path_factory): return write_waves(tmp_path_factory.mktemp("even"), [480]*6)


def sets(audio, **options):
    return AudioData(DataConfig(**{"path": audio, "sample_len": 96, "train_percentage": .2, "drop_last": False,
                                   "batch_size": 2} | options))


def model_for(config):
    seed_everything(0)
    head = "bytes" if config.tokens == "bytes" else "dml" if config.bits == 6 else "categorical"
    encoder = "embedding" if config.input == "codes" else "linear_projection"
    backbone = SaShiMiConfig(d_model=8, n_layers=1, pool=(2,), ff=1, kernel=KernelConfig(d_state=8))
    return WaveModel(ModelConfig(bits=config.bits, head=head, encoder=encoder, backbone=backbone)).double()


@pytest.mark.slow
@pytest.mark.parametrize("options", INPUTS, ids=str)
@pytest.mark.parametrize("channels, layout", LAYOUTS)
def test_carried_windows_equal_one_convolution(audio, channels, layout, options):
    data = sets(audio, channels=channels, interleaving_strategy=layout, **options)
    model, c = model_for(data.config), data.config
    window, bits, tokens = (96 if layout == "blocking" else 100), 0.0, 0
    streams = {}
    for batch, begins in whole_files(data, window):
        if begins: current = streams[len(streams)] = []
        current.append(batch)
    with torch.no_grad():
        for parts in streams.values():
            x, y = (torch.cat([p[k] for p in parts], 1) for k in ("x", "y"))
            params, _ = model(x.double() if x.is_floating_point() else x)
            bits -= model.head.log_prob(params, y[..., 0]).sum().item()/math.log(2)
            tokens += y.numel()
            if c.input == "codes":  # no token is lost between windows
                tokens_in = x[:, 1:] % 256 if c.tokens_per_sample > 1 else x[:, 1:]
                assert torch.equal(tokens_in, y[:, :-1])
            assert torch.equal(x[:, :1], data.test[0]["x"][None, :1].expand(len(x), 1, 1))
    assert tokens == sum(data.test.lengths)*data.n_channels*c.tokens_per_sample
    model = model.float() if c.input != "codes" else model
    result = evaluate_whole(model, data, "cpu", window, ks=(1, 3))
    assert result["tokens"] == tokens and model.training
    assert result["bits_per_sample"] == pytest.approx(bits/tokens*c.tokens_per_sample,
                                                      abs=1e-6 if c.input == "codes" else 1e-5)
    if c.tokens_per_sample > 1: assert sum(result["bits_by_byte"]) == pytest.approx(result["bits_per_sample"])


@pytest.mark.parametrize("channels, layout", LAYOUTS)
@pytest.mark.parametrize("options", INPUTS, ids=str)
def test_whole_files_of_one_window_equal_evaluate(even, channels, layout, options):
    data = sets(even, channels=channels, interleaving_strategy=layout, sample_len=480, **options)
    model = model_for(data.config).float()
    windowed, whole = evaluate(model, data.test_loader(), "cpu"), evaluate_whole(model, data, "cpu", window=480)
    assert whole.pop("bits_by_byte", []) == pytest.approx(windowed.pop("bits_by_byte", []))
    assert whole == pytest.approx(windowed, rel=1e-6)


@pytest.mark.parametrize("name", ["classes16", "classes16_padded", "classes256"])
def test_figures_and_accuracies_of_the_reference(name):
    data = np.load(REFERENCE/f"{name}.npz", allow_pickle=False)
    logits, y = torch.from_numpy(data["logits"]).double(), torch.from_numpy(data["y"])
    mask = y != -100
    nats = torch.nn.functional.cross_entropy(logits[mask], y[mask]).item()
    for ours, key in ((nats, "cross_entropy"), (nats, "loss"), (bits_per_sample(nats), "bpb"),
                      (perplexity(nats), "ppl")):
        assert ours == pytest.approx(float(data[f"{key}_f64"]), rel=1e-9)
    share = mask.double().mean().item()                      # the reference counts padding as wrong answers
    for k, key in NAMES.items():
        hits = share*accuracy_at(logits, y, k, mask)
        assert math.isclose(np.float32(hits), float(data[f"{key}_f64"]), rel_tol=1e-7)     # stored in single precision
