"""One model trained by several processes: the training of one process up to the rounding of float32."""
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.core.system import seed_everything
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.training.checkpoints import read_weights
from sashimi_wb.training.recipe import TrainConfig
from sashimi_wb.training.trainer import fit, trained_steps

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(max_epochs=3, device="cpu", save_every=2, patience=0, factor=0.5)


class Recording(WaveModel):
    """Writes the sum of its weights and the size of its batch at every loss into a file of the process.

    In the process, and at the step, that an environment variable names it dies."""
    def loss(self, x, y, mask, rows=None):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        path = Path(os.environ["SASHIMI_TEST_RANKS"])/f"{rank}.txt"
        with path.open("a") as f:
            f.write(f"{sum(p.detach().double().abs().sum().item() for p in self.parameters()).hex()} {len(x)}\n")
        if os.environ.get("SASHIMI_TEST_DIES") == f"{rank} {len(path.read_text().splitlines())}":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(x, y, mask)


def small(seed=0):
    seed_everything(seed)
    backbone = SaShiMiConfig(d_model=8, n_layers=1, pool=(2,), ff=1, kernel=KernelConfig(d_state=4))
    return Recording(ModelConfig(bits=4, backbone=backbone))


@pytest.fixture(autouse=True)
def ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("SASHIMI_TEST_RANKS", str(tmp_path))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """25 windows with padding and context in batches of 4: the last batch of a pass is smaller than four processes."""
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for i in range(7):
        t = np.arange(470)/8000
        soundfile.write(folder/f"{i}.wav", 0.4*np.sin(2*np.pi*(200 + 90*i)*t) + 0.05*rng.standard_normal(470), 8000)
    data = AudioData(DataConfig(folder, bits=4, sample_len=110, context_len=10, batch_size=4, train_percentage=0.75,
                                drop_last=False, train_chunk_size=5, val_chunk_size=1))
    assert len(data.train) == 25
    return data


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Record, model and folder of a training by one process."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SASHIMI_TEST_RANKS", str(folder))
        history = fit(model := small(), data, CONFIG, folder, progress=False)
    return history, model, folder


def assert_same_training(found, model, folder, whole):
    history, alone, one = whole
    np.testing.assert_allclose(found.train_nats, history.train_nats, rtol=1e-5)
    assert found.tokens == history.tokens and found.best["step"] == history.best["step"]
    for a, b in zip(found.epochs, history.epochs, strict=True):
        for k in ("epoch", "step", "lr", "tokens"): assert a[k] == b[k]
        assert a["val"]["tokens"] == b["val"]["tokens"]
        assert a["val"]["nats_per_token"] == pytest.approx(b["val"]["nats_per_token"], rel=1e-5)
        assert a["val"]["accuracy"] == pytest.approx(b["val"]["accuracy"], abs=2/b["val"]["tokens"])
    for a, b in zip(model.parameters(), alone.parameters()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    best, wanted = (read_weights(f/"best.safetensors") for f in (folder, one))
    assert best.extra.keys() == wanted.extra.keys() and best.extra["step"] == wanted.extra["step"]
    for name, value in wanted.state.items(): torch.testing.assert_close(best.state[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one_does(data, whole, tmp_path):
    seen, config = [], replace(CONFIG, n_processes=2)
    found = fit(model := small(), data, config, tmp_path/"run", progress=False, on_epoch=seen.append)
    assert_same_training(found, model, tmp_path/"run", whole)
    assert seen == found.epochs                                # called in this process
    first, second = ((tmp_path/f"{r}.txt").read_text().splitlines() for r in (0, 1))
    assert [line.split()[0] for line in first] == [line.split()[0] for line in second]   # the same weights
    sizes = [(int(a.split()[1]), int(b.split()[1])) for a, b in zip(first, second)]
    assert sizes == [(2, 2)]*6 + [(1, 1)] + [(2, 2)]*6 + [(1, 1)] + [(2, 2)]     # one of a last batch is blank
    assert fit(small(1), data, config, tmp_path/"run", progress=False) == found          # finished
    assert not [p for p in (tmp_path/"run").rglob("*") if p.suffix in (".tmp", ".lock")]


def test_another_number_of_processes_goes_on(data, whole, tmp_path, monkeypatch):
    """One of four processes is killed in the middle of an epoch; one process goes on, is cut off, and two go on."""
    monkeypatch.setenv("SASHIMI_TEST_DIES", "3 8")
    with pytest.raises(RuntimeError, match="process 3 of 4 ended.*SIGKILL.*The same call resumes"):
        fit(small(), data, replace(CONFIG, n_processes=4), tmp_path/"run", progress=False)
    assert trained_steps(tmp_path/"run") == 6
    shutil.copytree(tmp_path/"run", tmp_path/"other")
    monkeypatch.delenv("SASHIMI_TEST_DIES")
    class Cut(Exception): "A power cut."
    cut = small(1)
    loss, steps = cut.loss, iter(range(5))
    def counted(*batch):
        if next(steps, None) is None: raise Cut
        return loss(*batch)
    cut.loss = counted
    with pytest.raises(Cut): fit(cut, data, CONFIG, tmp_path/"run", progress=False)
    assert trained_steps(tmp_path/"run") == 10
    found = fit(model := small(2), data, replace(CONFIG, n_processes=2), tmp_path/"run", progress=False)
    assert found.restarts == 2
    assert_same_training(found, model, tmp_path/"run", whole)


def test_errors_of_other_processes_come_back_as_themselves(data, tmp_path):
    config = replace(CONFIG, n_processes=2, lr=1e30, grad_clip=None, scheduler="constant")
    with pytest.raises(ValueError, match="training diverged.*lower lr"):
        fit(small(), data, config, tmp_path/"run", progress=False)


def test_what_cannot_be_divided_or_sent(data, tmp_path, monkeypatch):
    def refused(match, model=None, device="cpu", **options):
        with pytest.raises(ValueError, match=match):
            fit(model or small(), data, replace(CONFIG, device=device, **options), tmp_path/"run", progress=False)
    refused("batch_size=4 cannot be divided among 3 processes.*batch_size=3 or 6, or one of 1, 2, 4 pro", n_processes=3)
    local = small()
    local.loss = lambda *batch: 0
    refused("can be pickled, defined in a module", local, n_processes=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused("expected a GPU for each of 2 processes on this machine, found 1", device="cuda", n_processes=2)
    refused("or 'cuda' for one GPU each, got 'cuda:0'", device="cuda:0", n_processes=2)
    assert not (tmp_path/"run"/"last.ckpt").exists()
