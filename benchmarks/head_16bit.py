"""Measure time and memory of a categorical head's loss and gradients at 65,536 codes, for four implementations.

    python benchmarks/head_16bit.py [--tokens 8192] [--codes 65536] [--threads 2]

"plain" stores all logits; "torch chunked" is `torch.nn.functional.linear_cross_entropy`, if torch has it;
"checkpointed" recomputes blocks of 256 tokens in the backward pass; "blocks" is
`sashimi_wb.models.blocked_cross_entropy`. Memory is the peak minus that of inputs and parameters, gradients included;
each implementation runs in its own process. Time is the best of several steps after the first. Ratios are to "plain".
Differences to "plain", in loss and gradients, are relative to the largest value of the same array.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import case, describe

WAYS = ["plain", "torch chunked", "checkpointed", "blocks"]


def ways(name):
    """An implementation of the loss by name, a function of feats, table, bias, codes; None if torch lacks it."""
    import torch
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    from sashimi_wb.models.blocked_cross_entropy import blocked_cross_entropy

    def plain(x, table, bias, y): return F.cross_entropy(F.linear(x, table, bias), y)

    def chunked(x, table, bias, y):
        return F.linear_cross_entropy(x, table, y, linear_bias=bias, options=torch.nn.LinearCrossEntropyOptions())

    def part(x, table, bias, y): return F.cross_entropy(F.linear(x, table, bias), y, reduction="sum")

    def checkpointed(x, table, bias, y):
        pieces = zip(x.split(256), y.split(256))
        return sum(checkpoint(part, a, table, bias, b, use_reentrant=False) for a, b in pieces)/len(x)

    def blocks(x, table, bias, y): return blocked_cross_entropy(x, table, bias, y, torch.full((len(x),), 1/len(x)))
    if name == "torch chunked" and not hasattr(F, "linear_cross_entropy"): return None
    return dict(zip(WAYS, (plain, chunked, checkpointed, blocks)))[name]


def measure(name, tokens, codes, width, threads, repeats, folder):
    """Time one implementation after a first step; write loss and gradients to a file."""
    import torch

    from sashimi_wb.training.recipe import peak_bytes
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loss = ways(name)
    if loss is None: return {"note": f"torch {torch.__version__} does not have it"}
    inputs = x, table, bias = [torch.randn(*shape, requires_grad=True)
                               for shape in ((tokens, width), (codes, width), (codes,))]
    with torch.no_grad(): table.mul_(width**-0.5)
    y = torch.randint(codes, (tokens,))
    idle, seconds = peak_bytes(), []
    for _ in range(repeats + 1):
        for p in inputs: p.grad = None
        start = time.perf_counter()
        value = loss(x, table, bias, y)
        value.backward()
        seconds.append(time.perf_counter() - start)
    peak = peak_bytes()
    np.savez(Path(folder)/name, value.detach().numpy(), *(p.grad.numpy() for p in inputs))
    return {"seconds": min(seconds[1:]), "extra_mb": (peak - idle)/1e6}


def difference(folder, name):
    """The largest difference to "plain" in loss and gradients, relative to the largest value of the array."""
    found, want = (np.load(Path(folder)/f"{n}.npz") for n in (name, "plain"))
    return max(float(np.abs(found[k] - want[k]).max()/np.abs(want[k]).max()) for k in want)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("tokens", 8192), ("codes", 65536), ("width", 64), ("threads", 2), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return print(json.dumps(measure(args.case, args.tokens, args.codes, args.width, args.threads, args.repeats,
                                        args.folder)))
    print(f"loss and gradients of a categorical head: "
          f"{args.tokens:,} tokens, {args.codes:,} codes, width {args.width}, float32")
    print(describe(args.threads))
    print(f"{'way':14} {'seconds':>8} {'extra MB':>9} {'time ratio':>11} {'largest difference':>19}")
    options = [word for name in ("tokens", "codes", "width", "threads", "repeats")
               for word in (f"--{name}", getattr(args, name))]
    with tempfile.TemporaryDirectory() as folder:
        base = None
        for name in WAYS:
            row = case(__file__, "--case", name, "--folder", folder, *options)
            if "note" in row:
                print(f"{name:14} {row['note']}", flush=True)
                continue
            base = base or row
            ratio, off = row["seconds"]/base["seconds"], difference(folder, name)
            print(f"{name:14} {row['seconds']:8.2f} {row['extra_mb']:9.0f} {ratio:11.2f} {off:19.1e}", flush=True)


if __name__ == "__main__": main()
