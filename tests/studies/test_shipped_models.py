"""The trained checkpoints in data/checkpoints: size, metadata, the figures of their README, and the sound of clips."""
import hashlib
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sashimi_wb.audio.files import read_span
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.cli import load_model
from sashimi_wb.core.system import bundled
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.synthesis.generation import generate
from sashimi_wb.training.evaluation import evaluate

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "data" / "checkpoints"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMES = "music", "digits"


@cache
def shipped(name):
    """Model, experiment, sample rate and the bundled audio of a checkpoint."""
    trained = load_model(FOLDER / f"{name}.safetensors")
    data = AudioData(trained.experiment.data_config(bundled(f"data/{name}")))
    return trained.model, trained.experiment, trained.sample_rate, data


def level_db(wave):
    """Power of a whole array in dB of full scale."""
    return 10 * np.log10(np.mean(np.square(wave)))


def claimed(row):
    """The figures of music and digits in a row of the README's table."""
    return dict(zip(NAMES, re.search(rf"^\| {row} \| ([^|]+) \| ([^|]+) \|$", PAGE, re.M).groups()))


def test_they_are_small_and_alone():
    assert sorted(p.name for p in FOLDER.iterdir()) == ["README.md", "digits.safetensors", "music.safetensors"]
    assert sum((FOLDER / f"{name}.safetensors").stat().st_size for name in NAMES) <= 3_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_page_describes_this_file(name):
    path, (model, e, rate, _) = FOLDER / f"{name}.safetensors", shipped(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in PAGE
    assert e == experiment(f"demo-{name}"), "the preset is not the one that the checkpoint was trained with"
    assert claimed("parameters")[name] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert claimed("file")[name] == f"`{path.name}`" and claimed("optimizer steps")[name] == f"{e.steps[-1]:,}"
    assert claimed("sample rate")[name] == f"{rate:,} Hz"


@pytest.mark.parametrize("name", NAMES)
def test_bits_of_the_test_files_are_as_claimed(name):
    model, _, _, data = shipped(name)
    found = evaluate(model, data.test_loader(), ks=())
    assert found["bits_per_sample"] == pytest.approx(float(claimed("bits per sample, test files")[name]), abs=0.002)


@pytest.mark.parametrize("name, start_s", [("music", 3.0), ("digits", 0.2)])
def test_a_continuation_is_neither_silent_nor_clipped(name, start_s):
    model, e, rate, data = shipped(name)
    n = rate // 4
    waves = np.stack([read_span(f, round(start_s * rate), 2 * n, e.channels, rate) for f in data.test.files[:4]])
    made = generate(model, n, torch.from_numpy(waves[:, :n]).float(), temperature=e.temperature,
                    progress=False)
    assert made.shape == waves[:, n:].shape and made.abs().max() < 0.99
    assert abs(level_db(made.numpy()) - level_db(waves[:, n:])) < 12
