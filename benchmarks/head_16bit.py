"""Seconds and memory of a categorical head's loss and gradients at 65,536 codes, for every way of computing it.

    python benchmarks/head_16bit.py [--tokens 8192] [--codes 65536] [--threads 2]

Ways: "plain" keeps all logits; "torch chunked" is `torch.nn.functional.linear_cross_entropy`, where torch has it;
"checkpointed" makes blocks of 256 tokens again in the backward pass; "blocks" is `sashimi_wb.cross_entropy`. Memory is
above that of inputs and parameters. Ratios and errors are to "plain", of one run.
"""
import argparse
import json
import time

from machine import case, describe

WAYS = ["plain", "torch chunked", "checkpointed", "blocks"]


def ways(name):
    """The loss as a function of feats, table, bias, codes; None where torch does not have it."""
    import torch
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    from sashimi_wb.cross_entropy import blocked_cross_entropy

    def plain(x, table, bias, y): return F.cross_entropy(F.linear(x, table, bias), y)

    def chunked(x, table, bias, y):
        return F.linear_cross_entropy(x, table, y, bias, options=torch.nn.LinearCrossEntropyOptions())

    def part(x, table, bias, y): return F.cross_entropy(F.linear(x, table, bias), y, reduction="sum")

    def checkpointed(x, table, bias, y):
        pieces = zip(x.split(256), y.split(256))
        return sum(checkpoint(part, a, table, bias, b, use_reentrant=False) for a, b in pieces)/len(x)

    def blocks(x, table, bias, y): return blocked_cross_entropy(x, table, bias, y, torch.full((len(x),), 1/len(x)))
    if name == "torch chunked" and not hasattr(F, "linear_cross_entropy"): return None
    return dict(zip(WAYS, (plain, chunked, checkpointed, blocks)))[name]


def measure(name, tokens, codes, width, threads, repeats):
    """One way: warm up on a few tokens, then loss and gradients, the best of some."""
    import torch

    from sashimi_wb.recipe import peak_bytes
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loss = ways(name)
    if loss is None: return {"note": f"torch {torch.__version__} does not have it"}
    x, table, bias = (torch.randn(*shape, requires_grad=True) for shape in ((tokens, width), (codes, width), (codes,)))
    with torch.no_grad(): table.mul_(width**-0.5)
    y = torch.randint(codes, (tokens,))
    loss(x[:512], table, bias, y[:512]).backward()
    grads, idle, seconds = [p.grad for p in (x, table, bias)], peak_bytes(), []
    for _ in range(repeats):
        for g in grads: g.zero_()
        start = time.perf_counter()
        value = loss(x, table, bias, y)
        value.backward()
        seconds.append(time.perf_counter() - start)
    marks = [value.item()*1.0, *(g.double().norm().item() for g in grads), *(g.flatten()[::9973].double().abs().sum().item() for g in grads)]
    return {"seconds": min(seconds), "extra_gb": (peak_bytes() - idle)/1e9, "marks": marks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("tokens", 8192), ("codes", 65536), ("width", 64), ("threads", 2), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case: return print(json.dumps(measure(args.case, args.tokens, args.codes, args.width, args.threads, args.repeats)))
    print(f"loss and gradients of a categorical head: {args.tokens:,} tokens, {args.codes:,} codes, width {args.width}, float32")
    print(describe(args.threads))
    print(f"{'way':14} {'seconds':>8} {'extra MB':>9} {'time ratio':>11} {'largest difference':>19}")
    options = [word for name in ("tokens", "codes", "width", "threads", "repeats") for word in (f"--{name}", getattr(args, name))]
    base = None
    for name in WAYS:
        row = case(__file__, "--case", name, *options)
        if "note" in row:
            print(f"{name:14} {row['note']}", flush=True)
            continue
        base = base or row
        off = max(abs(a - b)/abs(b) for a, b in zip(row["marks"], base["marks"]))
        print(f"{name:14} {row['seconds']:8.2f} {1e3*row['extra_gb']:9.0f} {row['seconds']/base['seconds']:11.2f} {off:19.1e}", flush=True)


if __name__ == "__main__": main()
