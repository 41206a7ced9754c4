"""Segments coded by a model: round trips in every kind and layout, the ideal length, equal bytes everywhere."""
import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from made_models import fill_exactly

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.own_files import find_files
from sashimi_wb.audio.windows import WindowDataset
from sashimi_wb.coding import model_segments
from sashimi_wb.coding.file_format import CodedFileError, Header
from sashimi_wb.coding.model_segments import ModelCoder, check_model, coder_for, model_extra, weights_hash
from sashimi_wb.coding.pcm_files import Pcm
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.studies.trained_models import TrainedModel
from sashimi_wb.synthesis.packing import Unsupported
from sashimi_wb.tokens.quantization import Quantizer, linear_encode
from sashimi_wb.training.evaluation import evaluate_whole

pytestmark = pytest.mark.slow

KINDS = {   # head, bits, quantization, encoder, form of the kernel
    "categorical": ("categorical", 8, "mu_law", "embedding", "diag"),
    "floats": ("categorical", 6, "linear", "linear_projection", "dplr"),
    "dml": ("dml", 16, "linear", "embedding_squeeze", "diag"),
    "dml of mu-law": ("dml", 10, "mu_law", "linear_projection", "dplr"),
    "bytes": ("bytes", 24, "linear", "embedding", "diag"),
}


def make(kind, predictor="none"):
    head, bits, quantization, encoder, form = KINDS[kind]
    backbone = SaShiMiConfig(12, 2, (2, 3), kernel=KernelConfig(form, 8, disc="zoh" if form == "diag" else "bilinear"))
    return fill_exactly(WaveModel(ModelConfig(bits, encoder, head, 3, backbone=backbone, predictor=predictor,
                                              quantization=quantization)))


def sound(bits, n, c=1):
    "Codes of a wandering tone, from integers alone."
    t = np.arange(n)[:, None]*np.array([37, 59, 83][:c])
    wave = abs(t % 2048 - 1024) - 512 + (t*40_503 % 65_537 >> 11) + np.arange(n)[:, None] % 700
    return (wave % 2**14)*2**bits//2**14


@pytest.mark.parametrize("predictor", ("none", "adaptive"))
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_is_what_went_in(kind, predictor):
    model, bits = make(kind, predictor), KINDS[kind][1]
    for n, c, block in ((300, 1, 1), (300, 2, 1), (300, 2, 64), (50, 3, 64), (1, 2, 1), (0, 1, 1)):
        coder, codes = ModelCoder(model, n_channels=c, block=block), sound(bits, n, c)
        codes[:4] = np.array([0, 2**bits - 1, 2**bits - 1, 0])[:n, None]      # unlikely codes
        coded = coder.encode(codes)
        assert len(coded) <= 5*codes.size*coder.places + 1
        np.testing.assert_array_equal(coder.decode(coded, n), codes)


@pytest.mark.parametrize("predictor", ("none", "adaptive"))
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_do_not_depend_on_threads_pieces_or_earlier_segments(kind, predictor, monkeypatch):
    coder, codes = ModelCoder(make(kind, predictor), n_channels=2, block=32), sound(KINDS[kind][1], 250, 2)
    want = coder.encode(codes)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(coder.encode, [codes]*3)) == [want]*3
        for got in pool.map(lambda coded: coder.decode(coded, 250), [want]*3): np.testing.assert_array_equal(got, codes)
    monkeypatch.setattr(model_segments, "PIECE", 7)
    done = []
    assert coder.encode(codes, len(want), done.append) == want and sum(done) == 500 and max(done) == 14
    assert coder.encode(codes, len(want) - 1) is None


WANT = {   # kind -> the beginning of the SHA-256 of the bytes, without and with a predictor
    "categorical": ("9393df342e6fd5c9", "a3914a764186d76a"),
    "floats": ("f7dc557e0f8c5259", "b602e511198fe211"),
    "dml": ("f8dd44991d9da2e7", "5c506d29c1ad9c1b"),
    "dml of mu-law": ("271b50a8c23f2c21", "727916d4e8c5b98e"),
    "bytes": ("0f91dd5b9dfbc2c1", "879e5b4fda9c13ff"),
}


@pytest.mark.portable
@pytest.mark.parametrize("predictor", ("none", "adaptive"))
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_the_same_on_every_processor(kind, predictor):
    # few samples: a processor without fused multiply-add is slow at it
    coder, codes = ModelCoder(make(kind, predictor), n_channels=2, block=32), sound(KINDS[kind][1], 200, 2)
    coded = coder.encode(codes)
    assert hashlib.sha256(coded).hexdigest()[:16] == WANT[kind][predictor == "adaptive"]
    np.testing.assert_array_equal(coder.decode(coded, 200), codes)


def test_wrong_input():
    with pytest.raises(Unsupported, match="prenorm"):
        ModelCoder(WaveModel(ModelConfig(backbone=SaShiMiConfig(8, 1, (2,), prenorm=False))))
    with pytest.raises(ValueError, match="expected 16 bits"):
        ModelCoder(WaveModel(ModelConfig(16, head="dml")), Quantizer())
    coder = ModelCoder(make("dml"))
    coded = coder.encode(sound(16, 200))
    for codes, match in ((np.zeros((3, 2), int), r"shape \(t, 1\)"), (np.zeros((3, 1)), "integers"),
                         (np.full((3, 1), 65_536), "from 0 to 65535"),
                         (np.full((3, 1), -1), "from 0 to 65535")):
        with pytest.raises(ValueError, match=match): coder.encode(codes)
    with pytest.raises(ValueError, match="bytes are missing"): coder.decode(coded[:-9], 200)
    with pytest.raises(ValueError, match="left over"): coder.decode(coded + bytes(9), 200)
    for damaged in (b"", bytes(400), b"\xff"*400, np.random.default_rng(0).bytes(400)):
        with pytest.raises(ValueError, match="damaged"): coder.decode(damaged, 200)


def test_a_model_whose_output_is_not_finite_cannot_code(caplog):
    model = make("categorical")
    coded = ModelCoder(model).encode(sound(8, 9))
    with torch.no_grad(): model.head.decoder.output.weight.fill_(torch.inf)
    assert ModelCoder(model).encode(sound(8, 9)) is None
    assert "without the model: the model's output is not finite at token 0 of a segment" in caplog.text
    with pytest.raises(ValueError, match="not finite"): ModelCoder(model).decode(coded, 9)


def file_of(rate=16_000, c=1, width=2): return Pcm(44, 1000*c*width, rate, c, width, False, width > 1)


def trained(kind, **data):
    head, bits, quantization, *_ = KINDS[kind]
    tokens = "bytes" if head == "bytes" else "codes"
    config = DataConfig("own files", bits=bits, quantization=quantization, tokens=tokens, **data)
    return TrainedModel(make(kind), None, 16_000, None, config)


def test_what_a_model_cannot_code_is_told():
    for kind, pcm, reason in (("dml", file_of(8000), "16,000 Hz, the file has 8,000"), ("dml", file_of(c=2), "2"),
                              ("dml", file_of(width=1), "16 bits, the samples 8"),
                              ("bytes", file_of(), "24 bits, the samples 16")):
        with pytest.raises(Unsupported, match=reason): coder_for(trained(kind), pcm)
    with pytest.raises(Unsupported, match="in every clip"):
        ModelCoder(WaveModel(ModelConfig(8)), Quantizer("mu_law", 8, "clip_minmax"), bits=16)


def test_samples_that_are_codes_of_another_law_or_depth():
    codes = sound(16, 300)
    coder = coder_for(trained("categorical"), file_of())
    assert coder.encode(codes) is None
    levels = linear_encode(Quantizer("mu_law", 8).decode(torch.arange(256)), 16).numpy()
    decoded = levels[codes >> 8]
    assert len(np.unique(decoded)) > 20
    np.testing.assert_array_equal(coder.decode(coder.encode(decoded), 300), decoded)
    coder = ModelCoder(make("floats"), bits=16)
    assert coder.encode(codes) is None
    np.testing.assert_array_equal(coder.decode(coder.encode(codes >> 10 << 10), 300), codes >> 10 << 10)


def test_segments_are_whole_blocks():
    coder = coder_for(trained("dml", channels="stereo", interleaving_strategy="blocking-384"), file_of(c=2))
    assert coder.block == 384 and coder.segment_samples % 768 == 0


def test_a_file_names_its_model():
    coder = coder_for(trained("dml"), file_of())
    header = Header(0, coder="model", extra=model_extra(coder, "n"*9000))
    check_model(coder, header)
    for other in (ModelCoder(make("dml", "adaptive")), ModelCoder(make("dml"), n_channels=2, block=7)):
        with pytest.raises(CodedFileError, match="coded by another model"): check_model(other, header)
    for extra in (b"", b"\xff"*4000, header.extra[:21]):
        with pytest.raises(CodedFileError, match="coded by another model"): check_model(coder, Header(0, extra=extra))


@pytest.mark.parametrize("predictor", ("none", "adaptive"))
@pytest.mark.parametrize("kind", KINDS)
def test_the_length_is_what_evaluation_says(kind, predictor, tmp_path):
    """At most 0.1% more, and 16 bits for the end."""
    head, bits, quantization, *_ = KINDS[kind]
    n, t = 9000, np.arange(9000)[:, None]
    wave = 0.4*np.sin(t/[9, 7]) + 0.2*np.sin(t/3.1) + 0.01*np.random.default_rng(0).standard_normal((n, 2))
    soundfile.write(tmp_path / "tones.wav", wave, 16_000, subtype="PCM_24" if bits == 24 else "PCM_16")
    config = DataConfig(str(tmp_path), bits=bits, quantization=quantization, channels="stereo", sample_len=512,
                        interleaving_strategy="blocking-256", predictor=predictor, drop_last=False,
                        tokens="bytes" if head == "bytes" else "codes",
                        input="dequantized" if kind in ("floats", "dml of mu-law") else "codes")
    windows = WindowDataset(find_files(tmp_path), config, "tones")
    model = make(kind, predictor)
    want = evaluate_whole(model, windows, ks=())["bits_per_sample"]*2*n
    coded = ModelCoder(model, n_channels=2, block=256).encode(next(windows.codes_of_files()))
    assert -1 < 8*len(coded) - want < 0.001*want + 16


def test_the_hash_is_that_of_the_weights():
    model, other = make("dml"), make("dml")
    assert weights_hash(model) == weights_hash(other)
    assert weights_hash(model)[:16] == "027558f6d231566a"     # the same in every later version
    with torch.no_grad(): other.head.decoder.output.bias[0] += 1e-6
    assert weights_hash(model) != weights_hash(other)
