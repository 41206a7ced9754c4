"""What the other files leave of the reference's decoder, interleave and metrics folders, to 1e-9."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sashimi_wb.models.heads import SequenceDecoder
from sashimi_wb.tokens.layouts import deinterleave, interleave
from sashimi_wb.training.metrics import accuracy_at, bits_per_sample, perplexity

REFERENCE = Path(__file__).parents[1]/"reference"


def read(name): return np.load(REFERENCE/f"{name}.npz", allow_pickle=False)


@pytest.mark.parametrize("which", ["base", "fork"])
@torch.no_grad()
def test_decoder_overrides_and_step(which):
    z = read(f"decoder/sequence_decoder_{which}")
    x = torch.from_numpy(z["x"]).double()
    def ours(mode, n): return SequenceDecoder(4, None, mode=mode)(x, l_output=n)
    torch.testing.assert_close(ours("last", 2), torch.from_numpy(z["override_last_2_identity"]), rtol=1e-9, atol=1e-12)
    means = x.cumsum(1)/torch.arange(1, 10)[:, None]
    for n in (1, 2, 4, None):
        torch.testing.assert_close(ours("pool", n), means[:, -(n or 9):], rtol=1e-9, atol=1e-12)
        key = f"override_pool_{n}_identity"
        if n == 1: torch.testing.assert_close(ours("pool", n), torch.from_numpy(z[key]), rtol=1e-9, atol=1e-12)
        elif n == 4:
            # 4 outputs meet 4 features: wrong there
            assert (ours("pool", n) - torch.from_numpy(z[key])).abs().max() > 1e-3
        else: assert str(z[f"{key}/error"]) == "RuntimeError"                                   # theirs cannot
    decoder = SequenceDecoder(4, 5).double()
    decoder.load_state_dict({"output.weight": torch.from_numpy(z["weight"]).double(),
                             "output.bias": torch.from_numpy(z["bias"]).double()})
    torch.testing.assert_close(decoder.step(x[:, 0]), torch.from_numpy(z["step"]), rtol=1e-9, atol=1e-12)


def test_deinterleaved_features():
    z = read("interleave/interleave")
    config = json.loads(str(z["config"]))
    right = 0
    for length in config["lengths"]:
        stereo = torch.from_numpy(z[f"L{length}/stereo"])[None]
        for strategy in config["strategies"]:
            ours, key = deinterleave(interleave(stereo, strategy), strategy), f"L{length}/{strategy}"
            # (1 t c 3), as the file has them
            features = torch.stack([ours, 10*ours, 100*ours], -1)
            theirs = torch.from_numpy(z[f"{key}/deinterleaved"])
            assert torch.equal(ours, stereo)
            if z[f"{key}/deinterleave_correct"]:
                right += 1
                torch.testing.assert_close(features, theirs, rtol=1e-6, atol=0)                 # single precision
            else: assert not torch.allclose(features, theirs)
    assert right > 0


@pytest.mark.parametrize("name", ["classes16", "classes16_padded", "classes256"])
def test_metrics(name):
    z = read(f"metrics/{name}")
    logits, y = torch.from_numpy(z["logits"]).double(), torch.from_numpy(z["y"])
    mask = y != -100
    nats = F.cross_entropy(logits[mask], y[mask]).item()
    for ours, key in ((nats, "cross_entropy"), (nats, "loss"), (bits_per_sample(nats), "bpb"),
                      (perplexity(nats), "ppl")):
        assert ours == pytest.approx(float(z[f"{key}_f64"]), rel=1e-9)
    # theirs takes padding for wrong answers
    share = mask.double().mean().item()
    for k, key in ((1, "accuracy"), (3, "accuracy@3"), (5, "accuracy@5"), (10, "accuracy@10")):
        hits = share*accuracy_at(logits, y, k, mask)
        # stored in single precision
        assert math.isclose(np.float32(hits), float(z[f"{key}_f64"]), rel_tol=1e-7)
