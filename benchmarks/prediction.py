"""How fast is the adaptive predictor, and what does it gain? Samples per second on one core, beside FLAC.

    python benchmarks/prediction.py [--seconds 4] [--threads 1]

The audio is the bundled music at 44.1 kHz, some seconds of every second piece. A sample is a number of one channel.
Speed counts processor time; the best of three passes. "FLAC" divides by the time that FLAC level 8 takes for the same
samples. Bits are those of a decoder. The state does not grow with the sound; "blocking-128" keeps 128 samples more.
"""
import argparse
import time

import numpy as np
import soundfile
from machine import case, describe

from sashimi_wb.baselines import flac_bits_per_sample
from sashimi_wb.core.system import bundled
from sashimi_wb.prediction.adaptive import AdaptivePredictor
from sashimi_wb.tokens.quantization import Quantizer

CASES = {   # name -> quantization, bits, channels (0: both, one after the other), block
    "mono, 16 bit": ("linear", 16, 1, 1),
    "mono, 8 bit": ("linear", 8, 1, 1),
    "mono, 24 bit": ("linear", 24, 1, 1),
    "mono, 8 bit mu-law": ("mu_law", 8, 1, 1),
    "two mono, 16 bit": ("linear", 16, 0, 1),
    "stereo, temporal": ("linear", 16, 2, 1),
    "stereo, blocking-16": ("linear", 16, 2, 16),
    "stereo, blocking-128": ("linear", 16, 2, 128),
}


def music(seconds):
    """Samples (t, 2) in [-1, 1] of every second piece, from the second second on."""
    for path in sorted(bundled("data/music").glob("*.flac"))[::2]:
        yield soundfile.read(path, start=44_100, frames=int(44_100*seconds), dtype="float64")[0]


def state_bytes(state):
    """Memory of all arrays of a predictor."""
    return sum(state_bytes(part) if isinstance(part, tuple) else part.nbytes for part in state)


def measure(quantization, bits, channels, block, seconds):
    """Bits and seconds per sample of the predictor and of FLAC over all pieces."""
    quantizer, total, n, spent, flac, flac_spent = Quantizer(quantization, bits), 0.0, 0, 0.0, 0.0, 0.0
    AdaptivePredictor(quantizer, channels or 1, block).bits(np.zeros((300, channels or 1), np.int64))   # compile
    for wave in music(seconds):
        codes = quantizer.encode(wave[None])[0].numpy()
        parts = [codes[:, :channels]] if channels else [codes[:, :1], codes[:, 1:]]
        for part in parts:
            times = []
            for _ in range(3):
                predictor, start = AdaptivePredictor(quantizer, channels or 1, block), time.process_time()
                found = predictor.bits(part)
                times.append(time.process_time() - start)
            total, n, spent = total + found.sum(), n + len(found), spent + min(times)
        whole = parts[0] if channels else codes
        start = time.process_time()
        flac += flac_bits_per_sample(whole, bits, 44_100)*whole.size
        flac_spent += time.process_time() - start
    return {"bits": total/n, "rate": n/spent, "flac": flac/n, "of_flac": spent/flac_spent,
            "state": state_bytes(predictor.state)}


def main():
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each piece")
    parser.add_argument("--threads", type=int, default=1, help="only printed: the predictor takes one")
    parser.add_argument("--case", help="measure one case and print it as JSON")
    options = parser.parse_args()
    if options.case:
        import json
        print(json.dumps(measure(*CASES[options.case], options.seconds)))
        return
    print(describe(options.threads))
    print(f"{'case':>22} {'samples/s':>10} {'us':>6} {'time/FLAC':>10} {'bits':>7} {'FLAC 8':>7} {'of FLAC':>8} "
          f"{'state':>8}")
    for name in CASES:
        found = case(__file__, "--case", name, "--seconds", options.seconds)
        if "note" in found: print(f"{name:>22} {found['note']}", flush=True)
        else:
            print(f"{name:>22} {found['rate']:10,.0f} {1e6/found['rate']:6.2f} {found['of_flac']:10.1f} "
                  f"{found['bits']:7.3f} {found['flac']:7.3f} {found['bits']/found['flac']:8.3f} "
                  f"{found['state']/2**20:5.1f} MiB", flush=True)


if __name__ == "__main__": main()
