"""Measure the bundled audio and print the table that README.md shows.

    python data/check_corpus.py            # print
    python data/check_corpus.py --write    # and put it into README.md

Needs numpy and soundfile only.
"""
import argparse
import math
import sys
from pathlib import Path

import numpy as np
import soundfile as sf

HERE = Path(__file__).resolve().parent
MARKS = {name: (f"<!-- {name}: made by check_corpus.py --write -->", f"<!-- end of {name} -->")
         for name in ("pieces", "table")}  # places in README.md
SILENCE = 10 ** (-60 / 20)  # below this of full scale a sample counts as silent
LIMIT_BYTES = 15_000_000


def db(value: float) -> float:
    """Decibels of an amplitude ratio; minus infinity for 0."""
    return 20 * math.log10(value) if value > 0 else -math.inf


def longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def measure(path: Path) -> dict:
    """Format, levels (dBFS), clipping (samples at either end of 16 bits), silence and stereo width of a file."""
    info = sf.info(path)
    codes, rate = sf.read(path, dtype="int16", always_2d=True)
    wave = codes.astype(np.float64) / 32768
    row = {
        "file": f"{path.parent.name}/{path.name}", "rate": rate, "channels": codes.shape[1], "subtype": info.subtype,
        "format": info.format, "frames": len(codes), "seconds": len(codes) / rate, "bytes": path.stat().st_size,
        "peak_db": db(np.abs(wave).max()), "rms_db": db(math.sqrt((wave ** 2).mean())),
        "offset": float(np.abs(wave.mean(axis=0)).max()),
        "clipped": int(((codes >= 32767) | (codes <= -32768)).sum()),
        "silence_s": longest_run((np.abs(wave) < SILENCE).all(axis=1)) / rate,
    }
    if codes.shape[1] == 2:
        left, right = wave.T
        mid, side = (left + right) / 2, (left - right) / 2
        row["correlation"] = float(np.corrcoef(left, right)[0, 1])
        row["side_mid_db"] = db(math.sqrt((side ** 2).mean() / (mid ** 2).mean()))
        row["balance_db"] = db(math.sqrt((left ** 2).mean() / (right ** 2).mean()))
    return row


def measure_all() -> list:
    """One row a file, music first."""
    return [measure(p) for folder in ("music", "digits") for p in sorted((HERE / folder).glob("*.flac"))]


def table(rows: list) -> str:
    """Markdown: a line for each piece of music, a line for each voice's digits, totals."""
    music = [r for r in rows if r["channels"] == 2]
    digits = [r for r in rows if r["channels"] == 1]
    lines = ["| file | seconds | peak dBFS | RMS dBFS | clipped samples | longest silence s | L/R correlation "
             "| side/mid dB | left/right dB | bytes |", "|---|" + "---:|" * 9]
    for r in music:
        lines.append(f"| {r['file']} | {r['seconds']:.2f} | {r['peak_db']:.2f} | {r['rms_db']:.1f} | {r['clipped']} "
                     f"| {r['silence_s']:.2f} | {r['correlation']:.2f} | {r['side_mid_db']:.1f} "
                     f"| {r['balance_db']:+.1f} | {r['bytes']} |")
    for voice in sorted({r["file"].split("_", 1)[1] for r in digits}):
        group = [r for r in digits if r["file"].endswith("_" + voice)]
        rms = [r["rms_db"] for r in group]
        lines.append(f"| digits/\\*_{voice} ({len(group)}) | {group[0]['seconds']:.2f} each | "
                     f"{max(r['peak_db'] for r in group):.2f} | {min(rms):.1f} to {max(rms):.1f} "
                     f"| {sum(r['clipped'] for r in group)} | {max(r['silence_s'] for r in group):.2f} "
                     f"| mono | mono | mono | {sum(r['bytes'] for r in group)} |")
    total = sum(r["bytes"] for r in rows)
    lines += ["", f"{len(music)} pieces, {sum(r['seconds'] for r in music):.1f} s of stereo at 44.1 kHz; "
              f"{len(digits)} digits, {sum(r['seconds'] for r in digits):.1f} s of mono at 16 kHz; "
              f"{total} bytes together ({100 * total / LIMIT_BYTES:.1f}% of {LIMIT_BYTES}). "
              "Silent: every channel under -60 dBFS."]
    return "\n".join(lines)


def pieces() -> str:
    """Markdown: a line for each score, from its header."""
    lines = ["| file | composer | work | instruments | passage |", "|---|---|---|---|---|"]
    for path in sorted((HERE / "scores").glob("*.txt")):
        header = path.read_text(encoding="utf-8").split("voice:")[0].splitlines()
        keys = {key: value.strip() for key, _, value in (line.partition(":") for line in header)}
        lines.append("| " + " | ".join([path.stem,
                                        *(keys[k] for k in ("composer", "title", "instruments", "source"))]) + " |")
    return "\n".join(lines)


def renewed(page: str, name: str, text: str) -> str:
    """`page` with `text` between the marks called `name`."""
    start, end = MARKS[name]
    before, rest = page.split(start)
    return f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"


def main(write: bool = False) -> int:
    """Print the table; with `write`, also renew both tables in README.md."""
    text = table(measure_all())
    print(text)
    if write:
        page = HERE / "README.md"
        new = renewed(renewed(page.read_text(encoding="utf-8"), "pieces", pieces()), "table", text)
        page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="also write the table into README.md")
    sys.exit(main(parser.parse_args().write))
