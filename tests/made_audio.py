"""Make audio files for tests."""
import wave as stdlib_wave

import av
import numpy as np
import soundfile as sf


def noise(frames, channels=2, seed=0, peak=0.5):
    """Brownian noise (t c) with the given peak."""
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(size=(frames, channels)), axis=0)
    return peak*(smooth/np.abs(smooth).max()) if frames else smooth


def write(folder, name, frames=4000, channels=2, rate=16_000, seed=0, **options):
    """Write noise to an audio file; return its path."""
    path = folder/name
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, noise(frames, channels, seed), rate, **options)
    return path


def write_integers(path, k, bits, rate=16_000):
    """Write integers (t c) of `bits` bits as FLAC, or as WAV with the standard library instead of libsndfile."""
    if path.suffix == ".wav":
        with stdlib_wave.open(str(path), "wb") as f:
            f.setnchannels(k.shape[1]), f.setsampwidth(bits//8), f.setframerate(rate)
            low = (k + 128 if bits == 8 else k).astype("<i4").reshape(-1, 1).view(np.uint8)  # 8-bit WAV is unsigned
            f.writeframes(low[:, :bits//8].tobytes())
    elif bits == 32: write_flac32(path, k, rate)
    else: sf.write(path, (k << (32 - bits)).astype(np.int32), rate, subtype={8: "PCM_S8"}.get(bits, f"PCM_{bits}"))
    return path


def write_flac32(path, k, rate=16_000):
    """Write a FLAC file of 32 bits, which libsndfile neither writes nor reads."""
    with av.open(str(path), "w") as c:
        s = c.add_stream("flac", rate=rate, layout=("mono", "stereo")[k.shape[1] - 1])
        s.codec_context.format, s.codec_context.options = "s32", {"strict": "-2"}
        for a in range(0, len(k), 4096):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(k[a:a + 4096], np.int32).reshape(1, -1),
                                               format="s32", layout=s.layout.name)
            frame.sample_rate, frame.pts = rate, a
            c.mux(s.encode(frame))
        c.mux(s.encode(None))
    return path


def write_stems(path, waves, rate=44_100, bit_rate=256_000, codec="aac", noise=False):
    """Write an mp4 with one interleaved stream per wave (t c), as in MUSDB18; `noise` allows noise substitution."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as c:
        streams = [c.add_stream(codec, rate=rate, layout=("mono", "stereo")[w.shape[1] - 1]) for w in waves]
        for s in streams:
            s.bit_rate = bit_rate
            if codec == "aac": s.codec_context.options = {"aac_pns": str(int(noise))}
        for a in range(0, max(map(len, waves)), 1024):
            for s, w in zip(streams, waves, strict=True):
                if a >= len(w): continue
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(w[a:a + 1024].T, np.float32), format="fltp",
                                                   layout=s.layout.name)
                frame.sample_rate, frame.pts = rate, a
                c.mux(s.encode(frame))
        for s in streams: c.mux(s.encode(None))
    return path


def decode_stream(path, stream=0):
    """A whole stream, decoded by ffmpeg from start to end."""
    with av.open(str(path)) as c: return np.concatenate([f.to_ndarray().T for f in c.decode(c.streams.audio[stream])])
