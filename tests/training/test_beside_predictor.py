"""Training and evaluation beside a predictor: its bits before training, one stream in windows and files, resuming."""
import math

import numpy as np
import pytest
import torch

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.baselines import adaptive_bits
from sashimi_wb.core.system import bundled, from_json, to_json
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.prediction.adaptive import AdaptivePredictor
from sashimi_wb.prediction.mixing import mix
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.training import evaluation
from sashimi_wb.training.evaluation import device_for, evaluate, evaluate_whole, whole_files
from sashimi_wb.training.recipe import TrainConfig
from sashimi_wb.training.trainer import fit

CASES = [dict(head="dml", bits=16), dict(head="categorical", bits=8), dict(head="dml", bits=8, quantization="mu_law"),
         dict(head="bytes", bits=16), dict(head="categorical", bits=8, quantization="mu_law"),
         dict(head="dml", bits=16, encoder="linear_projection")]


def corpus(bits=8, quantization="linear", head="dml", encoder="embedding", **options):
    """The bundled music at 4 kHz, and one second of each file for the test."""
    return AudioData(DataConfig(str(bundled("data/music")), bits=bits, quantization=quantization, target_sr=4000,
                                input="raw" if encoder == "linear_projection" else "codes",
                                tokens="bytes" if head == "bytes" else "codes", predictor="adaptive",
                                **{"sample_len": 512, "batch_size": 4, "train_percentage": .78, "test_s": 1.0,
                                   "drop_last": False, **options}))


def model(bits=8, quantization="linear", head="dml", encoder="embedding"):
    torch.manual_seed(0)
    backbone = SaShiMiConfig(8, 1, (4,), kernel=KernelConfig("diag", 8, disc="zoh"))
    return WaveModel(ModelConfig(bits, encoder, head, backbone=backbone, predictor="adaptive",
                                 quantization=quantization))


@pytest.mark.parametrize("case", CASES)
def test_an_untrained_model_needs_the_bits_of_the_predictor(case):
    data, net = corpus(**case), model(**case)
    codes = list(data.test_codes())
    wanted = np.average([adaptive_bits(c, data.config.bits, data.config.quantization) for c in codes],
                        weights=data.test.lengths)
    windows, whole = evaluate(net, data.test_loader(), "cpu", ks=()), evaluate_whole(net, data, "cpu", ks=())
    assert windows["tokens"] == whole["tokens"] == sum(data.test.lengths)*data.config.tokens_per_sample
    for bits in (windows["bits_per_sample"], whole["bits_per_sample"], whole["alone"]):
        assert bits == pytest.approx(wanted, rel=.01)


STEREO = [dict(), dict(interleaving_strategy="blocking-64"), dict(interleaving_strategy="blocking"),
          dict(head="bytes", bits=16)]


@pytest.mark.slow
@pytest.mark.parametrize("case", STEREO)
def test_windows_of_any_length_add_up_to_the_stream(case):
    """Whole files in windows with carried state are the convolution over one window."""
    data, net = corpus(channels="stereo", **case), model(**{k: v for k, v in case.items() if k in ("head", "bits")})
    with torch.no_grad():                           # a model of its own, unlike the predictor
        for p in net.head.decoder.parameters(): p += .05*torch.randn_like(p)
    found = {window: evaluate_whole(net, data, "cpu", window, ks=(1,)) for window in (64, 1000, 10**6)}
    for other in found.values():
        assert {k: other[k] for k in ("bits_per_sample", "alone", "accuracy")} == pytest.approx(
            {k: found[64][k] for k in ("bits_per_sample", "alone", "accuracy")}, rel=1e-5)
    nats, mixed = [], []
    for batch, begins in whole_files(data, 10**6):
        assert begins
        params, _ = net(batch["x"], rows=batch["rows"])
        log_p = net.head.log_prob(params, batch["y"][..., 0]).detach()
        nats.append(-log_p.double().sum().item())
        mixed.append(-mix(log_p.numpy(), net.head.predicted_log_prob(batch["rows"], batch["y"]).numpy())[0].sum())
    samples = 2*sum(data.test.lengths)
    assert found[64]["alone"] == pytest.approx(sum(nats)/samples/math.log(2), rel=1e-5)
    assert found[64]["bits_per_sample"] == pytest.approx(sum(mixed)/samples, rel=1e-5)


def test_rows_of_the_stream():
    data = corpus(channels="stereo", interleaving_strategy="blocking-64")
    found = torch.cat([batch["rows"] for batch, _ in whole_files(data, window=200)], 1)
    assert len(found) == len(data.test.files) and len(set(data.test.lengths)) == 1
    for rows, codes in zip(found, data.test_codes()):
        assert np.array_equal(rows.numpy(), AdaptivePredictor(data.quantizer, 2, 64).rows(codes))


@pytest.mark.slow
def test_training_keeps_the_bits_low_and_resumes_to_the_same(tmp_path):
    case = dict(head="dml", bits=16)
    data = corpus(**case)
    def trained(folder, *steps):
        net = model(**case)
        for n in steps: history = fit(net, data, TrainConfig(n, scheduler="constant", device="cpu"), folder,
                                      progress=False)
        return net, history
    (whole, record), (pieces, again) = trained(tmp_path/"whole", 12), trained(tmp_path/"pieces", 5, 12)
    assert record.train_nats == again.train_nats
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), pieces.state_dict().values()))
    assert not torch.equal(whole.row_encoder.linear.weight, model(**case).row_encoder.linear.weight)
    nets = model(**case), whole
    before, after = (evaluate(net, data.val_loader(), "cpu", ks=())["bits_per_sample"] for net in nets)
    assert after < before + .02 and record.epochs[-1]["val"]["bits_per_sample"] == pytest.approx(after, rel=1e-6)


@pytest.mark.slow
def test_other_predictor_is_another_run(tmp_path):
    data = corpus(bits=8)
    fit(model(), data, TrainConfig(1, device="cpu"), tmp_path, progress=False)
    plain = AudioData(from_json(DataConfig, to_json(data.config) | {"predictor": "none"}))
    backbone = model().config.backbone
    with pytest.raises(ValueError, match="data.predictor: was 'adaptive', is 'none'"):
        fit(WaveModel(ModelConfig(8, head="dml", backbone=backbone)), plain, TrainConfig(1, device="cpu"), tmp_path,
            progress=False)


def test_model_and_data_must_agree():
    data = corpus(bits=8)
    plain = AudioData(from_json(DataConfig, to_json(data.config) | {"predictor": "none"}))
    backbone = model().config.backbone
    with pytest.raises(ValueError, match="expected its rows"): evaluate(model(), plain.test_loader(), "cpu")
    with pytest.raises(ValueError, match="no predictor"):
        evaluate(WaveModel(ModelConfig(8, head="dml", backbone=backbone)), data.test_loader(), "cpu")


def test_no_apple_gpu_beside_a_predictor(monkeypatch):
    monkeypatch.setattr(evaluation, "pick_device", lambda name: torch.device("mps"))
    plain = WaveModel(ModelConfig(8, backbone=model().config.backbone))
    assert (device_for(model()).type, device_for(plain).type) == ("cpu", "mps")
