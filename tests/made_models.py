"""Untrained models that tests save as a run leaves them."""
import torch

from sashimi_wb.checkpoints import save_weights
from sashimi_wb.core import to_json
from sashimi_wb.experiments import experiment
from sashimi_wb.model import WaveModel


def save_model(path, **changes):
    """A model of the smoke preset with changes, linear codes if nothing else is said."""
    e = experiment("smoke", {"quantization": "linear"} | changes)
    torch.manual_seed(1)
    return save_weights(path, WaveModel(e.model_config()), to_json(e.model_config()), {"experiment": to_json(e), "sample_rate": e.target_sr})
