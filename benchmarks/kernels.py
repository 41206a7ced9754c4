"""Seconds and memory of the S4 kernel of one layer, for every way of computing it, at three lengths.

    python benchmarks/kernels.py [--lengths 8192 131072 1048576] [--threads 2] [--limit 300]

Every case runs in a process of its own, so that its peak memory is its own; a case over the limit is stopped and says so.
pykeops compiles in a first case that is not timed. Ratios are to doubling (dplr) at the same length, of one run.
"""
import argparse
import json
import platform
import subprocess
import sys
import time

WAYS = ["doubling dplr", "doubling diag", "cauchy torch", "cauchy keops"]
LENGTHS = [8192, 131072, 1048576]


def measure(way, length, width, d_state, threads, repeats):
    """One case: forward without gradient, then forward and backward, the best of some; memory is of the second."""
    import torch

    from sashimi_wb.cauchy import dplr_kernel_cauchy, keops_works
    from sashimi_wb.recipe import peak_bytes
    from sashimi_wb.ssm import KernelConfig, SSMKernel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    method, form = way.split()
    if form == "keops" and not keops_works(): return {"way": way, "length": length, "note": "no C++ compiler"}
    diagonal = form == "diag"
    kernel = SSMKernel(width, KernelConfig("diag" if diagonal else "dplr", d_state, disc="zoh" if diagonal else "bilinear"))

    def spectrum(length):
        A = kernel._spread(torch.complex(-kernel.A_real.double().exp(), -kernel.A_imag.double()))
        B, P, C = (torch.view_as_complex(z.double()) for z in (kernel.B, kernel.P, kernel.C))
        dt = torch.nn.functional.softplus(kernel.inv_dt.double())
        return dplr_kernel_cauchy(A, kernel._spread(B)[0], kernel._spread(P), C, dt, length, form)

    run = kernel if method == "doubling" else spectrum
    run(64).sum().backward()                                   # warm: thread pools, compiled formulas
    idle, forward, both = peak_bytes(), [], []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad(): run(length)
        forward.append(time.perf_counter() - start)
        start = time.perf_counter()
        run(length).square().sum().backward()
        both.append(time.perf_counter() - start)
        if both[0] > 20: break
    return {"way": way, "length": length, "forward": min(forward), "both": min(both), "extra_gb": (peak_bytes() - idle)/1e9}


def processor():
    """The processor's name, where the system tells it."""
    try: return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def case(args, way, length, limit):
    """Run one case in a process of its own."""
    command = [sys.executable, __file__, "--case", f"{way},{length}", "--threads", str(args.threads), "--repeats", str(args.repeats),
               "--width", str(args.width), "--d-state", str(args.d_state)]
    try: done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired: return {"note": f"over {limit} s, stopped"}
    if done.returncode: return {"note": f"failed ({done.returncode}): {(done.stderr.splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--d-state", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="seconds for one case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        way, length = args.case.split(",")
        return print(json.dumps(measure(way, int(length), args.width, args.d_state, args.threads, args.repeats)))
    import torch
    print(f"kernel of one layer: width {args.width}, state {args.d_state} ({args.d_state//2} pairs), n_ssm 1, float32 with float64 powers,"
          f" CPU, {args.threads} threads")
    print(f"{processor()}, Python {platform.python_version()}, torch {torch.__version__}")
    case(args, "cauchy keops", 64, 600)                        # compile outside the limit
    print(f"{'way':14} {'length':>9} {'forward s':>10} {'with backward':>14} {'extra GB':>9} {'ratio':>6}")
    for length in args.lengths:
        base = None
        for way in WAYS:
            row = case(args, way, length, args.limit)
            if "note" in row: print(f"{way:14} {length:9,} {row['note']}", flush=True)
            else:
                base = base or (row["both"] if way == WAYS[0] else None)
                ratio = f"{row['both']/base:6.2f}" if base else ""
                print(f"{way:14} {length:9,} {row['forward']:10.3f} {row['both']:14.3f} {row['extra_gb']:9.3f} {ratio}", flush=True)


if __name__ == "__main__": main()
