"""Make the bundled audio from `scores/` and `texts/`: music through FluidSynth, spoken digits through espeak-ng.

The made files are committed, so this script is only needed to change them:

    python data/make_corpus.py              # everything
    python data/make_corpus.py --only joplin seven
    python data/make_corpus.py --check      # measure what is there (same as check_corpus.py)

Needs numpy and soundfile, and from Debian: fluidsynth, fluid-soundfont-gm, espeak-ng.
The same versions of these give the same bytes. The notation of the scores is described in README.md.
"""
import argparse
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile as sf

HERE = Path(__file__).resolve().parent
SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
PROGRAMS = {"fluidsynth": "fluidsynth", "espeak-ng": "espeak-ng"}  # command -> Debian package
MUSIC_RATE, SPEECH_RATE = 44100, 16000  # Hz
TICKS = 480  # MIDI ticks a quarter note
LEAD_S = 0.03  # silence before the first note, seconds
MUSIC_PEAK_DB, SPEECH_PEAK_DB = -2.5, -3.0  # dBFS after the one gain of each file
BLOCK = 65536  # frames a write

# ---------------------------------------------------------------- scores

STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
LENGTHS = {letter: Fraction(4, 2 ** k) for k, letter in enumerate("whqest")}  # whole to thirty-second, in quarters
DYNAMICS = {"pp": 42, "p": 54, "mp": 66, "mf": 78, "f": 92, "ff": 106}  # MIDI velocities
NOTE = re.compile(r"^(?P<pitches>[^/'>~]+)(/(?P<length>[whqest]3?\.*))?(?P<marks>['>~]*)$")
PITCH = re.compile(r"^([a-g])(##|#|bb|b)?(-?\d)$")


@dataclass
class Voice:
    """One voice of a score: an instrument at a place in the stereo image."""
    name: str
    program: int = 0       # General MIDI program counted from 0; -1 is the drum kit
    pan: int = 0           # -100 left to 100 right
    volume: int = 100      # MIDI volume, 0 to 127
    reverb: int = 60       # reverb send, 0 to 127
    chorus: int = 15       # chorus send, 0 to 127
    tune: int = 0          # fine tuning, cents, -100 to 99 (some sampled instruments are off pitch)
    legato: float = 0.95   # sounding part of a written length
    pedal: float = 0.0     # sustain pedal pressed anew every so many quarters; 0 is none
    strum: float = 0.0     # delay from note to note of a chord, seconds
    notes: list = field(default_factory=list)  # (start, length, pitch, velocity, place in chord), in quarters
    length: Fraction = Fraction(0)             # quarters


@dataclass
class Score:
    """A passage: what it is, how fast, how long, in which room, and its voices."""
    name: str
    title: str = ""
    composer: str = ""
    instruments: str = ""
    source: str = ""         # which bars, and what was simplified
    tempo: float = 100.0     # quarters a minute
    seconds: float = 9.5
    fade: float = 0.6        # seconds at the end
    bar: Fraction = Fraction(4)     # quarters a bar; 0 switches the check of bar lengths off
    pickup: Fraction = Fraction(0)  # quarters before the first full bar
    room: tuple = (0.6, 0.3, 0.8, 0.6)  # reverb: room size, damping, width (over 1 is out of phase), level
    voices: list = field(default_factory=list)


def pitch_number(text: str) -> int:
    """MIDI number of a pitch name such as c4 (60), f#3, bb5; n51 is the number itself (drums)."""
    if text.startswith("n") and text[1:].isdigit():
        return int(text[1:])
    match = PITCH.match(text)
    if not match:
        raise ValueError(f"expected a pitch such as c4, f#3 or bb5, got {text!r}")
    step, accidental, octave = match.groups()
    shift = {"": 0, "#": 1, "##": 2, "b": -1, "bb": -2}[accidental or ""]
    return 12 * (int(octave) + 1) + STEPS[step] + shift


def note_length(text: str) -> Fraction:
    """Quarters of a length such as q, e., s3 (triplet), h.."""
    value = LENGTHS[text[0]] * (Fraction(2, 3) if "3" in text else 1)
    return value * (2 - Fraction(1, 2 ** text.count(".")))


def unroll(tokens: list) -> list:
    """Write out repeats: ( a b )x3 -> a b a b a b; they may be nested."""
    stack = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
        elif re.match(r"^\)x\d+$", token):
            body = stack.pop()
            stack[-1] += body * int(token[2:])
        else:
            stack[-1].append(token)
    if len(stack) != 1:
        raise ValueError("a repeat ( ... )xN is not closed")
    return stack[0]


def read_notes(voice: Voice, tokens: list, bar: Fraction, pickup: Fraction) -> None:
    """Fill `voice.notes` from its tokens, checking the length of every bar."""
    now, bar_start, n_bar = Fraction(0), Fraction(0), 0
    length, velocity, tied = Fraction(1), DYNAMICS["mf"], {}
    gate = Fraction(voice.legato).limit_denominator(100)
    for token in unroll(tokens):
        if token == "|":
            want = pickup if pickup and n_bar == 0 else bar
            if bar and now - bar_start != want:
                raise ValueError(f"voice {voice.name!r}, bar {n_bar}: expected {want} quarters, got {now - bar_start}")
            bar_start, n_bar = now, n_bar + 1
            continue
        if token in DYNAMICS:
            velocity = DYNAMICS[token]
            continue
        match = NOTE.match(token)
        if not match:
            raise ValueError(f"voice {voice.name!r}: expected a note such as c4,e4/q or r/e, got {token!r}")
        length = note_length(match["length"]) if match["length"] else length
        marks, tie_on = match["marks"], {}
        if match["pitches"] != "r":
            sounding = length * (1 if "~" in marks else Fraction(1, 2) if "'" in marks else gate)
            for place, pitch in enumerate(pitch_number(p) for p in match["pitches"].split(",")):
                if pitch in tied:  # carry on the sounding note
                    index = tied[pitch]
                    start, before, *rest = voice.notes[index]
                    voice.notes[index] = (start, before + sounding, *rest)
                else:
                    index = len(voice.notes)
                    accent = 14 if ">" in marks else 5 if bar and now == bar_start else 0
                    voice.notes.append((now, sounding, pitch, velocity + accent, place))
                if "~" in marks:
                    tie_on[pitch] = index
        tied = tie_on
        now += length
    voice.length = now


def read_score(path: Path) -> Score:
    """Parse a score file: `key: value` lines, then voices, each with keys and `notes:`."""
    score, target, tokens = Score(path.stem), None, {}
    target = score
    for n_line, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("//"):
            continue
        key, colon, value = line.partition(":")
        value = value.strip()
        if not (colon and re.match(r"^[a-z]+$", key)):
            tokens[id(target)] += line.split()
        elif key == "voice":
            target = Voice(value)
            score.voices.append(target)
            tokens[id(target)] = []
        elif key == "notes":
            tokens[id(target)] += value.split()
        elif not hasattr(target, key) or key in ("voices", "name", "length"):
            raise ValueError(f"{path.name} line {n_line}: unknown key {key!r}")
        elif key == "room":
            score.room = tuple(float(x) for x in value.split())
        else:
            setattr(target, key, type(getattr(target, key))(value))
    for voice in score.voices:
        read_notes(voice, tokens[id(voice)], score.bar, score.pickup)
    if len({voice.length for voice in score.voices}) != 1:
        raise ValueError(f"{path.name}: voices differ in length: {[(v.name, str(v.length)) for v in score.voices]}")
    return score


# ---------------------------------------------------------------- MIDI

def vlq(value: int) -> bytes:
    """A MIDI variable-length number."""
    out = [value & 127]
    while value := value >> 7:
        out.append(value & 127 | 128)
    return bytes(reversed(out))


def track(events: list) -> bytes:
    """A MIDI track from (tick, order, message bytes)."""
    data, last = b"", 0
    for tick, _, message in sorted(events, key=lambda e: (e[0], e[1])):
        data += vlq(tick - last) + message
        last = tick
    data += vlq(0) + b"\xff\x2f\x00"
    return b"MTrk" + struct.pack(">I", len(data)) + data


def voice_events(score: Score, voice: Voice, channel: int) -> list:
    """Programme, controls, pedal and notes of one voice, with a little seeded unevenness of time and force."""
    chance = random.Random(f"{score.name}/{voice.name}")
    per_s = TICKS * score.tempo / 60
    lead = round(LEAD_S * per_s)
    control = {7: voice.volume, 10: round(64 + voice.pan * 63 / 100), 91: voice.reverb, 93: voice.chorus}
    bend = 8192 + round(voice.tune * 81.92)
    control |= {101: 0, 100: 1, 6: bend >> 7, 38: bend & 127}  # registered parameter 1: fine tuning
    events = [(0, 0, bytes([0xB0 | channel, number, value])) for number, value in control.items()]
    events.append((0, 0, bytes([0xC0 | channel, max(voice.program, 0)])))
    late = {}  # notes written together stay together
    for start, length, pitch, velocity, place in voice.notes:
        jitter = late.setdefault(start, chance.gauss(0, 0.004)) + place * voice.strum
        on = max(0, lead + round(float(start) * TICKS + jitter * per_s))
        off = max(on + 20, lead + round(float(start + length) * TICKS + jitter * per_s) - 4)
        force = min(127, max(1, velocity + round(chance.gauss(0, 2.5))))
        events += [(on, 3, bytes([0x90 | channel, pitch, force])), (off, 1, bytes([0x80 | channel, pitch, 0]))]
    if voice.pedal:
        down = [round((score.pickup + k * Fraction(voice.pedal)) * TICKS) + lead
                for k in range(int(float(voice.length - score.pickup) / voice.pedal) + 1)]
        for tick in ([lead] if score.pickup else []) + down:
            events.append((max(0, tick - 8), 2, bytes([0xB0 | channel, 64, 0])))
            events.append((tick + 20, 4, bytes([0xB0 | channel, 64, 127])))
    return events


def midi_bytes(score: Score) -> bytes:
    """A standard MIDI file, format 1; it lasts a little longer than the audio that is kept."""
    free = [c for c in range(16) if c != 9]
    end = round((score.seconds + 1) * TICKS * score.tempo / 60)
    tempo = b"\xff\x51\x03" + struct.pack(">I", round(60e6 / score.tempo))[1:]
    tracks = [track([(0, 0, tempo), (end, 9, b"\xff\x01\x00")])]
    tracks += [track(voice_events(score, v, 9 if v.program < 0 else free.pop(0))) for v in score.voices]
    return b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), TICKS) + b"".join(tracks)


# ---------------------------------------------------------------- audio

def finish(wave: np.ndarray, peak_db: float) -> np.ndarray:
    """One gain for the whole file, so that its peak is `peak_db`; then 16-bit integers."""
    return np.round(wave * (10 ** (peak_db / 20) / np.abs(wave).max()) * 32768).astype(np.int16)


def write_flac(path: Path, codes: np.ndarray, rate: int) -> None:
    """Write 16-bit FLAC in blocks to a temporary file beside `path`, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    n_channels = 1 if codes.ndim == 1 else codes.shape[1]
    try:
        with sf.SoundFile(part, "w", rate, n_channels, "PCM_16", format="FLAC", compression_level=1.0) as out:
            for start in range(0, len(codes), BLOCK):
                out.write(codes[start:start + BLOCK])
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def high_pass(wave: np.ndarray, rate: int, low_hz: float = 10, high_hz: float = 25) -> np.ndarray:
    """Remove what is too low to hear (some sampled instruments drift): nothing below `low_hz`, all from `high_hz`."""
    n = len(wave) + 2 * rate  # silence on both sides keeps the ends apart
    spectrum = np.fft.rfft(np.pad(wave, ((rate, rate), (0, 0))), axis=0)
    rise = np.clip((np.fft.rfftfreq(n, 1 / rate) - low_hz) / (high_hz - low_hz), 0, 1)
    spectrum *= (0.5 - 0.5 * np.cos(np.pi * rise))[:, None]
    return np.fft.irfft(spectrum, n, axis=0)[rate:-rate]


def render_music(score: Score, folder: Path) -> np.ndarray:
    """Samples (t, 2) of a score as 16-bit integers: FluidSynth in float, cut, fade, gain."""
    midi, wav = folder / "score.mid", folder / "score.wav"
    midi.write_bytes(midi_bytes(score))
    room = dict(zip(("room-size", "damp", "width", "level"), score.room))
    options = [x for key, value in room.items() for x in ("-o", f"synth.reverb.{key}={value}")]
    options += ["-o", "synth.polyphony=512", "-o", "synth.cpu-cores=1", "-f", os.devnull]  # no personal settings
    command = ["fluidsynth", "-ni", "-q", "-g", "0.3", "-R", "1", "-C", "1", "-r", str(MUSIC_RATE), *options,
               "-O", "float", "-T", "wav", "-F", str(wav), str(SOUNDFONT), str(midi)]
    subprocess.run(command, check=True, capture_output=True)
    wave, rate = sf.read(wav, dtype="float64", always_2d=True)
    n = round(score.seconds * MUSIC_RATE)
    if rate != MUSIC_RATE or len(wave) < n:
        raise RuntimeError(f"{score.name}: expected {n} frames at {MUSIC_RATE} Hz, got {len(wave)} at {rate}")
    wave = high_pass(wave, rate)[:n]
    n_fade = round(score.fade * MUSIC_RATE)
    wave[-n_fade:] *= (0.5 + 0.5 * np.cos(np.linspace(0, np.pi, n_fade)))[:, None]
    return finish(wave, MUSIC_PEAK_DB)


def resample_one_second(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling of one second (rate samples -> new_rate samples) in the frequency domain.

    Half a second of silence on either side keeps the ends apart; the top 5% below the new
    Nyquist frequency fall off along a cosine, so that nothing rings."""
    padded = np.concatenate([np.zeros(rate // 2), wave, np.zeros(rate - rate // 2)])
    n_new = 2 * new_rate
    spectrum = np.fft.rfft(padded)[:n_new // 2 + 1]
    edge = np.arange(len(spectrum)) / (n_new // 2)
    spectrum *= 0.5 + 0.5 * np.cos(np.pi * np.clip((edge - 0.95) / 0.05, 0, 1))
    start = round(rate // 2 * new_rate / rate)
    return (np.fft.irfft(spectrum, n_new) * new_rate / rate)[start:start + new_rate]


def render_digit(word: str, voice: dict, folder: Path) -> np.ndarray:
    """Samples (16000,) of one spoken word as 16-bit integers, the word near the middle of its second."""
    wav = folder / "word.wav"
    command = ["espeak-ng", "-v", voice["espeak"], "-p", voice["pitch"], "-s", voice["speed"], "-w", str(wav), word]
    subprocess.run(command, check=True, capture_output=True)
    wave, rate = sf.read(wav, dtype="float64")
    loud = np.flatnonzero(np.abs(wave) > 1e-3 * np.abs(wave).max())
    wave = wave[max(0, loud[0] - rate // 100):loud[-1] + rate // 50]
    n_spare = rate - len(wave)
    if n_spare < 0:
        raise RuntimeError(f"{word!r} by {voice['name']} lasts {len(wave) / rate:.2f} s: raise its speed")
    wave[:rate // 200] *= np.linspace(0, 1, rate // 200)
    wave[-rate // 100:] *= np.linspace(1, 0, len(wave[-rate // 100:]))
    before = int(n_spare * random.Random(f"{word}/{voice['name']}").uniform(0.25, 0.6))
    second = np.concatenate([np.zeros(before), wave, np.zeros(n_spare - before)])
    return finish(resample_one_second(second, rate, SPEECH_RATE), SPEECH_PEAK_DB)


def read_texts(path: Path) -> tuple:
    """Words and voices from texts/digits.txt."""
    words, voices = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("word "):
            words += line.split()[1:]
        elif line.startswith("voice "):
            voices.append(dict(zip(("name", "espeak", "pitch", "speed"), line.split()[1:])))
    return words, voices


def check_programs() -> None:
    """Stop with the name of the Debian package for whatever is missing."""
    missing = [package for command, package in PROGRAMS.items() if shutil.which(command) is None]
    missing += [] if SOUNDFONT.exists() else ["fluid-soundfont-gm"]
    if missing:
        sys.exit(f"missing: {' '.join(missing)}; on Debian or Ubuntu: apt install {' '.join(missing)}\n"
                 "(only needed to make the audio anew; the made files are in data/music and data/digits)")


def make(only: list) -> None:
    """Render every score and every digit whose file name contains one of `only` (all if empty)."""
    def wanted(name):
        return not only or any(part in name for part in only)

    check_programs()
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted((HERE / "scores").glob("*.txt")):
            if wanted(path.stem):
                codes = render_music(read_score(path), Path(folder))
                write_flac(HERE / "music" / f"{path.stem}.flac", codes, MUSIC_RATE)
                print("music ", path.stem, flush=True)
        words, voices = read_texts(HERE / "texts" / "digits.txt")
        for voice in voices:
            for word in words:
                if wanted(name := f"{word}_{voice['name']}"):
                    codes = render_digit(word, voice, Path(folder))
                    write_flac(HERE / "digits" / f"{name}.flac", codes, SPEECH_RATE)
                    print("digits", name, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="make only files whose name contains one of these")
    parser.add_argument("--check", action="store_true", help="make nothing; measure the files and print the table")
    options = parser.parse_args()
    if options.check:
        import check_corpus
        sys.exit(check_corpus.main())
    make(options.only)
