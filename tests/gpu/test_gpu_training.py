"""Training runs on a GPU: fit, interruption, resumption, a change of the device, evaluation."""
import itertools
import wave as stdlib_wave
from dataclasses import replace

import numpy as np
import pytest
import torch

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.held import HeldData, for_device
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.core.system import seed_everything
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.training.evaluation import evaluate
from sashimi_wb.training.recipe import TrainConfig
from sashimi_wb.training.trainer import fit

REPEATED = 1e-6   # the same steps on the same device: equal but for sums of several threads
MOVED = 1e-3      # on another device: rounding errors grow over the steps
STEPS = 5


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for i in range(8):
        t = np.arange(2000)/8000
        samples = 0.4*np.sin(2*np.pi*(200 + 90*i)*t) + 0.05*rng.standard_normal(len(t))
        with stdlib_wave.open(str(folder/f"{i}.wav"), "wb") as f:
            f.setnchannels(1), f.setsampwidth(2), f.setframerate(8000)
            f.writeframes((samples*2**15).astype("<i2").tobytes())
    return folder


def data(audio, **options):
    return AudioData(DataConfig(path=audio, bits=8, sample_len=256, batch_size=4, train_percentage=0.75,
                                train_chunk_size=STEPS, val_chunk_size=2, **options))


def small(form, dropout=0.0):
    seed_everything(0)
    backbone = SaShiMiConfig(16, 1, (2,), kernel=KernelConfig(form, 16), dropout=dropout)
    return WaveModel(ModelConfig(8, backbone=backbone))


def config(device, **options):
    return replace(TrainConfig(max_epochs=2, device=str(device), save_every=2, log_every=1, lr=0.004), **options)


class Cut(Exception): "A power cut."


def cut_at(model, step):
    "Raise `Cut` before the loss of a step is computed."
    loss, steps = model.loss, itertools.count(1)
    def counted(*batch):
        if next(steps) == step: raise Cut
        return loss(*batch)
    model.loss = counted
    return model


def run(audio, folder, config, model): return fit(model, data(audio), config, folder, progress=False)


def close(got, wanted, tolerance): np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("form", ["dplr", "diag"])
def test_an_interrupted_run_ends_as_one_without_interruption(form, precision, audio, tmp_path, device):
    """Dropout is on, so the random numbers of the device go on as well."""
    settings = config(device, precision=precision)
    whole = run(audio, tmp_path/"whole", settings, small(form, 0.2))
    with pytest.raises(Cut): run(audio, tmp_path/"cut", settings, cut_at(small(form, 0.2), 8))
    resumed_model = small(form, 0.2)
    resumed = run(audio, tmp_path/"cut", settings, resumed_model)
    assert resumed.restarts == 1 and len(resumed.train_nats) == 2*STEPS
    close(resumed.train_nats, whole.train_nats, REPEATED if precision == "32-true" else 1e-3)
    close(resumed.epochs[-1]["val"]["nats_per_token"], whole.epochs[-1]["val"]["nats_per_token"], 1e-4)
    assert (whole.device_bytes > 0) == (device.type == "cuda")


def test_a_run_moves_to_the_device_and_back(audio, tmp_path, device):
    here = run(audio, tmp_path/"cpu", config("cpu"), small("diag"))
    for i, (first, then) in enumerate([("cpu", device), (device, "cpu")]):
        folder = tmp_path/f"{i}"
        with pytest.raises(Cut): run(audio, folder, config(first), cut_at(small("diag"), 6))
        moved = run(audio, folder, config(then), small("diag"))
        assert moved.restarts == 1
        close(moved.train_nats, here.train_nats, MOVED)


def test_evaluation_is_that_of_the_cpu(audio, device):
    model, d = small("dplr"), data(audio)
    here, there = (evaluate(model, d.test_loader(), str(name)) for name in ("cpu", device))
    close(there["nats_per_token"], here["nats_per_token"], 1e-5)
    assert here["tokens"] == there["tokens"] and abs(here["accuracy@10"] - there["accuracy@10"]) < 0.01
    assert next(model.parameters()).device.type == "cpu"


def test_workers_and_pinned_memory(audio, device):
    plain, ahead = (list(data(audio, num_workers=n).train_loader()) for n in (0, 2))
    for a, b in zip(plain, ahead, strict=True):
        assert all(torch.equal(a[k], b[k].to(device, non_blocking=True).cpu()) for k in a)
        assert b["x"].is_pinned() == torch.cuda.is_available()


@pytest.mark.parametrize("options", [{}, {"input": "dequantized", "quantization": "mu_law", "drop_last": False},
                                     {"bits": 16, "tokens": "bytes", "context_len": 16, "pad_len": 8}], ids=str)
def test_a_held_corpus_gives_the_batches_of_the_files(options, audio, device):
    sizes = {"sample_len": 256, "batch_size": 4, "train_percentage": 0.75}
    given = AudioData(DataConfig(path=audio, **sizes | options))
    held = HeldData(given, device)
    for loaders in ((held.train_loader(1, 2), given.train_loader(1, 2)), (held.val_loader(), given.val_loader())):
        for a, b in zip(*loaders, strict=True):
            for name in ("x", "y", "mask"):
                assert a[name].device.type == device.type and torch.equal(a[name].cpu(), b[name]), name
    assert for_device(given, torch.device("cpu")) is given
    if device.type == "cuda": assert isinstance(for_device(given, device), HeldData)


def test_training_on_a_held_corpus_is_training_on_the_files(audio, tmp_path, device):
    losses = [fit(small("diag"), d, config(device), tmp_path/name, progress=False).train_nats
              for name, d in (("files", data(audio)), ("held", HeldData(data(audio), device)))]
    close(*losses, REPEATED)


def test_a_batch_that_does_not_fit_is_an_error_that_names_one_that_does(audio, tmp_path, device):
    if device.type == "cpu": pytest.skip("needs the memory of a GPU")
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**28)/total)
    try:
        def run(batch_size, folder):
            made = AudioData(DataConfig(path=audio, sample_len=512, batch_size=batch_size, context_len=511,
                                        train_percentage=0.75, train_chunk_size=2, val_chunk_size=1))
            return fit(small("diag"), made, config(device, max_epochs=1), tmp_path/folder, progress=False)
        with pytest.raises(ValueError, match="batch_size=4096: .*; use batch_size=") as e: run(4096, "large")
        fits = int(str(e.value).split("use batch_size=")[1].split(",")[0])
        assert 1 < fits < 4096 and run(fits, "fits").steps == 2
    finally: torch.cuda.set_per_process_memory_fraction(1.0)
