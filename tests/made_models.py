"""Untrained models that tests save as a run leaves them."""
import torch

from sashimi_wb.core.system import to_json
from sashimi_wb.models.wave_model import WaveModel
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.training.checkpoints import save_weights


def save_model(path, **changes):
    """Save an untrained model of the smoke preset with changes; codes are linear unless changed."""
    e = experiment("smoke", {"quantization": "linear"} | changes)
    torch.manual_seed(1)
    return save_weights(path, WaveModel(e.model_config()), to_json(e.model_config()),
                        {"experiment": to_json(e), "sample_rate": e.target_sr})
