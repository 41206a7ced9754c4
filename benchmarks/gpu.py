"""Check and measure everything on a GPU: one script, one JSON, in a given time.

    python benchmarks/gpu.py [--out FILE] [--limit 420] [--parts correct,train,...] [--fit-seconds 200]
    python benchmarks/gpu.py --rehearse         # on a CPU, tiny sizes: tests the script and measures nothing

Parts: correct (tests/gpu), train (steps of the full-size model in several forms and precisions, with TF32), profile
(where a step's time goes, and what float64 costs), context (one step over 2**20 samples), data (windows a second
against what the card consumes), generation (samples a second of every engine), compile (torch.compile of what acts on
single samples), graph (the step as one CUDA graph), fit (models trained on the bundled music). Each part stops when
its share of the limit is over, and the time that a part leaves goes to the others. What is measured is written at
once; what fails leaves its traceback in the JSON. All parts run in one process; if it dies, another one goes on with
the next part.
"""
import argparse
import contextlib
import functools
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
import wave as stdlib_wave
from dataclasses import replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WEIGHTS = {"correct": 70, "train": 75, "profile": 25, "context": 15, "data": 35, "generation": 90, "compile": 60,
           "graph": 15, "fit": 200}                          # shares of the limit, in seconds of the usual length
DEFAULT = [name for name in WEIGHTS if name != "compile"]
KINDS = {"8 bit": ("embedding", "categorical", 8), "16 bit dml": ("linear_projection", "dml", 16)}
FORMS = ("diag", "dplr")
PRECISIONS = ("32-true", "bf16-mixed")


# ---- the record

class Record:
    """The JSON of a run; every change is written at once."""

    def __init__(self, path):
        self.path = Path(path)
        self.found = json.loads(self.path.read_text()) if self.path.exists() else {}

    def write(self, *keys, value):
        place = self.found
        for key in keys[:-1]: place = place.setdefault(key, {})
        place[keys[-1]] = value
        from sashimi_wb.core.system import write_atomic
        write_atomic(self.path, json.dumps(self.found, indent=1))


RUNNING = {"note": "running"}


class Bench:
    """What the parts share: sizes, the device, the clock and the record."""

    def __init__(self, args):
        import torch
        self.args, self.rehearse, self.record = args, args.rehearse, Record(args.out)
        self.device = torch.device("cpu" if args.rehearse else "cuda")
        self.cuda = self.device.type == "cuda"
        self.end, self.part = 0.0, ""

    @property
    def left(self): return self.end - time.monotonic()

    def case(self, name, f, *arguments, least=1.0):
        """Measure a case of the part and keep its row, or the reason why there is none."""
        import torch
        place = "parts", self.part, "cases", name
        if before := self.record.found["parts"][self.part]["cases"].get(name):      # of a process that has died
            if before == RUNNING: self.record.write(*place, value={"note": "the process died"})
            return before
        if self.left < least: row = {"note": "no time left"}
        else:
            self.record.write(*place, value=RUNNING)
            try: row = f(*arguments)
            except torch.OutOfMemoryError as e: row = {"note": "out of memory", "message": str(e)[:300]}
            except Exception as e:
                row = {"note": f"{type(e).__name__}: {str(e)[:300]}", "traceback": traceback.format_exc()[-4000:]}
        self.record.write(*place, value=row)
        if row.get("traceback"):
            print(f"{self.part:10} {name}: {row['note']}", flush=True)
            self.check_device()
        self.free()
        return row

    def check_device(self):
        """End the process if an error has made the device useless for it; another process goes on."""
        import torch
        try: torch.zeros(8, device=self.device).sum().item()
        except RuntimeError: os._exit(3)

    def free(self):
        import gc

        import torch
        gc.collect()
        if self.cuda: torch.cuda.empty_cache()

    def synchronize(self):
        import torch
        if self.cuda: torch.cuda.synchronize()

    def seconds_of(self, step, seconds=1.5, warm_up=3, most=50):
        """Seconds of a step: the mean of some, by CUDA events, after a warm-up."""
        import torch
        if self.rehearse: seconds, warm_up = 0.03, 1
        for _ in range(warm_up): step()
        self.synchronize()
        start = time.perf_counter()
        step()
        self.synchronize()
        n = max(2, min(most, int(min(seconds, self.left)/(time.perf_counter() - start))))
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(n): step()
            return (time.perf_counter() - start)/n
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(n): step()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)/1000/n

    def measure_step(self, step, tokens, **options):
        """Samples a second and peak memory of a training step."""
        import torch
        self.free()
        if self.cuda: torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds_of(step, **options)
        row = {"samples_per_s": tokens/seconds, "ms": 1000*seconds}
        if self.cuda: row["peak_gb"] = torch.cuda.max_memory_allocated()/1e9
        return row


def shown(row):
    """A row in one line."""
    def text(v):
        if not isinstance(v, float): return v
        return f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}"
    plain = {k: v for k, v in row.items() if not isinstance(v, (dict, list)) and k != "traceback"}
    return ", ".join(f"{k} {text(v)}" for k, v in plain.items())[:150]


def hardware(bench):
    import torch
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
             "cpus": os.cpu_count(), "rehearsal": bench.rehearse, "command": sys.argv[1:]}
    from sashimi_wb.core.system import processor_name
    found["processor"] = processor_name()
    if bench.cuda:
        p = torch.cuda.get_device_properties(0)
        found |= {"card": p.name, "memory_gb": p.total_memory/1e9, "processors": p.multi_processor_count,
                  "capability": [p.major, p.minor]}
    with contextlib.suppress(ImportError):
        import triton
        found["triton"] = triton.__version__
    return found


# ---- the model and its step

def build(bench, form, kind, batch=None, length=None, layers=None):
    """The full-size model on the device, inputs, targets and mask of random codes."""
    import torch

    from sashimi_wb.models.sashimi import SaShiMiConfig
    from sashimi_wb.models.wave_model import ModelConfig, WaveModel
    from sashimi_wb.ssm.learned import KernelConfig
    from sashimi_wb.tokens.streams import shift
    torch.manual_seed(0)
    encoder, head, bits = KINDS[kind]
    sizes = {"d_model": 8, "n_layers": 1} if bench.rehearse else {}
    kernel = KernelConfig(form, 8 if bench.rehearse else 64, disc="zoh" if form == "diag" else "bilinear")
    model = WaveModel(ModelConfig(bits, encoder, head, backbone=SaShiMiConfig(**sizes, kernel=kernel),
                                  quantization="linear")).to(bench.device)
    batch, length = batch or (2 if bench.rehearse else 16), length or (256 if bench.rehearse else 16384)
    walk = torch.randn(batch, length, 1, device=bench.device).cumsum(1)
    y = ((walk/walk.abs().amax(1, keepdim=True)*0.9 + 1)*2**(bits - 1)).long()
    x = shift(y, 2**(bits - 1))
    return model, (x if encoder == "embedding" else x/2**(bits - 1) - 1), y, torch.ones_like(y, dtype=torch.bool)


def autocast(bench, precision):
    """The context of a forward pass as Lightning makes it for a precision."""
    import torch
    return torch.autocast(bench.device.type, torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()


def step_of(bench, model, x, y, mask, precision, **options):
    """A training step as a function: forward, backward, fused AdamW."""
    import torch
    optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True, **options)
    def step():
        with autocast(bench, precision): loss = model.loss(x, y, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss
    return step


def step_as_fit(bench, model, x, y, mask, precision):
    """A training step with what `fit` adds to it: gradient clipping."""
    import torch
    optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True)
    def step():
        with autocast(bench, precision): loss = model.loss(x, y, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss
    return step


@contextlib.contextmanager
def unchecked():
    """Without the checks of values, each of which waits for the device."""
    with (mock.patch("sashimi_wb.models.encoders.check_input_codes", lambda *_: None),
          mock.patch("sashimi_wb.models.heads.check_codes", lambda codes, bits: codes)): yield


def without_checks(step):
    def run():
        with unchecked(): return step()
    return run


def as_graph(bench, step):
    """The whole step as one CUDA graph; on a CPU the step itself. `step` needs a capturable optimizer."""
    import torch
    if not bench.cuda: return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3): step()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): loss = step()
    def replay():
        graph.replay()
        return loss
    replay.step = step      # kept: the graph writes to the state of its optimizer
    return replay


# ---- parts

def correct(bench):
    """The tests of tests/gpu."""
    limit = max(20, bench.left)
    environment = os.environ | ({"SASHIMI_WB_REHEARSE_GPU": "1"} if bench.rehearse else {})
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    several = ["-n", "6", "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    chosen = ["-k", "convolution"] if bench.rehearse else several
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rfE", "--durations=8",
               str(ROOT/"tests"/"gpu"), *chosen]
    def run():
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as log:
            options = {"stdout": log, "stderr": log, "cwd": ROOT, "env": environment, "timeout": limit}
            try: status = subprocess.run(command, **options).returncode
            except subprocess.TimeoutExpired: status = f"over {limit:.0f} s, stopped"
            log.seek(0)
            text = log.read()
        counts = {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)", text[-400:])}
        if not counts: counts = {"passed": len(re.findall(r"\.(?=[.sFE\s])", text)), "failed": text.count("FAILED")}
        return {"status": status, **counts, "seconds": time.monotonic() - start, "log": text[-12000:].splitlines()}
    row = bench.case("tests/gpu", run)
    for line in row.get("log", [])[-40:]:
        if line.startswith(("FAILED", "ERROR")): print(f"           {line[:180]}", flush=True)


def window(bench): return (2, 256) if bench.rehearse else (16, 16384)   # batch and length of a usual step


def timed_step(bench, form, kind, precision, batch=None, make=step_of, graph=False, checked=True):
    """Rate and memory of a training step, and its loss at the end."""
    usual, length = window(bench)
    batch = batch or usual
    model, *given = build(bench, form, kind, batch, length)
    step = make(bench, model, *given, precision, **({"capturable": True} if graph else {}))
    if graph: step = as_graph(bench, step)
    elif not checked: step = without_checks(step)
    return bench.measure_step(step, batch*length) | {"loss": step().item()}


def graph(bench):
    for form in FORMS:
        bench.case(f"{form} 8 bit bf16-mixed", functools.partial(timed_step, graph=True), bench, form, "8 bit",
                   "bf16-mixed")


def train(bench):
    import torch
    batch, length = window(bench)
    plain = functools.partial(timed_step, bench)
    def tf32(form, kind):
        """With the loss and the gradients of the same weights in full float32."""
        model, *given = build(bench, form, kind, batch, length)
        def gradient():
            model.zero_grad()
            model.loss(*given).backward()
            return torch.cat([p.grad.flatten() for p in model.parameters()])
        wanted = gradient()
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            error = ((gradient() - wanted).norm()/wanted.norm()).item()
            step = step_of(bench, model, *given, "32-true")
            return bench.measure_step(step, batch*length) | {"gradient_error": error}
        finally: torch.set_float32_matmul_precision(before)
    for form in FORMS: bench.case(f"{form} 8 bit bf16-mixed", plain, form, "8 bit", "bf16-mixed")
    for form in FORMS:
        for kind in KINDS:
            for precision in PRECISIONS:
                if (kind, precision) != ("8 bit", "bf16-mixed"):
                    bench.case(f"{form} {kind} {precision}", plain, form, kind, precision)
    large = 4*batch
    for form in FORMS:
        bench.case(f"{form} 8 bit bf16-mixed, batch {large}", plain, form, "8 bit", "bf16-mixed", large)
    bench.case("diag 8 bit bf16-mixed, as fit", functools.partial(plain, make=step_as_fit), "diag", "8 bit",
               "bf16-mixed")
    bench.case("diag 8 bit bf16-mixed, without checks", functools.partial(plain, checked=False), "diag", "8 bit",
               "bf16-mixed")
    for form in FORMS: bench.case(f"{form} 8 bit float32 with TF32", tf32, form, "8 bit")


GROUPS = (("state space", ("_DenseKernel", "_DiagonalKernel", "state space")), ("convolution (FFT)", ("_Convolve",)),
          ("optimizer", ("Optimizer.step", "aten::_fused_adam")), ("head's softmax", ("_BlockedCrossEntropy",)))
MATRICES = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear")


def group_of(event, kernel):
    """The part of the model that an operator belongs to, by the operators that call it."""
    names, at = [], event
    while at is not None:
        names.append(at.name)
        at = at.cpu_parent
    for group, starts in GROUPS:
        for name in names:
            if name.startswith(starts): return group
    if "double" in kernel: return "state space"            # nothing else of a step computes in float64
    return "linear maps" if event.name.startswith(MATRICES) else "norms and pointwise"


def profile(bench):
    import torch

    from sashimi_wb.ssm.learned import SSMKernel
    forward = SSMKernel.forward
    def named(self, *given):
        with torch.profiler.record_function("state space"): return forward(self, *given)
    def shares(form, precision):
        model, *given = build(bench, form, "8 bit")
        step = step_of(bench, model, *given, precision)
        seconds = bench.seconds_of(step, 0.5)
        kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if bench.cuda else [])]
        with mock.patch.object(SSMKernel, "forward", named), torch.profiler.profile(activities=kinds) as p:
            step()
            bench.synchronize()
        spent, launches, longest = {}, 0, {}
        for event in p.events():
            if bench.cuda:      # a span that is named on the device has the name of its event, and is no kernel
                pieces = [(k.name, k.duration) for k in getattr(event, "kernels", []) if k.name != event.name]
            else: pieces = [("", event.self_cpu_time_total)]
            for kernel, microseconds in pieces:
                group = group_of(event, kernel)
                spent[group] = spent.get(group, 0) + microseconds
                longest[kernel[:80]] = longest.get(kernel[:80], 0) + microseconds
                launches += 1
        busy = sum(spent.values())/1e6
        row = {"ms": 1000*seconds, "busy_ms": 1000*busy, "launches": launches}
        if bench.cuda: row["host and gaps"] = max(0.0, 1 - busy/seconds)
        top = sorted(longest.items(), key=lambda item: -item[1])[:12]
        return row | {k: v/1e6/busy for k, v in sorted(spent.items())} | {"longest_ms": [[k, v/1000] for k, v in top]}
    for form in FORMS:
        for precision in PRECISIONS: bench.case(f"{form} {precision}", shares, form, precision)
    for form in FORMS: bench.case(f"{form}: cost of float64", cost_of_float64, bench, form)


@contextlib.contextmanager
def in_float32():
    """What the state spaces compute in float64 is computed in float32."""
    import torch
    with mock.patch.object(torch.Tensor, "double", torch.Tensor.float): yield


def cost_of_float64(bench, form):
    """All kernels of the model and their gradients, as they are and in float32; errors of a channel by its peak."""
    import copy

    import torch

    from sashimi_wb.ssm.learned import SSMKernel
    model, *_ = build(bench, form, "8 bit")
    length = 1024 if bench.rehearse else 16384
    widest = max(m.d_model for m in model.modules() if isinstance(m, SSMKernel))
    narrow = min(m.d_model for m in model.modules() if isinstance(m, SSMKernel))
    made = [(m, length*16*narrow**2//(16*m.d_model**2)) for m in model.modules() if isinstance(m, SSMKernel)]
    def run():
        for kernel, n in made: kernel(n).square().sum().backward()
    def first(n, kernel):
        K = kernel(n)
        kernel.zero_grad()
        (K*noise[:, :kernel.d_model, :n].to(K)).sum().backward()
        return [K.detach().double(), *(p.grad.double() for p in kernel.parameters())]
    torch.manual_seed(1)
    noise = torch.randn(1, widest, length, device=bench.device)
    kernel = made[-1][0]
    exact = first(length, copy.deepcopy(kernel).double())
    row = {}
    for name, context in (("as it is", contextlib.nullcontext()), ("float32", in_float32())):
        with context:
            row[f"{name}: ms"] = 1000*bench.seconds_of(run, 0.7, warm_up=2)
            got = first(length, kernel)
        row[f"{name}: error"] = ((got[0] - exact[0]).abs().amax(-1)/exact[0].abs().amax(-1)).max().item()
        errors = [((a - b).abs().max()/b.abs().max()).item() for a, b in zip(got[1:], exact[1:])]
        row[f"{name}: error of gradients"] = max(errors)
    return row


def context(bench):
    length = 2048 if bench.rehearse else 2**20
    def one(form, precision):
        model, *given = build(bench, form, "8 bit", 1, length)
        return bench.measure_step(step_of(bench, model, *given, precision), length, warm_up=1, seconds=1, most=5)
    for form in FORMS:
        for precision in reversed(PRECISIONS):
            bench.case(f"{form} {precision}, 1 window of {length:,}", one, form, precision)


def write_noise(path, frames, rate, seed):
    """Brownian noise of 16 bits as WAV, or FLAC if the name ends so."""
    import numpy as np
    rng = np.random.default_rng(seed)
    smooth = np.convolve(rng.standard_normal(frames).astype("float32"), np.ones(16, "float32")/4, "same")
    samples = (smooth/np.abs(smooth).max()*2**14).astype("<i2")
    if path.suffix == ".flac":
        import soundfile
        return soundfile.write(path, samples, rate)
    with stdlib_wave.open(str(path), "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(rate)
        f.writeframes(samples.tobytes())


def data(bench):
    import torch

    from sashimi_wb.audio.config import DataConfig
    from sashimi_wb.audio.held import HeldData, held_bytes
    from sashimi_wb.audio.loaders import AudioData
    batch, length, minutes, most = (4, 512, 0.05, 0.3) if bench.rehearse else (16, 16384, 2, 3.0)
    rate, n_files = 16_000, 8
    folder = Path(tempfile.mkdtemp(prefix="gpu_benchmark_"))
    for kind in ("wav", "flac"):
        (folder/kind).mkdir()
        for i in range(n_files): write_noise(folder/kind/f"{i}.{kind}", int(minutes*60*rate), rate, i)
    def loaded(kind, workers, threads=1):
        made = AudioData(DataConfig(path=str(folder/kind), bits=8, sample_len=length, batch_size=batch,
                                    train_percentage=0.75, num_workers=workers))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        start, first, windows, epoch = time.perf_counter(), None, 0, 0
        try:
            while time.perf_counter() - start < min(most, bench.left) or not windows:
                for found in made.train_loader(epoch):
                    x = found["x"].to(bench.device, non_blocking=True)
                    if first is None: first = time.perf_counter() - start
                    windows += len(x)
                    if time.perf_counter() - start > most: break
                epoch += 1
            bench.synchronize()
        finally: torch.set_num_threads(before)
        spent = time.perf_counter() - start
        return {"windows_per_s": windows/spent, "samples_per_s": windows*length/spent, "first_batch_s": first,
                "epochs": epoch}
    for kind in ("wav", "flac"):
        for workers in ((0, 2) if bench.rehearse else (0, 4, 8)):
            bench.case(f"{kind}, {workers} workers", loaded, kind, workers)
    def on_the_card():
        """The corpus as int16 on the device; windows are cut there."""
        given = AudioData(DataConfig(path=str(folder/"wav"), bits=8, sample_len=length, batch_size=batch,
                                     train_percentage=0.75))
        held = HeldData(given, bench.device)
        start = time.perf_counter()
        held.train_loader()
        read = time.perf_counter() - start
        def an_epoch():
            for _ in held.train_loader(): pass
        windows = len(held.train_loader())*batch
        seconds = bench.seconds_of(an_epoch, 1.0)
        return {"windows_per_s": windows/seconds, "samples_per_s": windows*length/seconds, "read_s": read,
                "megabytes": held_bytes(given)/1e6}
    bench.case("int16 corpus on the card", on_the_card)


def drawing_rate(bench, name, model, quantizer, batch, prompt, seconds):
    """Samples a second in total of an engine, after a prompt."""
    from sashimi_wb.synthesis.engine import make_engine
    from sashimi_wb.synthesis.stepping import Sampling
    start = time.perf_counter()
    engine = make_engine(name, model, batch, Sampling(), quantizer)
    engine.feed(prompt[:1].expand(batch, -1).contiguous())
    def timed(n):
        start = time.perf_counter()
        engine.draw(n)
        bench.synchronize()
        return time.perf_counter() - start
    one = timed(1)
    timed(2 if name == "plain" else 49)                     # every phase of the pools, where steps are recorded
    ready = time.perf_counter() - start
    n = max(2, min(32, int(seconds/4/max(one, 1e-6)))) if name == "plain" else 32
    probe = timed(n)
    n = max(n, min(2**17, int(n*seconds/probe)))
    spent = timed(n)
    return {"samples_per_s": batch*n/spent, "per_row": n/spent, "steps": n, "ready_s": ready}


def generation(bench):
    import torch

    from sashimi_wb.synthesis.engine import ENGINES
    from sashimi_wb.synthesis.stepping import Sampling
    from sashimi_wb.tokens.quantization import Quantizer
    given = bench.args.engines.split(",") if bench.args.engines else [name for name in ENGINES if name != "compiled"]
    names = [name for name in given if bench.cuda or name in ("plain", "traced")]
    batches = (1, 2) if bench.rehearse else (1, 32, 1024)
    models = {kind: build(bench, "diag", kind)[0].eval() for kind in KINDS}
    prompts = {}
    for kind in KINDS:
        _, _, y, _ = build(bench, "diag", kind, 16, 64)
        prompts[kind] = y[..., 0].cpu()
    def equal(name, kind):
        """Tokens that equal those of the plain engine at temperature 0."""
        from sashimi_wb.synthesis.engine import make_engine
        rows, n = (2, 16) if bench.rehearse else (16, 256)
        drawn = []
        for engine in ("plain", name):
            made = make_engine(engine, models[kind], rows, Sampling(temperature=0), Quantizer(bits=KINDS[kind][2]))
            made.feed(prompts[kind][:rows])
            drawn.append(made.draw(n).cpu())
        same = drawn[0] == drawn[1]
        return {"equal": int(same.sum()), "of": same.numel(), "values": len(drawn[0].unique()),
                "first_difference": int((~same).any(0).int().argmax()) if not same.all() else None}
    cases = []
    for kind in KINDS:
        bits = KINDS[kind][2]
        for batch in batches:
            for name in names:
                if batch > 32 and name != "fused": continue     # the others draw row by row: minutes
                cases.append((f"{kind}, batch {batch}, {name}", functools.partial(
                    drawing_rate, bench, name, models[kind], Quantizer(bits=bits), batch, prompts[kind])))
    def on_cpu(kind, batch, threads, seconds):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        model = build(bench, "diag", kind)[0].cpu().eval()
        quantizer = Quantizer(bits=KINDS[kind][2])
        try: return drawing_rate(bench, "compiled", model, quantizer, batch, prompts[kind], seconds)
        finally: torch.set_num_threads(before)
    threads = os.cpu_count()
    for kind, batch, n in (("8 bit", 1, 1), ("8 bit", 32, 1), ("8 bit", 32, threads), ("16 bit dml", 1, 1)):
        if bench.rehearse and (batch, kind) != (1, "8 bit"): continue
        cases.append((f"{kind}, batch {batch}, compiled on {n} threads of the CPU",
                      functools.partial(on_cpu, kind, batch, n)))
    cases.sort(key=lambda case: not case[0].endswith(("fused", "CPU")))      # the fast engines first
    for kind in KINDS:
        for name in names:
            if name == "plain" or bench.left < 5: continue
            bench.case(f"{kind}, {name}: equal to plain at temperature 0", equal, name, kind)
    for i, (name, f) in enumerate(cases):
        seconds = 0.2 if bench.rehearse else max(0.5, min(4.0, 0.5*bench.left/(len(cases) - i)))
        bench.case(name, f, seconds, least=2.0)


def compile(bench):
    """Residual blocks with what acts on single samples compiled: norm, linear maps, GELU, gate, sum."""
    import torch
    from torch.nn import functional as F

    from sashimi_wb.models.sashimi_layers import FeedForward, Residual
    batch, length = (2, 256) if bench.rehearse else (16, 16384)
    def feed_forward(x, scale, shift, up, up_bias, down, down_bias):
        y = F.linear(F.gelu(F.linear(F.layer_norm(x, scale.shape, scale, shift), up, up_bias)), down, down_bias)
        return x + y
    def after_s4(x, y, weight, bias): return x + F.glu(F.linear(F.gelu(y), weight, bias), -1)
    backend = "eager" if bench.rehearse else "inductor"
    feed_forward, after_s4 = (torch.compile(f, dynamic=False, backend=backend) for f in (feed_forward, after_s4))
    def forward(self, x, state=None, need_state=True):
        layer = self.layer
        if isinstance(layer, FeedForward):
            return feed_forward(x, self.norm.weight, self.norm.bias, layer.up.weight, layer.up.bias, layer.down.weight,
                                layer.down.bias), None
        y, state = layer.s4(self.norm(x), state, need_state)
        return after_s4(x, y, layer.mix.weight, layer.mix.bias), state
    def one(form, precision, graph):
        model, *given = build(bench, form, "8 bit", batch, length)
        plain = model.loss(*given).item()
        with mock.patch.object(Residual, "forward", forward):
            start = time.perf_counter()
            step = step_of(bench, model, *given, precision, **({"capturable": True} if graph else {}))
            loss = step().item()
            first = time.perf_counter() - start
            if graph: step = as_graph(bench, step)
            return bench.measure_step(step, batch*length) | {"first_s": first, "loss": loss, "plain_loss": plain}
    bench.case("diag 8 bit bf16-mixed", one, "diag", "bf16-mixed", False)
    bench.case("diag 8 bit bf16-mixed, CUDA graph", one, "diag", "bf16-mixed", True)
    bench.case("diag 8 bit 32-true, CUDA graph", one, "diag", "32-true", True)


def fit(bench):
    """Train on the bundled music for the given seconds: validation curves, bits of the test files, best weights."""
    from sashimi_wb.studies.experiment import experiment
    total = min(bench.args.fit_seconds, bench.left - 15)
    keep = Path(bench.args.checkpoints) if bench.args.checkpoints else bench.record.path.parent
    wide = {"n_layers": 2, "d_model": 64, "pool": (4, 4), "d_state": 64, "dropout": 0.1, "lr": 0.008, "ssm_lr": 0.002}
    small = {"batch_size": 32, "sample_len": 2048, "val_chunk_size": 40, "dropout": 0.1}
    runs = {
        "small": (0.25, experiment("small", small)),
        "two layers": (0.45, experiment("small", wide | {"batch_size": 16, "sample_len": 8192, "val_chunk_size": 12})),
        "two layers beside a predictor": (0.3, experiment("demo-music", wide | {
            "batch_size": 16, "sample_len": 4096, "lr": 0.008, "ssm_lr": 0.002})),
    }
    if bench.rehearse:
        tiny = {"d_model": 8, "d_state": 8, "n_layers": 1, "sample_len": 512, "batch_size": 1, "target_sr": 4000,
                "val_chunk_size": 2, "test_s": 0.3}
        runs = {name: (share, replace(e, **tiny)) for name, (share, e) in runs.items() if "beside" not in name}
    for name, (share, e) in runs.items():
        target = keep/f"{name.replace(' ', '_')}.safetensors"
        bench.case(name, fit_one, bench, e, share*total, target, least=10 if bench.cuda else 1)


def fit_one(bench, e, seconds, target):
    import shutil

    import torch
    from lightning.pytorch import Callback

    from sashimi_wb.audio.held import for_device
    from sashimi_wb.audio.loaders import AudioData
    from sashimi_wb.core.system import bundled, seed_everything, to_json
    from sashimi_wb.models.wave_model import WaveModel
    from sashimi_wb.training.checkpoints import read_weights
    from sashimi_wb.training.evaluation import evaluate_whole
    from sashimi_wb.training.trainer import fit as train_run
    start = time.perf_counter()
    given = AudioData(e.data_config(bundled("data/music"))).changed(train_chunk_size=4 if bench.rehearse else 200)
    for part in (given.train, given.val, given.test): part.prepare()
    made = for_device(given, bench.device)
    made.train_loader()
    prepared = time.perf_counter() - start
    seed_everything(0)
    model = WaveModel(e.model_config())
    model.head.start_at(made.train.histogram(model.head.n_codes))
    precision = "32-true" if bench.rehearse else "bf16-mixed"

    class Deadline(Callback):
        """Ends the run after some seconds from its first step; the rates follow the time instead of the steps."""
        def __init__(self, seconds): self.seconds, self.start = seconds, None
        def share(self): return (time.perf_counter() - self.start)/self.seconds
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if self.start is None: self.start = time.perf_counter()
            factor = min(1.0, (trainer.global_step + 1)/50)*max(0.0, 1 - self.share())
            for group in trainer.optimizers[0].param_groups: group["lr"] = group["base_lr"]*factor
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if self.share() > 1: trainer.should_stop = True

    deadline = Deadline(1.0 if bench.rehearse else max(5, seconds - prepared - 5))
    config = replace(e.train_config(2**20), scheduler="plateau", warmup_steps=0, device=bench.device.type,
                     precision=precision, save_every_s=1000.0, cycle_ends=())
    with tempfile.TemporaryDirectory() as folder:
        history = train_run(model, made, config, folder, progress=False, callbacks=[deadline])
        model.load_state_dict(read_weights(Path(folder)/"best.safetensors").state)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder)/"best.safetensors", target)
    scored = evaluate_whole(model, made, bench.device.type, ks=())
    curve = [[h["step"], h["seconds"], h["train_nats"], h["val"]["bits_per_sample"]] for h in history.epochs]
    return {"steps": history.steps, "seconds": history.seconds, "tokens_per_s": history.tokens/history.seconds,
            "prepared_s": prepared, "best_val_bits": min(c[3] for c in curve), "test_bits": scored["bits_per_sample"],
            "alone": scored.get("alone"), "parameters": sum(p.numel() for p in model.parameters()),
            "peak_gb": history.device_bytes/1e9, "checkpoint": target.name, "curve": curve, "experiment": to_json(e),
            "torch": torch.__version__}


PARTS = {f.__name__: f for f in (correct, train, profile, context, data, generation, compile, graph, fit)}


# ---- the run

def child(args):
    """Do the parts in this process."""
    import torch
    bench = Bench(args)
    if not bench.cuda: torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    bench.record.write("hardware", value=hardware(bench))
    waiting, WEIGHTS["fit"] = args.parts.split(","), args.fit_seconds + 15
    while waiting:
        name = bench.part = waiting.pop(0)
        rest = args.deadline - time.time()
        share = rest*WEIGHTS[name]/(WEIGHTS[name] + sum(WEIGHTS[n] for n in waiting))
        bench.end = time.monotonic() + share
        start = time.monotonic()
        if name not in bench.record.found.get("parts", {}):
            bench.record.write("parts", name, value={"limit_s": share, "cases": {}})
        try: PARTS[name](bench)
        except Exception:
            bench.record.write("parts", name, "error", value=traceback.format_exc()[-4000:])
            print(f"{name:10} failed: {traceback.format_exc().splitlines()[-1]}", flush=True)
        bench.free()
        spent = time.monotonic() - start
        bench.record.write("parts", name, "seconds", value=spent)
        print(f"{name:10} {spent:.0f} s of {share:.0f}", flush=True)


def compile_ahead():
    """Start to compile the functions of the CPU's engine and of prediction, so that no part waits for it."""
    code = ("from sashimi_wb.synthesis.engine import load_beside; load_beside()\n"
            "from sashimi_wb.prediction.adaptive import AdaptivePredictor\n"
            "from sashimi_wb.models.predicted import compiled_masses; compiled_masses()")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def card_name(rehearse):
    if rehearse: return "rehearsal"
    import torch
    return re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="the JSON; benchmarks/results/gpu_CARD.json without it")
    parser.add_argument("--parts", default=",".join(DEFAULT), help=f"of {','.join(WEIGHTS)}")
    parser.add_argument("--limit", type=float, default=420, help="seconds for everything")
    parser.add_argument("--fit-seconds", type=float, default=200, help="seconds of training in the part fit")
    parser.add_argument("--checkpoints", help="folder of the trained weights; that of the JSON without it")
    parser.add_argument("--engines", help="names of engines, separated by commas; all of ENGINES without it")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: return child(args)
    started, waiting = time.time(), args.parts.split(",")
    unknown = [name for name in waiting if name not in WEIGHTS]
    if unknown: parser.error(f"--parts: expected some of {', '.join(WEIGHTS)}, got {unknown[0]!r}")
    out = Path(args.out or ROOT/"benchmarks"/"results"/f"gpu_{card_name(args.rehearse)}.json").absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    deadline = started + args.limit
    ahead = compile_ahead() if {"generation", "fit"} & set(waiting) and not args.rehearse else None
    same = [a for i, a in enumerate(sys.argv[1:]) if not a.startswith(("--parts", "--out")) and
            (i == 0 or sys.argv[i] not in ("--parts", "--out"))]
    deaths = 0
    while waiting:
        command = [sys.executable, __file__, *same, "--child", "--parts", ",".join(waiting), "--out", out,
                   "--deadline", deadline]
        try: status = subprocess.run(list(map(str, command)), timeout=max(20, deadline + 20 - time.time())).returncode
        except subprocess.TimeoutExpired: status = "over the limit, stopped"
        record = Record(out)
        done = record.found.get("parts", {})
        waiting = [name for name in waiting if "seconds" not in done.get(name, {})]
        if not waiting: break
        name, deaths = waiting[0], deaths + 1
        record.write("parts", name, "error", value=f"a process ended: {status}")
        print(f"{name:10} a process ended: {status}", flush=True)
        if isinstance(status, str) or deaths > 5 or not done: break
    if ahead and ahead.poll() is None: ahead.terminate()
    record = Record(out)
    record.write("seconds", value=time.time() - started)
    summary(record.found)
    print(f"{time.time() - started:.0f} s; written to {out}")


def summary(found):
    """A short table of all cases."""
    print()
    print(", ".join(f"{k} {v}" for k, v in found.get("hardware", {}).items() if k != "command"))
    for part, row in found.get("parts", {}).items():
        print(f"--- {part}: {row.get('seconds', 0):.0f} s {row.get('error', '').strip().splitlines()[-1:] or ''}")
        for name, case in row.get("cases", {}).items(): print(f"{name:56} {shown(case)}")


if __name__ == "__main__": main()
