"""How small do files become, and how fast? The predictor's samples per second each way, and a table of sizes.

    python benchmarks/compression.py [--audio FOLDER] [--seconds 4] [--threads 1] [--model music]

Speed is that of one segment of 16-bit music of so many seconds on one core, in processor time, the best of three; a
sample is a number of one channel. Real time for stereo at 44.1 kHz is 88,200. "threads" is the wall time of `compress`
and of `decompress` for a file of 40 such segments, samples per second, checksums and files included.

Sizes are those of `sashimi-wb sizes` (default: the bundled music), with the model if there is one.

The speed of a model is the wall time of `compress` and `decompress` for half a minute of such music per thread, at
8 kHz a minute.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from machine import case, describe

from sashimi_wb.core.system import bundled

SPEEDS = {"mono": 1, "stereo": 2}


def music(seconds, channels):
    """Some seconds of music, as integers of 16 bits (t, c)."""
    path = bundled("data/music/beethoven_ode_to_joy.flac")
    x = soundfile.read(path, frames=int(44_100*seconds), start=44_100, dtype="int16", always_2d=True)[0]
    return x[:, :channels]


def best(f):
    """The least processor time of three calls."""
    times = []
    for _ in range(3):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return min(times)


def speed(channels, seconds):
    """Samples per second of a segment, each way."""
    from sashimi_wb.coding.predicted_samples import decode_samples, encode_samples
    x = music(seconds, channels).astype(np.int64) + 2**15
    coded = encode_samples(x, 16)
    return {"encode": x.size/best(lambda: encode_samples(x, 16)), "bits": 8*len(coded)/x.size,
            "decode": x.size/best(lambda: decode_samples(coded, len(x), channels, 16))}


def threads(n, seconds):
    """Samples per second of whole files, each way, segments side by side."""
    from sashimi_wb.coding.compression import compress, decompress
    from sashimi_wb.coding.segments import SampleCoder
    x = music(seconds, 2)
    SampleCoder.segment_samples = x.size
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(f"{folder}/a.wav", x, 44_100)
        compress(f"{folder}/a.wav", f"{folder}/a.swb")                          # compile
        soundfile.write(f"{folder}/a.wav", np.tile(x, (40, 1)), 44_100)
        coded = compress(f"{folder}/a.wav", f"{folder}/b.swb", verify=False, workers=n)
        back = decompress(f"{folder}/b.swb", f"{folder}/b.wav", workers=n)
    return {"encode": 40*x.size/coded.seconds, "decode": 40*x.size/back.seconds}


def by_model(name, n):
    """Samples per second of whole files by a model, each way, segments side by side; bits of a sample."""
    from sashimi_wb.audio.files import probe
    from sashimi_wb.coding.compression import compress, decompress
    from sashimi_wb.coding.sizes import AsModelReads, Sound, levels_of, wav_bytes
    from sashimi_wb.studies.trained_models import load_model
    model = load_model(name)
    form, files = AsModelReads(model), sorted(bundled("data/music").glob("*.flac"))
    levels = levels_of(model)
    pieces = [levels[form.read(probe(path)).codes] for path in files]
    x = np.resize(np.concatenate(pieces), (n*2**18, model.n_channels))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for file, codes in (("a.wav", pieces[0]), ("b.wav", x)):
            (folder/file).write_bytes(wav_bytes(Sound(codes, model.depth, form.rate))[0])
        model.compress(folder/"a.wav", folder/"a.swb", progress=False)          # compile
        coded = compress(folder/"b.wav", folder/"b.swb", model, verify=False, workers=n)
        back = decompress(folder/"b.swb", folder/"c.wav", model, workers=n)
    return {"encode": x.size/coded.seconds, "decode": x.size/back.seconds, "bits": 8*coded.coded_bytes/x.size}


def main():
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", help="a folder of WAV, AIFF and FLAC files")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a segment for speeds")
    parser.add_argument("--threads", type=int, default=1, help="segments side by side")
    parser.add_argument("--model", default="", help="a model, as `load_model` takes it")
    parser.add_argument("--case", nargs=2, help="measure one case and print it as JSON")
    options = parser.parse_args()
    if options.case:
        kind, what = options.case
        if kind == "model": found = by_model(options.model, int(what))
        else: found = speed(SPEEDS[what], options.seconds) if kind == "speed" else threads(int(what), options.seconds)
        print(json.dumps(found))
        return
    print(describe(options.threads))
    print(f"{'predictor':>12} {'encode/s':>10} {'decode/s':>10} {'bits':>7}")
    cases = [(name, "speed", name) for name in SPEEDS] + [(f"{options.threads} threads", "threads", options.threads)]
    if options.model: cases.append(("model", "model", options.threads))
    for name, kind, what in cases:
        found = case(__file__, "--case", kind, what, "--seconds", options.seconds, "--model", options.model)
        if "note" in found: print(f"{name:>12} {found['note']}", flush=True)
        else:
            print(f"{name:>12} {found['encode']:10,.0f} {found['decode']:10,.0f} "
                  + (f"{found['bits']:7.3f}" if "bits" in found else ""), flush=True)
    from sashimi_wb.cli import size_lines
    models = [options.model] if options.model else []
    print("\n" + "\n".join(size_lines([options.audio or bundled("data/music")], models)))


if __name__ == "__main__": main()
