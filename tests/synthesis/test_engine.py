"""The compiled engine: compared with `forward` at full size; its random numbers, last bits, refusals and states."""
import hashlib
import logging

import numpy as np
import pytest
import torch
from made_partners import assert_a_partner_changes_nothing

from sashimi_wb.models.heads import sample_logits
from sashimi_wb.models.mixtures import mixture_log_probs, mixture_of
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.prediction.bins import Bins
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.synthesis import compiled_step
from sashimi_wb.synthesis.compiled_draws import pick_class, pick_mixture
from sashimi_wb.synthesis.engine import ENGINES, CompiledStepper, make_engine
from sashimi_wb.synthesis.generation import GenerationSettings, generate, generate_stream
from sashimi_wb.synthesis.packing import Unsupported, pack_model
from sashimi_wb.synthesis.stepping import Sampling, Stepper
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.tokens.streams import shift

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
KINDS = [("embedding", "categorical", 8), ("linear_projection", "categorical", 8), ("embedding", "dml", 16),
         ("linear_projection", "dml", 16), ("embedding", "bytes", 24)]


def make(form="diag", encoder="embedding", head="categorical", bits=6, d_state=8, **options):
    "A small model; `options` are those of its backbone."
    torch.manual_seed(0)
    options = {"d_model": 20, "n_layers": 2, "pool": (2, 3), "expand": 2, "ff": 2} | options
    backbone = SaShiMiConfig(kernel=KernelConfig(form, d_state), **options)
    return WaveModel(ModelConfig(bits, encoder, head, 4, backbone=backbone)).eval()


@torch.no_grad()
def forward(model, tokens, quantizer):
    "The parameters before every token, by convolution in double precision."
    reference = Stepper(model, len(tokens), Sampling(), quantizer)
    x = shift(reference.inputs(tokens), reference.x)
    return reference.model(x[..., None], need_state=False)[0]


def assert_close(got, want): assert (got - want).abs().max() <= 1e-4*want.abs().max()


def two_engines(*args, **options): return [CompiledStepper(*args, **options) for _ in range(2)]


@pytest.mark.parametrize("form", ("diag", "dplr"))
@pytest.mark.parametrize("encoder,head,bits", KINDS)
def test_full_size_equals_forward(form, encoder, head, bits):
    "The model of the paper after a prompt of noise, 2,048 samples at temperature 0."
    torch.manual_seed(1)
    backbone = SaShiMiConfig(kernel=KernelConfig(form))
    model, q = WaveModel(ModelConfig(bits, encoder, head, backbone=backbone)).eval(), Quantizer(bits=bits)
    greedy, prompt = CompiledStepper(model, 1, Sampling(temperature=0), q), torch.randint(model.head.n_codes, (1, 100))
    greedy.feed(prompt)
    tokens = torch.cat([prompt, greedy.draw(2048)], 1)
    want = forward(model, tokens, q)
    assert_close(CompiledStepper(model, 1, Sampling(), q).read(tokens), want)
    choices, drawn = model.head.sample(want, 0)[:, 100:], tokens[:, 100:]
    other = choices != drawn
    assert other.sum() <= (20 if head == "dml" else 4)
    if head == "dml": assert (choices - drawn).abs().max() <= 1  # a mean between two codes
    elif other.any():                                            # a tie in float32
        first, second = want[:, 100:][other].topk(2).values.unbind(-1)
        assert (first - second).max() < 2e-5*want.abs().max()


@pytest.mark.parametrize("form", ("diag", "dplr"))
def test_every_draw_follows_the_distribution_of_forward(form):
    "The uniform number of every draw lies in the part of [0, 1) that belongs to the drawn class."
    model, q, n = make(form, bits=8, d_model=32), Quantizer(bits=8), 3000
    tokens = CompiledStepper(model, 1, Sampling(seed=2), q).draw(n)
    uniforms, p = np.random.default_rng((2, 0)).random((n, 2))[:, 0], forward(model, tokens, q)[0].softmax(-1)
    upper, own = (v.gather(1, tokens[0, :, None])[:, 0].numpy() for v in (p.cumsum(-1), p))
    assert len(tokens.unique()) > 100
    assert (uniforms < upper + 1e-5).all() and (uniforms > upper - own - 1e-5).all()


@pytest.mark.parametrize("options", [
    {"pool": ()}, {"pool": (3,)}, {"pool": (2, 2, 2), "expand": 1}, {"ff": 0}, {"ff": 3, "d_model": 17},
    {"pool_weight_norm": False}, {"pool_activation": True}, {"d_model": 1, "expand": 3}, {"d_state": 2},
    {"dropout": 0.3}])
@pytest.mark.parametrize("form", ("diag", "dplr"))
def test_every_supported_shape(form, options):
    model, q = make(form, **options), Quantizer(bits=6)
    tokens = torch.randint(64, (3, 60))
    assert_close(CompiledStepper(model, 3, Sampling(), q).read(tokens), forward(model, tokens, q))
    engines = [engine(model, 3, Sampling(temperature=0), q) for engine in (CompiledStepper, Stepper)]
    for e in engines: e.feed(tokens[:, :31])
    assert torch.equal(*(e.draw(40) for e in engines))


def test_a_mixture_in_units_of_its_start_equals_forward():
    model, q, tokens = make(head="dml", bits=12), Quantizer(bits=12), torch.randint(2**12, (3, 60))
    model.head.start_at(np.where(np.arange(2**12) == 2**11, 10**5, 10))
    torch.nn.init.normal_(model.head.decoder.output.weight)
    assert_close(CompiledStepper(model, 3, Sampling(), q).read(tokens), forward(model, tokens, q))


@pytest.mark.parametrize("encoder,head,bits", KINDS)
@pytest.mark.parametrize("form", ("diag", "dplr"))
def test_a_prompt_leaves_the_state_of_its_steps(form, encoder, head, bits):
    for n in (1, 2, 5, 6, 12, 29):
        model, q, tokens = make(form, encoder, head, bits), Quantizer(bits=bits), torch.randint(200, (3, n + 20))
        fed, stepped = two_engines(model, 3, Sampling(), q, threads=2)
        fed.feed(tokens[:, :n])
        stepped.read(tokens[:, :n])
        torch.testing.assert_close(fed.read(tokens[:, n:]), stepped.read(tokens[:, n:]), rtol=1e-4, atol=1e-4)
        assert np.array_equal(fed.ids, stepped.ids)


@pytest.mark.parametrize("encoder,head,bits", KINDS)
def test_equal_bits_in_any_batch_block_and_number_of_threads(encoder, head, bits):
    model, q, prompts = make("dplr", encoder, head, bits, d_model=40), Quantizer(bits=bits), torch.randint(200, (7, 23))
    def drawn(rows, blocks, threads):
        e = CompiledStepper(model, rows, Sampling(0.9, seed=4), q, threads=threads)
        e.feed(prompts[:rows])
        return torch.cat([e.draw(n) for n in blocks], 1)
    def read(rows, blocks, threads):
        e, tokens = CompiledStepper(model, rows, Sampling(), q, threads=threads), prompts[:rows]
        return torch.cat([e.read(part) for part in tokens.split(blocks, 1)], 1)
    whole, params = drawn(7, (60,), 1), read(7, [23], 1)
    for rows, blocks, threads in ((7, (1, 2, 3, 54), 1), (7, (60,), 3), (1, (60,), 1), (1, (7, 53), 2),
                                  (2, (59, 1), 2), (5, (30, 30), 2)):
        assert torch.equal(drawn(rows, blocks, threads), whole[:rows])
        assert torch.equal(read(rows, [5, 18], threads), params[:rows])
    if head == "categorical": assert len({tuple(r) for r in whole.tolist()}) == 7


@pytest.mark.parametrize("form", ("diag", "dplr"))
@pytest.mark.parametrize("encoder,head,bits", KINDS)
@pytest.mark.parametrize("options", [{"pool": (2,), "d_model": 160}, {"pool": (2, 1, 2), "d_model": 64},
                                     {"pool": (2, 2), "d_model": 256, "expand": 1, "pool_activation": True, "ff": 0}])
def test_a_second_thread_does_or_shares_the_deeper_levels_with_the_same_bits(form, encoder, head, bits, options,
                                                                             monkeypatch):
    "Without the choice to work alone, which a thread makes on a busy machine."
    model, q = make(form, encoder, head, bits, n_layers=1, **options), Quantizer(bits=bits)
    def found(threads):
        engine = CompiledStepper(model, 1, Sampling(0.9, seed=4), q, threads=threads)
        return engine.draw(9), engine.read(torch.arange(5)[None]), engine.states[0]
    assert_a_partner_changes_nothing(monkeypatch, compiled_step, "run", found)


@pytest.mark.parametrize("strategy", ("temporal", "blocking-4", "blocking"))
@pytest.mark.parametrize("encoder,head,bits", KINDS)
def test_a_stream_does_not_depend_on_its_blocks(strategy, encoder, head, bits):
    model, layout = make("diag", encoder, head, bits), {"n_channels": 2, "strategy": strategy}
    prompt = Quantizer(bits=bits).decode(torch.randint(2**bits, (2, 6, 2)))
    whole = generate(model, 27, prompt, keep_prompt=True, seed=5, progress=False, **layout)
    assert torch.equal(whole[:, :6], prompt) and whole.shape == (2, 33, 2) and whole.abs().max() <= 1
    for block in (1, 5, 100):
        settings = GenerationSettings(27, prompt, sampling=Sampling(seed=5), block=block, **layout)
        assert torch.equal(torch.cat(list(generate_stream(model, settings)), 1), whole[:, 6:])
    assert torch.equal(generate(model, 27, prompt[:1], seed=5, progress=False, **layout), whole[:1, 6:])


def kept_by(logits, top_k, top_p):
    "The definition of the cuts: likeliest first, of equal ones the lower code first; all that equal the k-th stay."
    p = np.exp((logits - logits.max()).astype(float))
    if top_k and top_k < len(p): p[p < np.sort(p)[-top_k]] = 0
    order = np.argsort(-p, kind="stable")
    before = np.r_[0, (p[order]/p.sum()).cumsum()[:-1]]
    return {int(i) for i, b in zip(order, before) if p[i] > 0 and (top_p == 1 or b < top_p)}


def test_cuts_are_those_of_the_head():
    rng = np.random.default_rng(0)
    for n in (2, 5, 64, 250):
        for _ in range(4):
            logits = np.round(rng.standard_normal(n)*1.5, rng.integers(0, 3)).astype(np.float32)  # some are equal
            at, scratch = np.r_[np.zeros(3), logits, np.zeros(32)].astype(np.float32), np.zeros(2*n + 32, np.float32)
            k, p = int(rng.integers(1, n + 3)), float(rng.uniform(0.05, 1.0))
            for top_k, top_p in ((k, 1.0), (0, p), (k, p)):
                kept, want = {pick_class(at, 3, n, u, 1.0, top_k, top_p, scratch)
                              for u in np.linspace(0, 1, 5_000, endpoint=False)}, kept_by(logits, top_k, top_p)
                share = np.exp(logits - logits.max())/np.exp(logits - logits.max()).sum()
                assert kept <= want and {i for i in want if share[i] > 4e-4} <= kept
                drawn = sample_logits(torch.as_tensor(logits).double().expand(500, -1), 1.0,
                                      torch.Generator().manual_seed(0), top_k or None, top_p)
                assert set(drawn.tolist()) <= want
            assert pick_class(at, 3, n, rng.random(), 0.0, 0, 1.0, scratch) == logits.argmax()


@pytest.mark.parametrize("bits", (1, 4, 6))
@pytest.mark.parametrize("temperature", (0.5, 1.0, 2.0))
def test_draws_of_a_mixture_follow_its_probabilities(bits, temperature):
    rng = np.random.default_rng(bits)
    params, n = (rng.standard_normal(12)*2).astype(np.float32), 20_000
    found = np.bincount([pick_mixture(params, bits, u, v, temperature) for u, v in rng.random((n, 2))],
                        minlength=2**bits)
    mix = mixture_of(torch.as_tensor(params).double(), bits)
    warm = mix._replace(log_weights=(mix.log_weights/temperature).log_softmax(-1),
                        log_scales=mix.log_scales + np.log(temperature))
    want = mixture_log_probs(warm, Bins(Quantizer(bits=bits))).exp().numpy()*n
    seen = want > 5
    assert ((found - want)**2/want)[seen].sum() < seen.sum() + 5*np.sqrt(2*seen.sum()) + 5
    assert abs(found[~seen].sum() - want[~seen].sum()) < 30


@pytest.mark.parametrize("change,why", [
    (lambda m: m.double(), "float64"), (lambda m: m.to("meta"), "meta"),
    (lambda m: m.backbone.center.blocks[0].layer.s4.kernel.B.data.zero_(), "without input"),
    (lambda m: setattr(m.head, "__class__", type("Bounded", (type(m.head),), {})), "Bounded"),
    (lambda m: setattr(m.encoder, "__class__", type("Sines", (type(m.encoder),), {})), "Sines"),
])
def test_unsupported_models(change, why):
    model = make()
    change(model)
    with pytest.raises(Unsupported, match=why): pack_model(model, Quantizer(bits=6))


@pytest.mark.parametrize("options,why", [({"unet": True}, "unet"), ({"norm": "scalar"}, "'scalar'"),
                                         ({"prenorm": False}, "prenorm")])
def test_falls_back_and_logs_the_reason(options, why, caplog):
    model, q = make(**options), Quantizer(bits=6)
    with caplog.at_level(logging.INFO, "sashimi_wb"): engine = make_engine("auto", model, 1, Sampling(), q)
    assert isinstance(engine, ENGINES["traced"]) and why in caplog.text
    with pytest.raises(Unsupported, match=why): make_engine("compiled", model, 1, Sampling(), q)
    assert generate(model, 5, progress=False).shape == (1, 5, 1)


def test_a_broken_model_names_the_sample():
    model = make()
    with torch.no_grad(): model.backbone.center.blocks[0].layer.mix.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite at sample 8, channel 0.*row 0"):
        generate(model, 40, torch.zeros(3, 1), batch=3, progress=False)


def test_a_fixed_table_is_read_as_a_learned_one():
    learned, fixed = make(head="bytes", bits=16), make(head="bytes", bits=16, encoder="sinusoidal")
    learned.load_state_dict(fixed.state_dict())
    a, b = (CompiledStepper(model, 2, Sampling(0.9, seed=1), Quantizer(bits=16)) for model in (fixed, learned))
    assert torch.equal(a.draw(60), b.draw(60))


def test_seeds_of_rows():
    model = make()
    a, b = (generate(model, 40, batch=3, seed=s, progress=False) for s in (1, 2))
    assert torch.equal(a, generate(model, 40, batch=3, seed=1, progress=False)) and not torch.equal(a, b)
    assert len({tuple(r.flatten().tolist()) for r in a}) == 3


def exact(*shape):
    "Numbers below 1/8 that are the same on every machine."
    return ((np.arange(np.prod(shape))*40_503 % 65_537)/2**18 - 0.125).astype(np.float32).reshape(shape)


def digest(*arrays):
    return hashlib.sha256(b"".join(np.asarray(a).astype(kind).tobytes()
                                   for a, kind in zip(arrays, ("<i8", "<f4")))).hexdigest()


@pytest.mark.portable
@pytest.mark.parametrize("form,want", [("diag", "9d34510f5ee56d66e272f468cc96f33e898c94faa8aef208c2c7b48130ccf896"),
                                       ("dplr", "6505fb71082e463c4c455f67b8690923a85122a8ddc948aa8f63f1bdf757a882")])
def test_a_compiled_step_is_the_same_bits_on_every_processor(form, want):
    "Given equal weights: drawn tokens and parameters, which depend on the exponential and the GELU."
    engine = CompiledStepper(make(form), 3, Sampling(0.9, 40, 0.95, seed=2), Quantizer(bits=6))
    packed = engine.packed
    packed.weights[:], packed.table[:] = exact(len(packed.weights)), exact(len(packed.table))
    tokens = engine.draw(30)
    assert len(tokens.unique()) > 20
    assert digest(tokens, engine.read(tokens)) == want


@pytest.mark.portable
@pytest.mark.parametrize("bits,want", [(8, "2eddd6618e924e21b448defd77735e0d8f47ad02525bd96d7731f9037d614f6a"),
                                       (16, "dd3c7bce3296a501611ae7cd42dade5cf2f78d544c45bab94a36d31fef63e3c3")])
def test_draws_of_a_mixture_are_the_same_on_every_processor(bits, want):
    uniforms, params = np.random.default_rng(0).random((2000, 2)), 40*exact(2000, 12)
    codes = [pick_mixture(p, bits, u, v, t) for p, (u, v) in zip(params, uniforms) for t in (0.0, 0.7, 1.0)]
    assert min(codes) >= 0 and len(set(codes)) > 200
    assert digest(codes) == want
