"""Damage audio files in many ways, and check that each is read correctly or refused with an error that names it.

    python tests/fuzz_audio.py [--files 10000] [--seed 0]

Files are read in a separate process with limits on memory and time, so that a crash or a hang is noticed and the next
file gets a new process. Read correctly means: every span equals that slice of the whole, and no other decoder finds
more samples.
"""
import argparse
import importlib
import io
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile as sf
from made_audio import noise, write_flac32, write_stems

TIMEOUT_S = 60       # for one file
MEMORY = 2 << 30     # bytes in addition to those of the imported modules
FRAMES = 6_000       # of every undamaged file


# ---- whole files

def coded(kind, subtype=None, rate=16_000, channels=2, **options):
    """The bytes of a short file."""
    buffer = io.BytesIO()
    sf.write(buffer, noise(FRAMES, channels, peak=0.7), rate, format=kind, subtype=subtype, **options)
    return buffer.getvalue()


def mp4(codec, **options):
    """The bytes of a short MP4 file."""
    with tempfile.TemporaryDirectory() as folder:
        if codec != "aac": return _lossless(folder, codec)
        return write_stems(Path(folder)/"a.mp4", [noise(FRAMES, 2)], **options).read_bytes()


def _lossless(folder, codec):
    import av
    path, k = f"{folder}/a.mp4", np.round(noise(FRAMES, 2)*30_000).astype(np.int16)
    with av.open(path, "w") as c:
        s = c.add_stream(codec, rate=44_100, layout="stereo")
        s.codec_context.format = "s16p"
        for a in range(0, FRAMES, 1_024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(k[a:a + 1_024].T), format="s16p", layout="stereo")
            frame.sample_rate, frame.pts = 44_100, a
            c.mux(s.encode(frame))
        c.mux(s.encode(None))
    return Path(path).read_bytes()


def _deep_flac():
    with tempfile.TemporaryDirectory() as folder:
        return write_flac32(Path(folder)/"a.flac", (noise(FRAMES, 2)*2**30).astype(np.int64)).read_bytes()


WHOLE = {f"wav {s.lower()}": lambda s=s: coded("WAV", s)
         for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")}
WHOLE |= {"wav gsm610": lambda: coded("WAV", "GSM610", 8_000, 1), "wav g721": lambda: coded("WAV", "G721_32", 8_000, 1),
          "wavex": lambda: coded("WAVEX", "PCM_24"), "rf64": lambda: coded("RF64", "PCM_16"),
          "w64": lambda: coded("W64", "PCM_16"),
          "aiff": lambda: coded("AIFF", "PCM_16"), "aifc": lambda: coded("AIFF", "FLOAT"),
          "au": lambda: coded("AU", "PCM_16"),
          "caf": lambda: coded("CAF", "PCM_16"), "caf alac": lambda: coded("CAF", "ALAC_16"),
          "nist": lambda: coded("NIST", "PCM_16"),
          "flac 16": lambda: coded("FLAC", "PCM_16"), "flac 24": lambda: coded("FLAC", "PCM_24", channels=3),
          "flac 32": _deep_flac,
          "vorbis": lambda: coded("OGG", "VORBIS"), "opus": lambda: coded("OGG", "OPUS"),
          "mp3 cbr": lambda: coded("MP3", rate=44_100, bitrate_mode="CONSTANT"),
          "mp3 vbr": lambda: coded("MP3", rate=44_100, bitrate_mode="VARIABLE"),
          "mp3 low": lambda: coded("MP3", channels=1, compression_level=0.99), "mp4 aac": lambda: mp4("aac"),
          "mp4 alac": lambda: mp4("alac")}


@lru_cache(maxsize=None)
def whole(name):
    """The bytes of an undamaged file."""
    return WHOLE[name]()


# ---- damage

HEAD = 200  # bytes in which most headers lie


def flip(rng, b, within):
    for _ in range(int(rng.integers(1, 9))): b[int(rng.integers(min(within, len(b))))] ^= 1 << int(rng.integers(8))
    return b


def extreme(rng, b):
    """Replace a number in the header by an extreme value that may overflow."""
    size = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(min(HEAD, len(b) - size)))
    values = [0, 1, 2**(8*size - 1) - 1, 2**(8*size - 1), 2**(8*size) - 1, 2**(8*size) - 37,
              int(rng.integers(2**(8*size - 1)))]
    b[at:at + size] = values[int(rng.integers(len(values)))].to_bytes(size, ("little", "big")[int(rng.integers(2))])
    return b


def part_of(rng, b):
    at = int(rng.integers(len(b)))
    return b[at:at + int(rng.integers(1, 2_000))]


def insert(rng, b, what):
    at = int(rng.integers(len(b)))
    return b[:at] + what + b[at:]


def delete(rng, b):
    at = int(rng.integers(len(b)))
    return b[:at] + b[at + int(rng.integers(1, 3_000)):]


def overwrite(rng, b, value):
    at, n = int(rng.integers(len(b))), int(rng.integers(1, 600))
    return b[:at] + (bytes(n) if value is None else rng.bytes(n)) + b[at + n:]


DAMAGE = {
    "flip in header": lambda rng, b: flip(rng, b, HEAD),
    "flip anywhere": lambda rng, b: flip(rng, b, 2**40),
    "extreme number": extreme,
    "two extremes": lambda rng, b: extreme(rng, extreme(rng, b)),
    "truncated": lambda rng, b: b[:int(rng.integers(len(b)))],
    "inserted": lambda rng, b: insert(rng, b, rng.bytes(int(rng.integers(1, 500)))),
    "repeated block": lambda rng, b: insert(rng, b, part_of(rng, b)),
    "deleted": delete,
    "zeros": lambda rng, b: overwrite(rng, b, None),
    "noise": lambda rng, b: overwrite(rng, b, 1),
    "two files": lambda rng, b: b + whole(list(WHOLE)[int(rng.integers(len(WHOLE)))]),
    "itself twice": lambda rng, b: b + b,
    "something before": lambda rng, b: rng.bytes(int(rng.integers(1, 300))) + b,
    "something behind": lambda rng, b: b + (bytes if rng.integers(2) else rng.bytes)(int(rng.integers(1, 3_000))),
    "a tag before": lambda rng, b: b"ID3\3\0\0\0\0\2\0" + bytes(256) + b,
    "nothing": lambda rng, b: b,
}


def damaged(seed, i):
    """The container, the damage and the bytes of file number i."""
    rng = np.random.default_rng([seed, i])
    name, what = list(WHOLE)[i % len(WHOLE)], list(DAMAGE)[int(rng.integers(len(DAMAGE)))]
    return name, what, bytes(DAMAGE[what](rng, bytearray(whole(name))))


# ---- reading

def count_of_others(path, info):
    """Samples per channel that another decoder finds, up to its first error."""
    n = 0
    try:
        if info.reader in ("mp4", "flac"):
            import av
            with av.open(path) as c:
                for frame in c.decode(c.streams.audio[info.stream]): n += frame.samples
        else:
            with sf.SoundFile(path) as f:
                while len(wave := f.read(4_096)): n += len(wave)
    except Exception: pass  # this decoder may refuse what the package reads
    return n


def judge(path, rng):
    """The verdict on a file: "read", "refused", "refused while reading", or "WRONG" with the reason."""
    from sashimi_wb.audio.files import decode_all, probe, read_frames
    name = os.path.basename(path)
    try: info = probe(path)
    except (ValueError, OSError) as e:
        return "refused" if name in str(e) else f"WRONG: an error without the name of the file: {e}"
    try:
        decode_all(info)
        pieces = [read_frames(info, a, min(50_000, info.frames - a))
                  for a in range(0, min(info.frames, 200_000), 50_000)]
    except ValueError as e:
        return "refused while reading" if name in str(e) else f"WRONG: an error without the name of the file: {e}"
    got = np.concatenate(pieces)
    if not np.isfinite(got).all(): return "WRONG: samples that are not finite"
    for _ in range(6):
        start = int(rng.integers(len(got)))
        n = int(rng.integers(1, min(3_000, len(got) - start) + 1))
        if not np.array_equal(read_frames(info, start, n), got[start:start + n]):
            return f"WRONG: frames {start} to {start + n} are not this slice of the whole"
    slack = {"mpeg": 4*1_152, "mp4": 2_048}.get(info.reader, 0)  # delay and padding, which the other decoder may keep
    if (n := count_of_others(path, info)) > info.frames + slack:
        return f"WRONG: {info.frames} frames, another decoder finds {n}"
    return "read"


def work(folder, seed, first, last):
    """Judge files; print a line of JSON before and after each of them."""
    importlib.import_module("sashimi_wb.audio.files")  # before memory is limited
    status = {}
    if os.path.exists("/proc/self/status"): status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    if "VmSize" in status: resource.setrlimit(resource.RLIMIT_AS, (int(status["VmSize"].split()[0])*1024 + MEMORY,)*2)
    for i in range(first, last):
        name, what, content = damaged(seed, i)
        path = f"{folder}/{i}.{('wav', 'flac', 'ogg', 'mp3', 'mp4')[i % 5]}"  # the suffix need not fit the content
        Path(path).write_bytes(content)
        print(json.dumps([i, name, what, None]), flush=True)
        try: verdict = judge(path, np.random.default_rng([seed, i, 1]))
        except BaseException as e: verdict = f"WRONG: {type(e).__name__}: {e}"
        print(json.dumps([i, name, what, verdict]), flush=True)
        if not verdict.startswith("WRONG"): os.remove(path)


def run(folder, n, seed):
    """Judge n files; yield (number, container, damage, verdict) for each. A crash or a timeout is a verdict too."""
    rows, first = [], 0
    while first < n:
        p = subprocess.Popen([sys.executable, __file__, "--work", folder, str(seed), str(first), str(n)],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready, now, verdict = selectors.DefaultSelector(), None, None
        ready.register(p.stdout, selectors.EVENT_READ)
        while True:
            if not ready.select(TIMEOUT_S): verdict = "WRONG: hangs"; break
            if not (line := p.stdout.readline()): verdict = f"WRONG: the process ended with {p.wait()}"; break
            now = json.loads(line)
            if now[3] is None: continue
            rows.append(tuple(now))
            yield rows[-1]
            if now[0] == n - 1: break
        p.kill(), p.wait(), p.stdout.close()
        if now is None: raise RuntimeError("the process that reads the files did not start")
        if now[3] is None: yield (*now[:3], verdict)
        first = now[0] + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder in which files with a wrong result are kept")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work: return work(args.work[0], *map(int, args.work[1:]))
    begin, table, wrong = time.time(), {}, []
    with tempfile.TemporaryDirectory() as top:
        folder = args.keep or top
        os.makedirs(folder, exist_ok=True)
        for i, name, what, verdict in run(folder, args.files, args.seed):
            short = verdict.split(":")[0]
            table.setdefault(name, Counter())[short] += 1
            table.setdefault(what, Counter())[short] += 1
            if short == "WRONG": wrong.append((i, name, what, verdict)); print(*wrong[-1], flush=True)
    columns = ("read", "refused", "refused while reading", "WRONG")
    print(f"\n{'':18}" + "".join(f"{c:>23}" for c in columns))
    for names in (WHOLE, DAMAGE):
        for name in names: print(f"{name:18}" + "".join(f"{table.get(name, {}).get(c, 0):23,}" for c in columns))
        print()
    print(f"{args.files:,} files of seed {args.seed} in {time.time() - begin:.0f} s, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__": main()
