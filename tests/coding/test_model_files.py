"""Files coded by a model: what comes back, when the predictor codes instead, wrong models, frozen files."""
import hashlib
import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from made_models import fill_exactly

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.coding import compression
from sashimi_wb.coding.compression import _smaller, compress, decompress
from sashimi_wb.coding.file_format import CodedFileError, Segment, read_header, records
from sashimi_wb.coding.pcm_files import Pcm, wav_header
from sashimi_wb.coding.segments import METHODS, PredictorCoder, SampleCoder
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.studies.trained_models import TrainedModel, load_model
from sashimi_wb.tokens.quantization import Quantizer, linear_encode

pytestmark = pytest.mark.slow

FROZEN = Path(__file__).with_name("frozen")/"models"
KINDS = {   # head, bits, quantization, predictor, form, layout
    "dml": ("dml", 16, "linear", "adaptive", "diag", "blocking-48"),
    "bytes": ("bytes", 16, "linear", "adaptive", "dplr", "temporal"),
    "mu_law": ("categorical", 8, "mu_law", "none", "diag", "blocking-48"),
}


def made(kind, **changes):
    head, bits, quantization, predictor, form, layout = KINDS[kind]
    predictor = changes.get("predictor", predictor)
    backbone = SaShiMiConfig(4, 1, (2,), kernel=KernelConfig(form, 8))
    encoder = "linear_projection" if head == "dml" else "embedding"
    model = fill_exactly(WaveModel(ModelConfig(bits, encoder, head, 3, backbone=backbone, predictor=predictor,
                                               quantization=quantization)))
    data = DataConfig("own files", bits=bits, quantization=quantization, predictor=predictor, channels="stereo",
                      interleaving_strategy=layout, sample_len=480, tokens="bytes" if head == "bytes" else "codes",
                      input="dequantized" if model.config.input == "float" else "codes")
    return TrainedModel(model, None, 16_000, None, data)


def wav(kind, n=3000, rate=16_000):
    "A file in stereo, from exact arithmetic, whose samples are codes of the model."
    t = np.arange(n)[:, None]*np.array([37, 59])
    samples = (abs(t % 2048 - 1024) - 512)*20 + (t*40_503 % 65_537 >> 8)
    codes = samples + 2**15
    if kind == "mu_law": codes = linear_encode(Quantizer("mu_law", 8).decode(codes >> 8), 16).numpy()
    data = (codes - 2**15).astype("<i2").tobytes()
    return wav_header(rate, 2, 2, len(data)) + data + b"LIST" + struct.pack("<I", 4) + b"note"


def coded(data, *args, **options):
    out = io.BytesIO()
    compress(io.BytesIO(data), out, *args, **options)
    return out.getvalue()


def decoded(data, *args, **options):
    out = io.BytesIO()
    decompress(io.BytesIO(data), out, *args, **options)
    return out.getvalue()


def methods(data):
    "How the segments of a coded file are coded, and what codes its samples."
    f = io.BytesIO(data)
    header = read_header(f)
    return {r.method for r in records(f, header) if isinstance(r, Segment)}, header.coder


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_file_comes_back(kind, monkeypatch):
    monkeypatch.setattr("sashimi_wb.coding.model_segments.MODEL_SAMPLES", 2**10)
    monkeypatch.setattr(PredictorCoder, "encode", lambda self, codes, most, on_samples: bytes(most))
    model, data = made(kind), wav(kind)
    one, two = (coded(data, model, workers=n) for n in (1, 3))
    found, coder = methods(one)
    assert one == two and coder == "model" and METHODS["predictor"] not in found
    assert METHODS["model"] in found
    assert decoded(one, model) == data


def test_the_smaller_of_model_and_predictor_is_taken():
    model, data = made("bytes", predictor="none"), wav("bytes")    # not trained
    assert coded(data, model) == coded(data)                       # and it is not needed to decode


@pytest.mark.parametrize("kind,data,why", [("dml", wav("dml", rate=44_100), "16,000 Hz"),
                                           ("dml", b"RIFF and more", None)])
def test_what_a_model_cannot_code_is_coded_without_it(kind, data, why, caplog):
    with caplog.at_level(logging.WARNING): found = coded(data, made(kind))
    assert methods(found)[1] != "model" and decoded(found) == data
    if why: assert f"coded without the model: it codes sound at {why}" in caplog.text


def test_samples_between_the_codes_are_coded_by_the_predictor():
    data = wav("dml")
    assert coded(data, made("mu_law")) == coded(data)


def test_the_wrong_model_and_none():
    data = coded(wav("dml"), made("dml"))
    with pytest.raises(CodedFileError, match="coded with a model named '16 bit linear, dml.*give it"): decoded(data)
    with pytest.raises(CodedFileError, match="coded by another model"): decoded(data, made("bytes"))
    out = io.BytesIO()
    with pytest.raises(CodedFileError): decompress(io.BytesIO(data), out, made("bytes"), salvage=True)
    assert out.getvalue() == b""


def test_a_long_header_is_replaced_by_a_short_one(tmp_path):
    from sashimi_wb.coding.compression import _Output
    rest = np.random.default_rng(0).bytes(3*2**20 + 5)
    with _Output(tmp_path / "a", False) as output:
        output.write(b"0123456789" + rest)
        output.replace_start(10, b"abc")
        output.finished()
        output.keep()
    assert (tmp_path / "a").read_bytes() == b"abc" + rest


def test_damaged_segments_are_told():
    model, data = made("dml"), bytearray(coded(wav("dml"), made("dml")))
    data[len(data)//2] ^= 1
    with pytest.raises(CodedFileError, match="damaged"): decoded(bytes(data), model)


def test_methods_of_the_trained_model(tmp_path):
    model, source = made("dml"), tmp_path / "a.wav"
    source.write_bytes(wav("dml"))
    model.compress(source, tmp_path / "a.swb", progress=False)
    model.decompress(tmp_path / "a.swb", tmp_path / "b.wav", progress=False)
    assert (tmp_path / "b.wav").read_bytes() == source.read_bytes()
    with pytest.raises(FileExistsError): model.compress(source, tmp_path / "a.swb", progress=False)


def test_models_are_taken_by_name(tmp_path):
    from sashimi_wb.compression import compress, decompress
    model, source = made("dml").save(tmp_path / "model.safetensors"), tmp_path / "a.wav"
    source.write_bytes(wav("dml"))
    compress(source, tmp_path / "a.swb", model=str(model))
    decompress(tmp_path / "a.swb", tmp_path / "b.wav", model)
    assert (tmp_path / "b.wav").read_bytes() == source.read_bytes()


def make_frozen():
    "Write the frozen files anew; done once for every version of the format."
    PredictorCoder.encode = lambda self, codes, most, on_samples: bytes(most)   # the model needs fewer
    FROZEN.mkdir(exist_ok=True, parents=True)
    for kind in KINDS:
        made(kind).save(FROZEN / f"{kind}.safetensors")
        (FROZEN / f"{kind}.swb").write_bytes(coded(wav(kind, 1500), made(kind)))


WANT = {"dml": "2f7a5e05bb7c36bc", "bytes": "2f7a5e05bb7c36bc", "mu_law": "4d1cc8e3a8366cb6"}   # of the originals


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_every_version_reads_files_of_version_1(kind):
    model, data = load_model(FROZEN / f"{kind}.safetensors"), (FROZEN / f"{kind}.swb").read_bytes()
    assert METHODS["model"] in methods(data)[0]
    assert hashlib.sha256(decoded(data, model)).hexdigest()[:16] == WANT[kind]


@pytest.fixture
def short(monkeypatch):
    "Short segments: four of a model for one of the predictor."
    monkeypatch.setattr(SampleCoder, "segment_samples", 2400)
    monkeypatch.setattr("sashimi_wb.coding.model_segments.MODEL_SAMPLES", 600)


@pytest.mark.parametrize("predictor", ["none", "adaptive"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knows_nothing_makes_no_file_larger(kind, predictor, short):
    model, data = made(kind, predictor=predictor), wav(kind)
    with_it, alone = coded(data, model), coded(data)
    assert alone.count(b"SWBs") == 5 and len(with_it) <= len(alone)
    assert with_it == alone or methods(with_it)[1] == "model"


@pytest.mark.parametrize("saved", [1, 70, 400])
def test_what_shorter_segments_cost_counts_against_a_model(saved, short, monkeypatch):
    class Better(PredictorCoder):
        "A model that needs some bytes less than the predictor in a segment of the same length."
        method, segment_samples, block = METHODS["model"], 600, 48
        def encode(self, *args): return super().encode(*args)[:-saved]
    monkeypatch.setattr(compression, "coder_for", lambda model, pcm: Better(pcm))
    monkeypatch.setattr(compression, "model_extra", lambda *args: bytes(60))
    data = wav("dml")
    with_it, alone = coded(data, made("dml"), verify=False), coded(data)
    if saved < 400: assert with_it == alone
    else: assert len(with_it) < len(alone) and METHODS["predictor"] not in methods(with_it)[0]


@pytest.mark.parametrize("gain", [-1, 60, 61])
def test_a_stretch_must_save_more_than_the_name_of_a_model_takes(gain):
    def segment(name, at, n, size): return Segment(METHODS[name], at, n, 0, bytes(size))
    before, after = segment("stored", 0, 10, 10), segment("lzma", 2010, 5, 4)
    pcm, whole = Pcm(10, 2000, 8000, 1, 2, False, True), segment("predictor", 10, 2000, 1000)
    parts = segment("model", 10, 1200, 600), segment("model", 1210, 800, 400 - 33 - gain)
    found = list(_smaller(iter([before, whole, *parts, after]), pcm, 60))
    assert found == [before, *(parts if gain > 60 else [whole]), after]
