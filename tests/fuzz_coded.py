"""Damage coded files in many ways, and check that each is decoded correctly or refused with the right error.

    python tests/fuzz_coded.py [--files 10000] [--seed 0]

Half of the damages keep the checksums right, so that the fields and coded bytes behind them are reached. Files are
decoded, plainly and with salvage, in a separate process with limits on memory and time.
"""
import argparse
import io
import json
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

TIMEOUT_S = 60       # for one file
MEMORY = 1 << 30     # bytes in addition to those of the imported modules
MARKS = (b"SWBs", b"SWBe")


def wav(samples, width, channels, before=b"", after=b""):
    """The bytes of a WAV file."""
    fmt = struct.pack("<HHIIHH", 1, channels, 8000, 8000*width*channels, width*channels, 8*width)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + before + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body + after)) + body + after


def originals():
    """Short files of several kinds."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.integers(-30, 31, (900, 2)), 0)
    chunk = b"LIST" + struct.pack("<I", 300) + bytes(range(100))*3
    yield wav(walk.astype("<i2").tobytes(), 2, 2, chunk, chunk)
    yield wav((walk[:, 0] % 256).astype(np.uint8).tobytes(), 1, 1)
    yield wav(walk.astype("<i4").view(np.uint8).reshape(-1, 4)[:600, :3].tobytes(), 3, 1)
    yield wav(rng.bytes(3000), 2, 1)
    yield wav(np.tile(walk[:100], (1, 9)).astype("<i2").tobytes(), 2, 18)
    yield wav((walk[:300]*2**16 + rng.integers(0, 2**16, (300, 2))).astype("<i4").tobytes(), 4, 2)   # all 32 bits used
    yield bytes(range(256))*8


def coded_files():
    """Pairs of an original and its coded form, of several short segments."""
    from sashimi_wb.coding.compression import compress
    from sashimi_wb.coding.segments import SampleCoder
    found, usual = [], SampleCoder.segment_samples
    SampleCoder.segment_samples = 700
    try:
        for original in originals():
            coded = io.BytesIO()
            compress(io.BytesIO(original), coded, verify=False, workers=1)
            found.append((original, coded.getvalue()))
    finally: SampleCoder.segment_samples = usual   # other tests of this process have segments of usual length
    return found


def repaired(data):
    """The file with all checksums of headers and of coded bytes made right where its marks are."""
    data = bytearray(data)
    if len(data) >= 48:
        n = min(44 + struct.unpack_from("<H", data, 42)[0], len(data) - 4)
        data[n:n + 4] = struct.pack("<I", zlib.crc32(data[:n]))
    at = 0
    while (found := min((i for m in MARKS if (i := data.find(m, at)) >= 0), default=-1)) >= 0:
        size = 29 if data[found:found + 4] == MARKS[0] else 40
        if found + size + 4 > len(data): break
        if size == 29:
            n, = struct.unpack_from("<I", data, found + 17)
            data[found + 25:found + 29] = struct.pack("<I", zlib.crc32(data[found + 33:found + 33 + n]))
        data[found + size:found + size + 4] = struct.pack("<I", zlib.crc32(data[found:found + size]))
        at = found + 4
    return bytes(data)


def damaged(data, rng):
    """The file with one to three changes, in half of the cases with right checksums."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        marks = [i for m in MARKS for i in range(len(data) - 3) if data[i:i + 4] == m]
        near = [0, *marks][rng.integers(len(marks) + 1)] + int(rng.integers(0, 45))
        at = min(near if rng.integers(2) else int(rng.integers(len(data) + 1)), len(data))
        n = int(rng.choice([1, 2, 4, 8, 40, 300]))
        kind = rng.integers(8)
        if kind == 0 and at < len(data): data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1: data[at:at + n] = rng.bytes(n)
        elif kind == 2: data[at:at + n] = bytes([int(rng.choice([0, 255]))])*n
        elif kind == 3: del data[at:]
        elif kind == 4: del data[at:at + n]
        elif kind == 5: data[at:at] = rng.bytes(n)
        elif kind == 6: data[at:at] = data[at:at + n*8]
        elif len(marks) > 2:
            a, b, c = sorted(rng.choice(marks, 3, replace=False).tolist())
            data[a:c] = data[b:c] + data[a:b]
    return repaired(data) if rng.integers(2) else bytes(data)


def outcome(data, original, salvage):
    """What became of a file, in a word."""
    from sashimi_wb.coding.compression import decompress
    from sashimi_wb.coding.file_format import CodedFileError
    back = io.BytesIO()
    try: decompress(io.BytesIO(data), back, salvage=salvage, workers=1)
    except CodedFileError as e: return "error: " + str(e).removeprefix("the stream: ").split()[0].rstrip(":")
    except OSError as e: return "no space" if "are free" in str(e) else f"WRONG: {e!r}"
    except Exception as e: return f"WRONG: {e!r}"
    if back.getvalue() == original: return "right"
    return "salvaged" if salvage else "WRONG: other bytes without an error"


def child(files, seed):
    """Decode damaged files and print what became of each."""
    made = list(coded_files())
    limit = next(int(line.split()[1])*1024 for line in open("/proc/self/status") if line.startswith("VmSize")) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for i in range(files):
        rng = np.random.default_rng([seed, i])
        original, coded = made[i % len(made)]
        data = damaged(coded, rng)
        signal.alarm(TIMEOUT_S)                       # ends the process
        start = time.monotonic()
        found = [outcome(data, original, salvage) for salvage in (False, True)]
        print(json.dumps([i, *found, time.monotonic() - start]), flush=True)
    signal.alarm(0)


def run(files, seed):
    """Rows of number, outcome, outcome with salvage, and seconds."""
    done = subprocess.run([sys.executable, __file__, "--child", "--files", str(files), "--seed", str(seed)],
                          capture_output=True, text=True, cwd=Path(__file__).parents[1])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if len(rows) < files: rows.append([len(rows), f"WRONG: ended with {done.returncode}: {done.stderr[-500:]}", "", 0])
    return rows


def main():
    """Fuzz, and print how many files had which outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child: return child(options.files, options.seed)
    rows = run(options.files, options.seed)
    for name, column in (("plain", 1), ("salvage", 2)):
        print(f"{name}:", ", ".join(f"{n} {what}" for what, n in Counter(r[column] for r in rows).most_common()))
    print(f"slowest: {max(r[3] for r in rows):.2f} s")
    sys.exit(any(r[c].startswith("WRONG") for r in rows for c in (1, 2)))


if __name__ == "__main__": main()
