"""Measure samples per second of every engine, and compare them with the limits of this machine's caches and arithmetic.

    python benchmarks/generation.py [--seconds 3]

The model is the full-size one, 8 bits, categorical, unless stated otherwise. "plain torch" is the model's own `step`
in float32, one row; "reference" is `Stepper`, the same in float64. Each rate is the best of several runs of a few
seconds. The bound by memory divides the rate at which one core reads memory by the bytes of weights and states that a
sample needs; the rate is measured on an array that fits into the second-level cache, and on one of the size of the
model. The bound by arithmetic divides the rate of multiply-adds in a layer that fits into the first-level cache by
those that a sample needs. "reading" is stepping through known samples, as scoring and coding do, while the predictor
adapts. "first" and "later" calls are new processes, with an empty and a filled cache of compiled code, without the time
to import torch and to build the model.
"""
import argparse
import json
import os
import tempfile
import time
from functools import partial

import numpy as np
from machine import case, describe


def full_size(form="diag", head="categorical", bits=8, **changes):
    import torch

    from sashimi_wb.models.sashimi import SaShiMiConfig
    from sashimi_wb.models.wave_model import ModelConfig, WaveModel
    from sashimi_wb.ssm.learned import KernelConfig
    torch.manual_seed(0)
    backbone = SaShiMiConfig(kernel=KernelConfig(form))
    return WaveModel(ModelConfig(bits, head=head, backbone=backbone, **changes)).eval()


def rate(work, unit, seconds, repeats=3):
    """Units per second, the best of several runs; `work(n)` does n units."""
    n, best = unit, 0.0
    work(unit)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work(n)
        took = time.perf_counter() - start
        best, n = max(best, n/took), max(unit, int(n/took*seconds/repeats)//unit*unit)
    return best


def engine_rate(form, head, bits, batch, threads, engine, seconds):
    """Samples per second, summed over all rows."""
    import torch

    from sashimi_wb.synthesis.engine import make_engine
    from sashimi_wb.synthesis.stepping import Sampling
    from sashimi_wb.tokens.quantization import Quantizer
    torch.set_num_threads(threads)
    made = make_engine(engine, full_size(form, head, bits), batch, Sampling(), Quantizer(bits=bits))
    return batch*rate(made.draw, 16, seconds)


def depth_ratio(seconds, rounds=4):
    """Rates of 8-bit classes and 16-bit mixtures, measured alternately so that both see the same load."""
    best = [0.0, 0.0]
    for _ in range(rounds):
        for i, (head, bits) in enumerate((("categorical", 8), ("dml", 16))):
            best[i] = max(best[i], engine_rate("diag", head, bits, 1, 1, "compiled", seconds/rounds))
    return best


def beside_times(head, bits, seconds, rounds=4):
    """Microseconds a sample of model alone, predictor alone and both, reading the same music, measured alternately."""
    import soundfile
    import torch

    from sashimi_wb.core.system import bundled
    from sashimi_wb.prediction.token_predictor import TokenPredictor
    from sashimi_wb.synthesis.engine import CompiledStepper
    from sashimi_wb.synthesis.stepping import Sampling
    from sashimi_wb.tokens.byte_tokens import to_bytes, whole_bytes
    from sashimi_wb.tokens.quantization import Quantizer
    torch.set_num_threads(1)
    quantizer, n_places = Quantizer("linear", bits), whole_bytes(bits) if head == "bytes" else 1
    music = soundfile.read(bundled("data/music/grieg_mountain_king.flac"), 2**18)[0].mean(1)
    tokens = quantizer.encode(torch.as_tensor(music))[None]
    if n_places > 1: tokens = to_bytes(tokens[..., None], bits)[..., 0]
    def stepper(predictor):
        model = full_size("diag", head, bits, predictor=predictor, quantization="linear")
        beside = TokenPredictor(quantizer, n_places=n_places) if predictor == "adaptive" else None
        return CompiledStepper(model, 1, Sampling(), quantizer, predictor=beside).read
    alone = TokenPredictor(quantizer, n_places=n_places)
    readers = stepper("none"), lambda x: alone.read(x[0].numpy()), stepper("adaptive")
    best, at, n = [float("inf")]*3, 0, 2048*n_places
    stop = time.perf_counter() + seconds*rounds
    while time.perf_counter() < stop or at < 3*n:
        block = tokens[:, at % (tokens.shape[1] - n):][:, :n]
        for i, read in enumerate(readers):
            start = time.perf_counter()
            read(block)
            if at: best[i] = min(best[i], 1e6*(time.perf_counter() - start)/n*n_places)
        at += n
    return best


def torch_rate(form, seconds):
    """Samples per second of the model's own step, float32, one row."""
    import torch
    torch.set_num_threads(1)
    model = full_size(form)
    token, state = torch.zeros(1, 1, dtype=torch.int64), model.initial_state(1)
    @torch.inference_mode()
    def work(n):
        nonlocal token, state
        for _ in range(n):
            params, state = model.step(token, state)
            token = model.head.sample(params)[:, None]
    return rate(work, 16, seconds)


def first_call():
    """Seconds from a model to its first samples, in this process."""
    import torch
    torch.set_num_threads(1)
    model = full_size()
    start = time.perf_counter()
    from sashimi_wb.synthesis.generation import generate
    generate(model, 16, progress=False)
    return time.perf_counter() - start


def levels(form):
    """Per level: its share of the samples, its floats of weights and of state, its multiply-adds."""
    from sashimi_wb.synthesis.packing import CHANNELS, FF, POOL, WIDTH, pack_model
    from sashimi_wb.tokens.quantization import Quantizer
    packed = pack_model(full_size(form), Quantizer(bits=8))
    L, N, low_rank = packed.config.n_layers, packed.config.n_states, packed.config.low_rank
    every, rows, plan = 1, [], packed.plan.tolist()
    for i, level in enumerate(plan):
        H, pool, ff = level[WIDTH], level[POOL], level[FF]
        matrices = L*(2*H*H + 2*H*ff)
        if i < len(plan) - 1: matrices += 2*H*plan[i + 1][WIDTH]  # the pools, once in `pool` samples
        spaces = L*H*N*(8 if low_rank else 4)
        rows.append({"width": level[CHANNELS], "share": 1/every, "weights": matrices + spaces, "states": L*H*N*2,
                     "multiply-adds": matrices + L*H*N*(9 if low_rank else 6)})
        every *= pool
    return rows


def stage_times(form, seconds):
    """Microseconds of the stage of every level, run again and again."""
    from sashimi_wb.core.barrier import Team, new_cells
    from sashimi_wb.core.compiled import jit
    from sashimi_wb.synthesis.compiled_step import new_step, pass_through
    from sashimi_wb.synthesis.packing import aligned_zeros, pack_model
    from sashimi_wb.tokens.quantization import Quantizer
    p, cells = pack_model(full_size(form), Quantizer(bits=8)), new_cells(False)
    state, memory = aligned_zeros(p.n_state), p.memory(1)
    @jit
    def work(n, level, plan, config, w, state, memory, cells):
        step = new_step(plan, config, w, state, 1, memory, cells, 0)
        for _ in range(n):
            step.x[:] = 1
            pass_through(step, step.x, step.b, level, 0, config.n_layers, Team(0, 1, cells))
    def stage(level): return lambda n: work(n, level, p.plan, p.config, p.weights, state, memory, cells)
    return [1e6/rate(stage(level), 4, seconds/4) for level in range(len(p.plan))]


def machine_rates(seconds):
    """Bytes per second read from arrays of several sizes, and multiply-adds per second, on one core."""
    from sashimi_wb.core.compiled import jit
    from sashimi_wb.core.simd import broadcast, load, sum_lanes
    from sashimi_wb.synthesis.compiled_step import affine
    from sashimi_wb.synthesis.packing import aligned_zeros as zeros

    @jit
    def read(x, n, times):
        a = b = c = d = broadcast(np.float32(0))
        for _ in range(times):
            for i in range(0, n, 64):
                a, b, c, d = a + load(x, i), b + load(x, i + 16), c + load(x, i + 32), d + load(x, i + 48)
        return sum_lanes(a + b + c + d)

    @jit
    def multiply(x, w, y, times):
        for _ in range(times): affine(y, 0, 64, x, 0, 64, w, 0, 1, 64, 64, 0, 64)

    reads = {}
    for name, size in (("second cache", 2**19), ("the model's size", 19*10**6)):
        x = zeros(size//256*64)
        x[:] = 1   # pages of zeros that nobody wrote are one and the same page of memory
        reads[name] = 4*len(x)*rate(partial(read, x, len(x)), max(1, 2**22//size), seconds/4)
    x, y, w = zeros(64), zeros(64), zeros(65*64)
    return reads, 64*64*rate(lambda n: multiply(x, w, y, n), 1000, seconds/4)


def bound(form, seconds):
    """Bytes and multiply-adds of a sample, and the samples per second that they allow."""
    reads, multiplies = machine_rates(seconds)
    rows = levels(form)
    n_bytes = 4*sum(r["share"]*(r["weights"] + 2*r["states"]) for r in rows) + 4*64*256
    n_adds = sum(r["share"]*r["multiply-adds"] for r in rows) + 64*256
    return {"bytes": n_bytes, "adds": n_adds, "reads": reads, "multiplies": multiplies, "levels": rows,
            "times": stage_times(form, seconds),
            "by memory": {name: r/n_bytes for name, r in reads.items()}, "by arithmetic": multiplies/n_adds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        import torch
        torch.set_num_threads(1)
        what, *rest = json.loads(args.case)
        return print(json.dumps({"engine": engine_rate, "depth": depth_ratio, "torch": torch_rate, "first": first_call,
                                 "bound": bound, "beside": beside_times}[what](*rest)))
    def ask(*what): return case(__file__, "--seconds", args.seconds, "--case", json.dumps(what))
    print("generation, full-size model, samples per second")
    print(describe(2))
    s, found = args.seconds, {}
    def show(name, value, goal=""): print(f"{name:58} {value:>12} {goal:>12}", flush=True)
    show("", "", "goal")
    for form in ("diag", "dplr"):
        plain = ask("torch", form, s)
        found[form] = ask("engine", form, "categorical", 8, 1, 1, "compiled", s)
        show(f"{form}, batch 1, one thread, compiled", f"{found[form]:,.0f}", f"{16000 if form == 'diag' else 10000:,}")
        show("  plain torch, float32", f"{plain:,.0f}")
        show("  reference, float64", f"{ask('engine', form, 'categorical', 8, 1, 1, 'plain', s):,.0f}")
        show("  ratio to plain torch", f"{found[form]/plain:,.0f}", "100")
        show("  two threads", f"{ask('engine', form, 'categorical', 8, 1, 2, 'compiled', s):,.0f}")
    show("diag, batch 32, two threads, in total",
         f"{ask('engine', 'diag', 'categorical', 8, 32, 2, 'compiled', s):,.0f}", "60,000")
    show("dplr, batch 32, two threads, in total",
         f"{ask('engine', 'dplr', 'categorical', 8, 32, 2, 'compiled', s):,.0f}")
    plain, deep = ask("depth", s)
    show("diag, 16 bit, dml, batch 1", f"{deep:,.0f}")
    show("  ratio to 8 bit categorical, alternately", f"{deep/plain:.2f}", "0.85")
    for head, bits in (("categorical", 8), ("dml", 16), ("bytes", 16)):
        model, predictor, both = ask("beside", head, bits, s)
        show(f"diag, {bits} bit, {head}, reading: model alone", f"{model:.1f} us")
        show("  predictor alone", f"{predictor:.1f} us")
        show("  both", f"{both:.1f} us")
        show("  ratio to their sum", f"{both/(model + predictor):.3f}", "1.10")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        for name, goal in (("first call, compiling, seconds", "20"), ("later call in a new process, seconds", "1")):
            show(name, f"{ask('first'):.1f}", goal)
    os.environ.pop("NUMBA_CACHE_DIR")
    for form in ("diag", "dplr"):
        b = ask("bound", form, s)
        print(f"\n{form}: {b['bytes']/1e6:.2f} MB and {b['adds']/1e3:.0f} thousand multiply-adds per sample")
        for name, value in b["by memory"].items():
            show(f"  bound by memory, {b['reads'][name]/1e9:.0f} GB/s ({name})", f"{value:,.0f}")
        show(f"  bound by arithmetic, {b['multiplies']/1e9:.0f} G/s", f"{b['by arithmetic']:,.0f}")
        for row, time_us in zip(b["levels"], b["times"]):
            mb = 4*(row["weights"] + 2*row["states"])/1e6
            stage = f"  stage of width {row['width']}, {mb:.1f} MB: {time_us:.0f} us at {mb*1e3/time_us:.0f} GB/s"
            show(f"{stage}, per sample", f"{time_us*row['share']:.1f} us")
        show("  whole sample, as generated", f"{1e6/found[form]:.1f} us")


if __name__ == "__main__": main()
