"""Measure the error of float32 against float64, and the differences between the three ways to run a model.

    python benchmarks/accuracy.py [--samples 16384] [--steps 131072] [--threads 2]

Kernels: largest error of a channel, relative to its peak. "train" and "window" compute the kernel by doubling, "sums"
by Cauchy or Vandermonde sums. Gradients: a kernel is weighted by white noise; the largest error of an entry relative
to the largest entry, for the worst parameter. Full size: 8 layers, width 64, state 64, pools 4 and 4, 8 bits;
differences of the logits, relative to the largest logit.
"""
import argparse
import copy
import time

import torch
from machine import describe

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.kernel_cauchy import dplr_kernel_cauchy
from sashimi_wb.ssm.learned import KernelConfig, SSMKernel
from sashimi_wb.ssm.s4 import S4

FORMS = {"dplr": KernelConfig(), "diag": KernelConfig("diag", disc="zoh")}
LENGTHS = [1, 2, 3, 63, 64, 65, 1000, 1024, 16000, 16001, 131072]


def line(first, values):
    """Print one row of a table."""
    print(f"{first:>16} " + " ".join(f"{v if isinstance(v, str) else f'{v:.1e}':>12}" for v in values), flush=True)


def by_sums(kernel, length, dtype):
    """The kernel, computed through its spectrum."""
    return dplr_kernel_cauchy(*kernel.continuous(), length, "torch", dtype)


def made(form, width=64):
    """A kernel in float32, and a copy in float64."""
    torch.manual_seed(0)
    kernel = SSMKernel(width, FORMS[form])
    return kernel, copy.deepcopy(kernel).double()


@torch.no_grad()
def kernels():
    """Print errors of channels, relative to the peak over at least the first 64 samples."""
    print("\nkernels, width 64, state 64, float32 against float64")
    line("length", ["dplr train", "dplr window", "sums f64", "sums f32", "diag train", "diag window"])
    (dplr, exact), (diag, diag_exact) = made("dplr"), made("diag")
    for length in LENGTHS:
        def error(K, exact, length=length):
            return ((K - exact(length)).abs().amax(-1)/exact(max(length, 64)).abs().amax(-1)).max().item()
        line(f"{length:,}", [error(dplr(length), exact), error(dplr.window(length).K, exact),
                             error(by_sums(dplr, length, torch.float64).float(), exact),
                             error(by_sums(dplr, length, torch.float32), exact),
                             error(diag(length), diag_exact), error(diag.window(length).K, diag_exact)])


@torch.no_grad()
def infinite_node():
    """Print errors at even lengths, where the last node is infinite and the spectrum is an alternating sum."""
    _, exact = made("dplr")
    sums = [(by_sums(exact, length, torch.float64) - exact(length)).abs().max().item()
            for length in (2, 64, 1024, 16000)]
    print(f"\ninfinite node: float64 sums against float64 doubling at 2, 64, 1,024, 16,000 samples: {max(sums):.1e}")


def gradients():
    """Print the largest error of a gradient, and the parameter it belongs to."""
    def train(kernel, length): return kernel(length)
    def window(kernel, length): return kernel.window(length).K
    def sums_f64(kernel, length): return by_sums(kernel, length, torch.float64)
    def sums_f32(kernel, length): return by_sums(kernel, length, torch.float32)
    methods = {"dplr": (train, window, sums_f64, sums_f32), "diag": (train,)}
    print("\ngradients of a kernel, width 16, state 64, float32 against float64")
    line("length", ["dplr train", "dplr window", "sums f64", "sums f32", "diag train"])
    for length in LENGTHS:
        row = []
        for form, computations in methods.items():
            kernel, exact = made(form, 16)
            noise = torch.randn(1, 16, length, dtype=torch.float64)
            wanted = torch.autograd.grad((exact(length)*noise).sum(), list(exact.parameters()))
            for compute in computations:
                got = torch.autograd.grad((compute(kernel, length)*noise).sum(), list(kernel.parameters()))
                worst, name = max(zip(map(relative, got, wanted), dict(kernel.named_parameters())))
                row.append(f"{worst:.0e} {name}")
        line(f"{length:,}", row)


def relative(a, b):
    """The largest difference to `b`, over the largest value of `b`."""
    return ((a.double() - b).abs().max()/b.abs().max()).item()


def model_gradients(form, samples):
    """Print errors of the gradients of the full-size model's loss, over all parameters."""
    torch.manual_seed(0)
    model = WaveModel(ModelConfig(8, backbone=SaShiMiConfig(kernel=FORMS[form])))
    x, y = torch.randint(256, (2, 1, samples, 1))
    exact = copy.deepcopy(model).double()
    losses = [m.loss(x, y) for m in (model, exact)]
    for loss in losses: loss.backward()
    rows = sorted(((relative(p.grad, q.grad), name)
                   for (name, p), q in zip(model.named_parameters(), exact.parameters())), reverse=True)
    (worst, name), (median, _), off = rows[0], rows[len(rows)//2], abs(losses[0] - losses[1]).item()
    print(f"\nfull size, {form}, gradients of the loss over {samples:,} samples: loss {off:.1e}, "
          f"the worst {worst:.1e} {name}, the median {median:.1e}")


@torch.no_grad()
def three_ways(form, samples):
    """Compare one convolution, windows in sequence and steps of the full-size model in float32."""
    torch.manual_seed(0)
    model = WaveModel(ModelConfig(8, backbone=SaShiMiConfig(kernel=FORMS[form]))).eval()
    x = torch.randint(256, (1, samples, 1))
    exact = copy.deepcopy(model).double()(x, need_state=False)[0]
    whole = model(x, need_state=False)[0]
    print(f"\nfull size, {form}, {samples:,} samples, logits up to {whole.abs().max():.2f}")
    line("", ["to one conv.", "to float64", "seconds"])
    line("one convolution", [0.0, relative(whole, exact), ""])
    for size in (4096, 256, 16, 1):
        start, state, out = time.perf_counter(), model.initial_state(1), []
        for part in x.split(size, 1):
            if size > 1: y, state = model(part, state)
            else:
                y, state = model.step(part[:, 0], state)
                y = y[:, None]
            out.append(y)
        y = torch.cat(out, 1)
        line(f"windows of {size:,}" if size > 1 else "steps",
             [relative(y, whole.double()), relative(y, exact), f"{time.perf_counter() - start:.0f}"])


@torch.no_grad()
def over_time(form, steps):
    """Print errors of one layer's steps in float32 against its convolution in float64, by eighths of the time."""
    torch.manual_seed(0)
    layer, u = S4(64, FORMS[form]), torch.randn(1, steps, 64)
    exact = copy.deepcopy(layer).double()(u.double(), need_state=False)[0]
    state, errors = layer.initial_state(1), torch.empty(steps)
    for t in range(steps):
        y, state = layer.step(u[:, t], state)
        errors[t] = (y - exact[:, t]).abs().max()
    parts = (errors/exact.abs().max()).view(8, -1).amax(1).tolist()
    print(f"\none layer, {form}, {steps:,} steps: largest error of each eighth: {' '.join(f'{e:.1e}' for e in parts)}",
          flush=True)
    whole = relative(layer(u, need_state=False)[0], exact)
    print(f"one convolution over the same: {whole:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=16384, help="of the full-size model")
    parser.add_argument("--steps", type=int, default=131072, help="of one layer, a multiple of 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe(args.threads))
    kernels()
    infinite_node()
    gradients()
    for form in args.forms: model_gradients(form, min(args.samples, 4096))
    for form in args.forms: over_time(form, args.steps)
    for form in args.forms: three_ways(form, args.samples)


if __name__ == "__main__": main()
