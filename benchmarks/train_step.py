"""Measure time and memory of a training step of the full-size model: two kernel forms, window lengths and batch sizes.

    python benchmarks/train_step.py [--threads 2] [--repeats 3] [--profile]

Ratios are within one run. `--profile` adds the share of time of each part of the model.
"""
import argparse
import json
import time

from machine import case, describe

CASES = [(form, length, batch) for form in ("dplr", "diag") for length, batch in ((8192, 1), (8192, 4), (16384, 1))]


def build(form, length, batch, threads):
    """The full-size model, its optimizer and a random batch."""
    import torch

    from sashimi_wb.models.sashimi import SaShiMiConfig
    from sashimi_wb.models.wave_model import ModelConfig, WaveModel
    from sashimi_wb.ssm.learned import KernelConfig
    from sashimi_wb.tokens.streams import shift
    from sashimi_wb.training.recipe import reuse_memory

    reuse_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kernel = KernelConfig(form, disc="zoh" if form == "diag" else "bilinear")
    model = WaveModel(ModelConfig(8, backbone=SaShiMiConfig(kernel=kernel)))
    optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True)
    y = torch.randint(256, (batch, length, 1))
    return model, optimizer, shift(y, 128), y


def step(model, optimizer, x, y):
    """Make one training step; return its loss."""
    loss = model.loss(x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def measure(form, length, batch, threads, repeats):
    """Time steps after one warm-up step."""
    from sashimi_wb.training.recipe import peak_bytes
    made, seconds = build(form, length, batch, threads), []
    idle = peak_bytes()
    for _ in range(repeats + 1):
        start = time.perf_counter()
        loss = step(*made)
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds[1:]), "first": seconds[0], "peak_gb": peak_bytes()/1e9, "idle_gb": idle/1e9,
            "loss": loss}


PARTS = {"state-space kernels": ("_DenseKernel", "_DiagonalKernel", "discretize"), "convolution (FFT)": ("_Convolve",),
         "linear maps": ("aten::addmm", "aten::mm"),
         "GELU, GLU, norms": ("aten::gelu", "aten::glu", "aten::native_layer_norm"),
         "optimizer": ("aten::_fused_adamw_",)}


def profile(form, length, batch, threads):
    """The share of a step's time of each part; an operator counts with the operators that it calls."""
    import torch
    made = build(form, length, batch, threads)
    step(*made)
    with torch.profiler.profile() as p: step(*made)
    events = p.key_averages()
    total, shares = sum(e.self_cpu_time_total for e in events), {}
    for part, names in PARTS.items():
        own = [e for e in events if e.key.startswith(names) and not e.key.startswith("autograd::")]
        shares[part] = sum(e.cpu_time_total for e in own)/total
    return shares | {"the rest": 1 - sum(shares.values())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        what, form, length, batch = args.case.split(",")
        given = form, int(length), int(batch), args.threads
        return print(json.dumps(profile(*given) if what == "profile" else measure(*given, args.repeats)))
    print("full size (8 layers, width 64, state 64, pools 4 and 4, 8 bit, categorical), float32")
    print(describe(args.threads))
    print(f"{'form':5} {'length':>7} {'batch':>5} {'s/step':>7} {'first':>7} {'peak GB':>8} {'idle GB':>8}")
    seconds = {}
    for form, length, batch in CASES:
        row = case(__file__, "--case", f"time,{form},{length},{batch}", "--threads", args.threads, "--repeats",
                   args.repeats)
        if "note" in row: print(f"{form:5} {length:7,} {batch:5} {row['note']}", flush=True)
        else:
            seconds[form, length, batch] = row["seconds"]
            print(f"{form:5} {length:7,} {batch:5} {row['seconds']:7.2f} {row['first']:7.2f} "
                  f"{row['peak_gb']:8.2f} {row['idle_gb']:8.2f}", flush=True)
    for form in ("dplr", "diag"):
        print(f"{form}: batch 4 / batch 1 at 8,192: {seconds[form, 8192, 4]/seconds[form, 8192, 1]:.2f}")
    print(f"dplr / diag at 8,192: {seconds['dplr', 8192, 1]/seconds['diag', 8192, 1]:.2f}")
    if args.profile:
        for form in ("dplr", "diag"):
            shares = case(__file__, "--case", f"profile,{form},8192,1", "--threads", args.threads)
            print(form, ", ".join(f"{k} {v:.0%}" if isinstance(v, float) else v for k, v in shares.items()))


if __name__ == "__main__": main()
