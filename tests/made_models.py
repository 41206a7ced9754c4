"""Untrained models that tests save as a run leaves them, and models whose weights are the same on every machine."""
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


def fill_exactly(model, size=0.5, middle=0.5):
    """Give a model weights from exact arithmetic, since torch's random numbers differ between machines."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(((torch.arange(p.numel())*40_503 % 65_537/2**16 - middle)*size).reshape(p.shape))
    return model.eval()
