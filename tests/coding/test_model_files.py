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
from sashimi_wb.coding.compression import compress, decompress
from sashimi_wb.coding.file_format import CodedFileError, Segment, read_header, records
from sashimi_wb.coding.pcm_files import Pcm, wav_header
from sashimi_wb.coding.segments import METHODS, SampleCoder, encode_piece
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
    monkeypatch.setattr("sashimi_wb.coding.segments.PredictorCoder.encode", lambda *args: None)
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
    import sashimi_wb.coding.segments as segments
    segments.PredictorCoder.encode = lambda *args: None     # the model codes, also where it needs more
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


@pytest.mark.parametrize("gain", [1, 60, 100])
def test_a_model_must_save_more_than_its_name_takes(gain):
    """A file with a model is never larger than by the predictor alone: the header that names the model counts."""
    class Coder(SampleCoder):
        def __init__(self, method, n, named_in=0): self.method, self.n, self.named_in = method, n, named_in
        def encode(self, codes, most, on_samples): return bytes(self.n) if self.n <= most else None
    pcm = Pcm(0, 2000, 8000, 1, 2, False, True)
    coders = Coder(METHODS["predictor"], 1000), Coder(METHODS["model"], 1000 - gain, 60)
    found = encode_piece(bytes(range(250))*8, 0, pcm, coders, lambda n: None)
    assert found.method == METHODS["model" if gain > 60 else "predictor"]
    assert encode_piece(bytes(20), 0, pcm, coders, lambda n: None).n_bytes == 20    # shorter than the name
