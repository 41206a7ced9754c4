"""Stepping and generation beside a predictor: prompts, layouts, bytes, batches."""
import numpy as np
import pytest
import torch
from made_partners import assert_a_partner_changes_nothing

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.prediction.adaptive import AdaptivePredictor
from sashimi_wb.prediction.bins import byte_intervals
from sashimi_wb.prediction.token_predictor import TokenPredictor
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.synthesis import compiled_predicted
from sashimi_wb.synthesis.engine import CompiledStepper, make_engine
from sashimi_wb.synthesis.generation import GenerationSettings, generate, generate_stream
from sashimi_wb.synthesis.stepping import Sampling, Stepper
from sashimi_wb.tokens.byte_tokens import to_bytes
from sashimi_wb.tokens.layouts import interleave
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.tokens.streams import shift

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
KINDS = [("embedding", "dml", 16, "linear"), ("linear_projection", "dml", 8, "mu_law"),
         ("embedding", "categorical", 6, "linear"), ("embedding", "categorical", 8, "mu_law"),
         ("embedding", "bytes", 16, "linear"), ("embedding", "bytes", 24, "linear")]
LAYOUTS = [(1, "temporal"), (2, "temporal"), (2, "blocking-4"), (2, "blocking")]


def make(encoder="embedding", head="dml", bits=16, quantization="linear", form="dplr", pool=(2, 3), d_model=8):
    "A small model that is not at the predictor any more: its head is disturbed."
    torch.manual_seed(0)
    backbone = SaShiMiConfig(d_model, 1, pool, 2, 2, KernelConfig(form, 8))
    model = WaveModel(ModelConfig(bits, encoder, head, 3, predictor="adaptive", quantization=quantization,
                                  backbone=backbone))
    with torch.no_grad():
        for p in model.head.decoder.output.parameters(): p.add_(0.3*torch.randn_like(p))
    return model.eval()


def tones(b, t, c):
    "Samples (b, t, c) of low tones, other ones in every row and channel."
    step = 0.2 + 0.07*np.arange(b*c).reshape(b, 1, c)
    return torch.from_numpy(0.3*np.sin(np.arange(t)[None, :, None]*step)).float()


def tokens_of(model, wave, strategy="temporal"):
    "Codes, and tokens (b, l)."
    codes = Quantizer(model.config.quantization, model.config.bits).encode(wave)
    tokens = interleave(codes, strategy)
    return codes, (to_bytes(tokens, model.config.bits) if model.head.tokens == "bytes" else tokens)[..., 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", (1, 3, 8, 25))
def test_a_prompt_by_convolution_equals_a_prompt_by_stepping(kind, n):
    model = make(*kind)
    q, tokens = Quantizer(kind[3], kind[2]), tokens_of(model, tones(2, n, 1))[1]
    fed, stepped = (Stepper(model, 2, Sampling(), q) for _ in range(2))
    cut = tokens.shape[1]//2                                  # within a sample of bytes
    fed.feed(tokens[:, :cut], window=3)
    fed.feed(tokens[:, cut:], window=5)
    for token in tokens.split(1, 1):
        stepped._step()
        stepped._take(token)
    assert np.array_equal(fed.predictors.row(), stepped.predictors.row())
    with torch.inference_mode(): torch.testing.assert_close(fed._step(), stepped._step(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c,strategy", LAYOUTS)
def test_rows_are_those_of_the_whole_file(kind, c, strategy):
    "Steps through a prompt give the parameters of `forward` with the rows of `AdaptivePredictor`."
    model = make(*kind)
    q, t = Quantizer(kind[3], kind[2]), 24
    codes, tokens = tokens_of(model, tones(1, t, c), strategy)
    block, places = {"blocking-4": 4, "blocking": t}.get(strategy, 1), model.head.tokens_per_sample
    rows = AdaptivePredictor(q, c, block).rows(codes[0].numpy()).repeat(places, 0)
    if places > 1: rows = np.concatenate([rows, byte_intervals(tokens[..., None], kind[2])[0].numpy()], 1)
    stepper = Stepper(model, 1, Sampling(), q, predictor=TokenPredictor(q, c, block, places))
    x = shift(stepper.inputs(tokens), stepper.x)[..., None]
    with torch.inference_mode():
        want = stepper.model(x, rows=torch.from_numpy(rows)[None], need_state=False)[0]
        for i, token in enumerate(tokens.split(1, 1)):
            assert np.array_equal(stepper.predictors.row()[0], rows[i])
            torch.testing.assert_close(stepper._step(), want[:, i], rtol=1e-9, atol=1e-9)
            stepper._take(token)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c,strategy", LAYOUTS)
def test_generation_in_layouts(kind, c, strategy):
    "The same audio by either engine, in blocks of any size, and for a row alone; the prompt ends within a block."
    model, prompt = make(*kind), tones(1, 30, c)
    settings = {"quantizer": Quantizer(kind[3], kind[2]), "n_channels": c, "strategy": strategy}
    whole = generate(model, 9, prompt, 3, seed=5, engine="plain", progress=False, **settings)
    assert whole.shape == (3, 9, c) and not torch.equal(whole[0], whole[1])
    for engine, block in (("plain", 1), ("plain", 5), ("traced", 5))[:3 if strategy == "blocking-4" else 2]:
        chosen = GenerationSettings(9, prompt, 2, Sampling(seed=5), block=block, engine=engine, **settings)
        assert torch.equal(torch.cat(list(generate_stream(model, chosen)), 1), whole[:2])


def test_the_predictor_is_frozen_by_the_first_draw():
    q, model = Quantizer(bits=16), make()
    tokens = tokens_of(model, tones(1, 500, 1))[1]
    drawing = Stepper(model, 1, Sampling(), q)
    drawing.feed(tokens)
    drawn = drawing.draw(40)
    reading = TokenPredictor(q)
    reading.read(tokens[0].numpy())
    reading.freeze().read(drawn[0].numpy())
    assert np.array_equal(drawing.predictors.row()[0], reading.row())
    assert np.array_equal(reading.row()[2:10], reading.read(drawn[0].numpy())[-1, 2:10])     # scales stay


def parameters(model, tokens, stepper):
    "The parameters before every token, step by step in float64."
    out = []
    with torch.inference_mode():
        for token in tokens.split(1, 1):
            out.append(stepper._step())
            stepper._take(token)
    return torch.stack(out, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form,d_model", [("dplr", 8), ("diag", 20)])
@pytest.mark.parametrize("c,strategy", LAYOUTS[:3])
def test_the_compiled_engine_computes_the_same_parameters(kind, form, d_model, c, strategy):
    model = make(*kind, form, (2, 3), d_model)
    q, tokens = Quantizer(kind[3], kind[2]), tokens_of(model, tones(2, 40, c), strategy)[1]
    predictor = TokenPredictor(q, c, 4 if strategy == "blocking-4" else 1, model.head.tokens_per_sample)
    want = parameters(model, tokens, Stepper(model, 2, Sampling(), q, predictor=predictor))
    engine = CompiledStepper(model, 2, Sampling(), q, predictor=predictor)
    found = torch.cat([engine.read(part) for part in tokens.split(7, 1)], 1)
    assert (found - want).abs().max() <= 2e-4*want.abs().max()
    fed = CompiledStepper(model, 2, Sampling(), q, predictor=predictor)
    n = tokens.shape[1]//2 + 1                        # within a block, and within a sample of bytes
    fed.feed(tokens[:, :n])
    assert (fed.read(tokens[:, n:]) - want[:, n:]).abs().max() <= 2e-4*want.abs().max()
    for one, two in zip(engine.predictors, fed.predictors): assert np.array_equal(one.row(), two.row())


@pytest.mark.parametrize("kind", KINDS)
def test_likeliest_codes_are_those_of_the_reference(kind):
    model = make(*kind)
    q, tokens = Quantizer(kind[3], kind[2]), tokens_of(model, tones(2, 300, 1))[1]
    engines = [make(model, 2, Sampling(temperature=0), q) for make in (CompiledStepper, Stepper)]
    for engine in engines: engine.feed(tokens)
    first, second = (engine.draw(12) for engine in engines)
    if kind[1] == "dml": assert (first - second).abs()[:, :3].max() <= 1       # a mean between two codes
    else: assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_bits_in_any_batch_block_and_number_of_threads(kind):
    model = make(*kind)
    q, tokens = Quantizer(kind[3], kind[2]), tokens_of(model, tones(3, 50, 1))[1]

    def drawn(rows, blocks, threads):
        engine = CompiledStepper(model, rows, Sampling(0.9, seed=4), q, threads=threads)
        engine.feed(tokens[:rows])
        return torch.cat([engine.draw(n) for n in blocks], 1)
    whole = drawn(3, (30,), 1)
    for rows, blocks, threads in ((3, (1, 2, 27), 1), (3, (30,), 2), (1, (30,), 1), (1, (30,), 2), (2, (29, 1), 2)):
        assert torch.equal(drawn(rows, blocks, threads), whole[:rows])


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_thread_does_or_shares_the_deeper_levels_with_the_same_bits(kind, monkeypatch):
    "Without the choice to work alone, which a thread makes on a busy machine."
    model = make(*kind, pool=(2,), d_model=128)
    q, tokens = Quantizer(kind[3], kind[2]), tokens_of(model, tones(1, 50, 1))[1]
    def found(threads):
        engine = CompiledStepper(model, 1, Sampling(0.9, seed=4), q, threads=threads)
        engine.feed(tokens)
        return engine.draw(9), engine.states[0]
    assert_a_partner_changes_nothing(monkeypatch, compiled_predicted, "run_beside", found)


def test_auto_takes_the_compiled_engine():
    model = make()
    assert type(make_engine("auto", model, 1, Sampling(), Quantizer(bits=16))) is CompiledStepper
