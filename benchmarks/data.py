"""Does loading keep up with training? Measure windows per second by format, training steps, and indexing.

    python benchmarks/data.py [--threads 2] [--seconds 5] [--files 100000 | --files 0]

The audio is the bundled music, written as wav, flac, ogg, mp3 and five-stream mp4 into a temporary folder: 44.1 kHz
stereo, read as mono windows of 8,192 samples with one thread per process. The files are in the system's page cache,
as those of a corpus that fits into memory are during training. The last part makes a corpus of many files (links to a
few) and indexes it without and with a cache.
"""
import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from machine import case, describe

LENGTH = 8192
KINDS = ("wav", "flac", "ogg", "mp3", "mp4")


# ---- the audio

def music(seconds):
    """Three arrays (t 2), float32, each of bundled pieces in sequence, repeated to the given seconds."""
    import numpy as np
    import soundfile as sf

    from sashimi_wb.core.system import bundled
    pieces = sorted(bundled("data/music").glob("*.flac"))
    for i in range(3):
        joined = np.concatenate([sf.read(p, dtype="float32")[0] for p in pieces[i::3]])
        yield np.resize(joined, (44_100*seconds, 2))


def write_mp4(path, wave):
    """Write five AAC streams, as in MUSDB18."""
    import av
    import numpy as np
    with av.open(str(path), "w") as c:
        streams = [c.add_stream("aac", rate=44_100, layout="stereo") for _ in range(5)]
        for s in streams: s.bit_rate = 256_000
        for a in range(0, len(wave), 1024):
            for s in streams:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[a:a + 1024].T), format="fltp",
                                                   layout="stereo")
                frame.sample_rate, frame.pts = 44_100, a
                c.mux(s.encode(frame))
        for s in streams: c.mux(s.encode(None))


def write_corpus(folder, seconds=60):
    """Write the same music in every format."""
    import soundfile as sf
    for i, wave in enumerate(music(seconds)):
        for kind in KINDS:
            path = folder/kind/f"{i}.{kind}"
            path.parent.mkdir(exist_ok=True)
            if kind == "mp4": write_mp4(path, wave)
            else:
                with sf.SoundFile(path, "w", 44_100, 2) as f:
                    for a in range(0, len(wave), 65_536): f.write(wave[a:a + 65_536])


# ---- loading

def load(folder, workers, seconds):
    """Windows per second of a training loader, at the sample rate of the files and at 16 kHz."""
    import torch

    from sashimi_wb.audio.config import DataConfig
    from sashimi_wb.audio.loaders import AudioData
    torch.set_num_threads(1)
    config = DataConfig(folder, sample_len=LENGTH, batch_size=4, num_workers=workers, train_percentage=0.34)
    return {str(rate): windows(AudioData(replace(config, target_sr=rate)), seconds) for rate in (None, 16_000)}


def windows(data, seconds):
    """Windows per second of training batches, not counting the first batch of an epoch."""
    n = spent = epoch = 0
    while spent < seconds:
        batches = iter(data.train_loader(epoch))
        next(batches)
        start = time.perf_counter()
        for batch in batches:
            n += len(batch["x"])
            if spent + time.perf_counter() - start > seconds: break
        spent, epoch = spent + time.perf_counter() - start, epoch + 1
    return n/spent


def train(preset, threads, repeats=3):
    """Windows per second of training steps of a preset's model, with batch size 1."""
    import torch

    from sashimi_wb.models.wave_model import WaveModel
    from sashimi_wb.studies.experiment import experiment
    from sashimi_wb.tokens.streams import shift
    from sashimi_wb.training.recipe import reuse_memory
    reuse_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = WaveModel(experiment(preset, {"sample_len": LENGTH}).model_config())
    optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True)
    y = torch.randint(256, (1, LENGTH, 1))
    x, best = shift(y, 128), float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()
        best = min(best, time.perf_counter() - start)
    return {"rate": 1/best, "parameters": sum(p.numel() for p in model.parameters())}


# ---- the index

def write_many(folder, n):
    """Write a corpus of n one-second files, half wav and half flac, in folders of a thousand: links to forty files."""
    import numpy as np
    import soundfile as sf
    waves = [np.random.default_rng(i).normal(0, 0.1, 16_000).clip(-1, 1) for i in range(40)]
    (folder/"real").mkdir()
    for i, wave in enumerate(waves): sf.write(folder/"real"/f"{i}.{('wav', 'flac')[i % 2]}", wave, 16_000)
    for i in range(n):
        source = folder/"real"/f"{i % 40}.{('wav', 'flac')[i % 2]}"
        path = folder/"many"/f"{i//1000:04}"/f"{i:07}{source.suffix}"
        if not i % 1000: path.parent.mkdir(parents=True)
        try: os.link(source, path)
        except OSError: path.symlink_to(source)  # no hard links here; then only forty files are read


def memory(name):
    """Bytes of memory of this process: "VmRSS" at present, "VmHWM" the peak; 0 where there is no /proc."""
    try: return next(int(line.split()[1])*1024 for line in open("/proc/self/status") if line.startswith(name))
    except (OSError, StopIteration): return 0


def index(folder):
    """Seconds and memory of indexing a folder."""
    from sashimi_wb.audio.index import cache_path, index_audio
    reset = Path("/proc/self/clear_refs")
    if reset.exists(): reset.write_text("5")    # the peak of memory counts from here
    idle, start = memory("VmRSS"), time.perf_counter()
    infos = index_audio(folder)
    spent = time.perf_counter() - start
    return {"files": len(infos), "seconds": spent, "idle_mb": idle/1e6, "more_mb": (memory("VmHWM") - idle)/1e6,
            "cache_mb": cache_path().stat().st_size/1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of a training step")
    parser.add_argument("--seconds", type=float, default=5, help="seconds of loading per measurement")
    parser.add_argument("--files", type=int, default=100_000, help="files of the corpus to index; 0: skip this part")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        what, *given = args.case.split(",")
        if what == "load": made = load(given[0], int(given[1]), args.seconds)
        elif what == "train": made = train(given[0], args.threads)
        else: made = index(given[0])
        return print(json.dumps(made))
    print(describe(args.threads))
    common = ("--threads", args.threads, "--seconds", args.seconds)
    with tempfile.TemporaryDirectory() as top:
        os.environ["SASHIMI_WB_CACHE"] = f"{top}/cache"
        write_corpus(Path(top))
        print(f"\nwindows of {LENGTH:,} samples per second")
        print(f"{'':8} {'at the rate of the file':^23}  {'resampled to 16 kHz':^23}")
        print(f"{'format':8} {'0 workers':>11} {'2 workers':>11}  {'0 workers':>11} {'2 workers':>11}")
        for kind in KINDS:
            none, two = (case(__file__, "--case", f"load,{top}/{kind},{workers}", *common) for workers in (0, 2))
            if note := none.get("note") or two.get("note"): print(f"{kind:8} {note}", flush=True)
            else:
                native, resampled = ([row[rate] for row in (none, two)] for rate in ("None", "16000"))
                print(f"{kind:8} {native[0]:11,.0f} {native[1]:11,.0f}  {resampled[0]:11,.0f} {resampled[1]:11,.0f}",
                      flush=True)
    print("\none training step, batch 1, 8 bit, categorical")
    for name, preset in (("small", "small"), ("full size", "sashimi-musdb18mono")):
        row = case(__file__, "--case", f"train,{preset}", *common)
        if "note" in row: print(f"{name:10} {row['note']}", flush=True)
        else: print(f"{name:10} {row['rate']:.2f} windows per second ({row['parameters']:,} parameters)", flush=True)
    if not args.files: return
    with tempfile.TemporaryDirectory() as top:
        os.environ["SASHIMI_WB_CACHE"] = f"{top}/cache"
        write_many(Path(top), args.files)
        print(f"\nindex of {args.files:,} files")
        print(f"{'':20} {'seconds':>8} {'files/s':>9} {'MB more':>9} {'MB idle':>9} {'MB cache':>9}")
        for what in ("without a cache", "with it"):
            row = case(__file__, "--case", f"index,{top}/many", *common, limit=3600)
            if "note" in row: print(f"{what:20} {row['note']}", flush=True)
            else:
                print(f"{what:20} {row['seconds']:8.1f} {row['files']/row['seconds']:9,.0f} {row['more_mb']:9.0f} "
                      f"{row['idle_mb']:9.0f} {row['cache_mb']:9.1f}", flush=True)


if __name__ == "__main__": main()
