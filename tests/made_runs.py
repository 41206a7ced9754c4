"""Make finished runs without training: identity, audio and format are those of real runs, the figures are invented."""
import json

import numpy as np
import torch

from sashimi_wb.core.system import write_atomic
from sashimi_wb.show.players import sound_bytes
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run import Run, excerpt, provenance
from sashimi_wb.training.metrics import bits_per_byte, compression_ratio

# of the bits of a sample, what the baselines need
SHARES = {"order0": 0.75, "flac5": 0.6, "flac8": 0.58, "lpc_rice": 0.56, "wavpack": 0.57, "tta": 0.59, "alac": 0.61,
          "adaptive": 0.52}


def _figures(bits, bps):
    "The figures of a test that needs so many bits per sample."
    return {"tokens": 1000, "nats_per_token": bps*np.log(2), "bits_per_sample": bps,
            "bits_per_byte": bits_per_byte(bps, bits),
            "compression_ratio": compression_ratio(bps, bits), "perplexity": 2**bps, "accuracy": 0.1,
            "accuracy@3": 0.2, "accuracy@5": 0.3, "accuracy@10": 0.4, "realisable": bps, "whole": bps*0.97}


def make_run(folder, audio="", share=0.6, **changes):
    """Make a run of the smoke preset with changes, which needs `share` of its bits; codes are linear unless changed."""
    run = Run(experiment("smoke", {"quantization": "linear", "prompt_s": 0.3, "continuation_s": 0.7} | changes), audio,
              folder)
    e, data = run.experiment, run.data
    clip = excerpt(data, e.prompt_s + e.continuation_s)
    original = clip.numpy()
    quantized = data.quantizer.decode(data.quantizer.encode(clip[None]))[0].clamp(-1, 1).numpy()
    n, noise = round(e.prompt_s*data.sample_rate), np.random.default_rng(e.seed).normal(0, 0.02, quantized.shape)
    made = np.concatenate([quantized[:n], (quantized*0.8 + noise).clip(-1, 1)[n:]]).astype(np.float32)
    for name, wave in {"original": original, "quantized": quantized, "continuation": made}.items():
        write_atomic(run.folder/f"{name}.flac", sound_bytes(wave, data.sample_rate))
    bps, steps = share*e.bits + 0.01*e.seed, e.steps or (4,)
    falling = [bps + 2*np.exp(-3*i/40) for i in range(1, 41)]
    record = {
        "hash": run.hash, **run.identity,
        "results": [{"steps": s, "matched": matched, "tokens": s*e.sample_len,
                     "audio_s": s*e.sample_len/data.sample_rate, "test": _figures(e.bits, bps)}
                    for s, matched in zip(steps, e.matched)],
        "baselines": {k: share*e.bits for k, share in SHARES.items()} | {"flac8_linear": 0.5*e.bits},
        "stages": [], "curve": {"steps": list(range(1, 41)), "bits": falling},
        "validation": [{"epoch": i, "step": 10*(i + 1), "train_nats": 1.0, "val": _figures(e.bits, falling[10*i + 9]),
                        "lr": e.lr, "seconds": 1.0,
                        "tokens": 100} for i in range(4)],
        "sample_rate": data.sample_rate, "n_channels": data.n_channels, "reductions": data.reductions(),
        "remarks": data.remarks(),
        "test_files": [f.name for f in data.test.files], "parameter_count": 16376,
        "seconds": {"training": 1.0, "all": 2.0},
        "peak_bytes": 5*10**8, "provenance": provenance(torch.device("cpu")),
    }
    write_atomic(run.result_path, json.dumps(record, indent=1))
    return run
