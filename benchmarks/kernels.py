"""Measure time and memory of one layer's kernel for every method, and of the whole layer, at three lengths.

    python benchmarks/kernels.py [--lengths 8192 131072 1048576] [--threads 2] [--limit 600]

Width 64, 32 conjugate pairs. A case is a form ("dplr", "diag") and a value of `KernelConfig.method`; "layer" is S4
with its convolution. Ratios are to "auto" of the same form and length in the same run. pykeops compiles in a case
that is not timed.
"""
import argparse
import json
import time

from machine import case, describe

WAYS = ["dplr auto", "dplr torch", "dplr keops", "diag auto", "diag keops", "dplr layer", "diag layer"]
LENGTHS = [8192, 131072, 1048576]


def measure(way, length, args):
    """Time a forward pass without gradients, and a forward and backward pass, the best of several runs."""
    import torch

    from sashimi_wb.ssm.kernel_cauchy import keops_works
    from sashimi_wb.ssm.learned import KernelConfig, SSMKernel
    from sashimi_wb.ssm.s4 import S4
    from sashimi_wb.training.recipe import peak_bytes

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    form, method = way.split()
    if method == "keops" and not keops_works(): return {"note": "no C++ compiler"}
    config = KernelConfig(form, args.d_state, disc="zoh" if form == "diag" else "bilinear",
                          method="auto" if method == "layer" else method)
    if method == "layer":
        layer = S4(args.width, config)
        def run(length): return layer(torch.randn(1, length, args.width), need_state=False)[0]
    else: run = SSMKernel(args.width, config)
    run(64).sum().backward()     # warm-up: thread pools, compiled formulas
    idle, forward, both = peak_bytes(), [], []
    for _ in range(args.repeats):
        start = time.perf_counter()
        with torch.no_grad(): run(length)
        forward.append(time.perf_counter() - start)
        start = time.perf_counter()
        run(length).sum().backward()
        both.append(time.perf_counter() - start)
        if both[0] > 20: break
    return {"forward": min(forward), "both": min(both), "extra_gb": (peak_bytes() - idle)/1e9,
            "peak_gb": peak_bytes()/1e9}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--d-state", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600, help="seconds per case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        way, length = args.case.split(",")
        return print(json.dumps(measure(way, int(length), args)))
    options = ["--width", args.width, "--d-state", args.d_state, "--threads", args.threads, "--repeats", args.repeats]
    print(f"one layer: width {args.width}, state {args.d_state} ({args.d_state//2} pairs), n_ssm 1, "
          "float32, float64 inside the kernel")
    print(describe(args.threads))
    for way in args.ways:
        if "keops" in way: case(__file__, "--case", f"{way},64", *options)   # compile outside the time limit
    columns = f"{'forward s':>10} {'with backward':>14} {'extra GB':>9} {'peak GB':>8} {'ratio':>6}"
    print(f"{'method':11} {'length':>9} {columns}")
    for length in args.lengths:
        base = {}
        for way in args.ways:
            row = case(__file__, "--case", f"{way},{length}", *options, limit=args.limit)
            if "note" in row:
                print(f"{way:11} {length:9,} {row['note']}", flush=True)
                continue
            form = way.split()[0]
            base.setdefault(form, row["both"] if way == f"{form} auto" else float("nan"))
            print(f"{way:11} {length:9,} {row['forward']:10.3f} {row['both']:14.3f} {row['extra_gb']:9.3f} "
                  f"{row['peak_gb']:8.2f} {row['both']/base[form]:6.2f}", flush=True)


if __name__ == "__main__": main()
