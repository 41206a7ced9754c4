"""Seconds and memory of one training step of the full-size model, for both kernel forms and two window lengths.

    python benchmarks/train_step.py [--threads 2] [--repeats 3]

Every case runs in a process of its own, so that its peak memory is its own. The ratio of the two forms is from one run.
"""
import argparse
import json
import platform
import subprocess
import sys
import time

CASES = [(form, length) for form in ("dplr", "diag") for length in (8192, 16384)]


def measure(form, length, batch, threads, repeats):
    """One case: build, warm up with one step, time the rest."""
    import torch

    from sashimi_wb.model import ModelConfig, WaveModel
    from sashimi_wb.recipe import peak_bytes, reuse_memory
    from sashimi_wb.sashimi import SaShiMiConfig
    from sashimi_wb.ssm import KernelConfig

    reuse_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kernel = KernelConfig(form, disc="zoh" if form == "diag" else "bilinear")
    model = WaveModel(ModelConfig(8, backbone=SaShiMiConfig(kernel=kernel)))
    optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True)
    y = torch.randint(256, (batch, length, 1))
    x = torch.cat([torch.full_like(y[:, :1], 128), y[:, :-1]], 1)
    idle, seconds = peak_bytes(), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"form": form, "length": length, "batch": batch, "seconds": min(seconds[1:]), "first": seconds[0],
            "peak_gb": peak_bytes()/1e9, "idle_gb": idle/1e9, "loss": loss.item()}


def processor():
    """The processor's name, where the system tells it."""
    try: return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        form, length = args.case.split(",")
        return print(json.dumps(measure(form, int(length), args.batch, args.threads, args.repeats)))
    import torch
    print(f"full size (8 layers, width 64, state 64, pools 4 and 4, 8 bit, categorical), batch {args.batch}, {args.threads} threads")
    print(f"{processor()}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{'form':5} {'length':>7} {'s/step':>7} {'first':>7} {'peak GB':>8} {'idle GB':>8}")
    rows = {}
    for form, length in CASES:
        command = [sys.executable, __file__, "--case", f"{form},{length}", "--threads", str(args.threads),
                   "--repeats", str(args.repeats), "--batch", str(args.batch)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        rows[form, length] = row
        print(f"{form:5} {length:7,} {row['seconds']:7.2f} {row['first']:7.2f} {row['peak_gb']:8.2f} {row['idle_gb']:8.2f}", flush=True)
    for length in (8192, 16384):
        print(f"dplr / diag at {length:,}: {rows['dplr', length]['seconds']/rows['diag', length]['seconds']:.2f}")


if __name__ == "__main__": main()
