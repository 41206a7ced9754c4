"""Generation: prompts, layouts, streams, random generators, engines."""
import copy
import itertools
import logging

import numpy as np
import pytest
import torch

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.synthesis.generation import GenerationSettings, generate, generate_stream, known_runs
from sashimi_wb.synthesis.stepping import Sampling, Stepper
from sashimi_wb.tokens.byte_tokens import from_bytes, place_bytes, silent_input, to_bytes
from sashimi_wb.tokens.layouts import deinterleave, interleave, token_order
from sashimi_wb.tokens.quantization import Quantizer

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
STRATEGIES = ("temporal", "blocking-1", "blocking-4", "blocking-24", "blocking")
KINDS = [("embedding", "categorical"), ("linear_projection", "categorical"), ("embedding", "dml"),
         ("linear_projection", "dml")]


def make(encoder="embedding", head="categorical", bits=5, form="dplr", pool=(2, 2), seed=0):
    "A small model whose output depends on its past: logits and states are enlarged."
    torch.manual_seed(seed)
    model = WaveModel(ModelConfig(bits, encoder, head, 3,
                                  backbone=SaShiMiConfig(8, 1, pool, 2, 2, KernelConfig(form, 8))))
    with torch.no_grad(): model.head.decoder.output.weight.mul_(4 if head == "categorical" else 30)
    return model


def stream(model, n_samples, prompt=None, seed=0, temperature=1.0, top_k=None, top_p=None, **settings):
    "`generate_stream` with the keywords of `generate`."
    sampling = Sampling(temperature, top_k, top_p, seed)
    return generate_stream(model, GenerationSettings(n_samples, prompt, sampling=sampling, **settings))


@torch.no_grad()
def reference(model, tokens, known, temperature, seed, quantizer, batch):
    "Token by token in float64: known tokens are taken as they are, the others drawn. tokens (b, l), known (l,)."
    model = copy.deepcopy(model).double()
    generators = Sampling(temperature, seed=seed).generators(batch, "cpu")
    state, tokens = model.initial_state(batch), tokens.clone()
    floats = model.config.input == "float"
    x = torch.zeros(batch, 1, dtype=torch.float64) if floats else torch.full((batch, 1), quantizer.zero_code)
    for i, is_known in enumerate(known.tolist()):
        params, state = model.step(x, state)
        if not is_known:
            rows = zip(params.split(1), generators)
            tokens[:, i] = torch.cat([model.head.sample(p, temperature, g if temperature else None) for p, g in rows])
        x = tokens[:, i:i + 1]
        if floats: x = quantizer.decode(x).double()
    return tokens


@pytest.mark.parametrize("encoder,head,strategy", [*((*KINDS[0], strategy) for strategy in STRATEGIES),
                                                   *((*kind, "blocking-4") for kind in KINDS[1:])])
def test_equals_the_plain_loop(encoder, head, strategy):
    model, quantizer = make(encoder, head), Quantizer("mu_law", 5)
    n_prompt, n_new, batch, c = 6, 9, 2, 2
    prompt = torch.rand(batch, n_prompt, c)*2 - 1
    size = {"blocking-4": 4, "blocking-24": 24}.get(strategy, 1)
    whole = -(-(n_prompt + n_new)//size)*size if strategy != "blocking" else n_prompt + n_new
    codes = torch.zeros(batch, whole, c, dtype=torch.int64)
    codes[:, :n_prompt] = quantizer.encode(prompt)
    known = token_order(whole, c, strategy)//c < n_prompt
    want = reference(model, interleave(codes, strategy)[..., 0], known, 1.0, 5, quantizer, batch)
    want = quantizer.decode(deinterleave(want[..., None], strategy, c))[:, :n_prompt + n_new]
    settings = {"batch": batch, "seed": 5, "quantizer": quantizer, "n_channels": c, "strategy": strategy,
                "engine": "plain"}
    assert torch.equal(generate(model, n_new, prompt, progress=False, **settings), want[:, n_prompt:])
    assert torch.equal(generate(model, n_new, prompt, keep_prompt=True, progress=False, **settings), want)
    for block in (1, 3, 100):
        blocks = list(stream(model, n_new, prompt, block=block, **settings))
        assert torch.equal(torch.cat(blocks, 1), want[:, n_prompt:])
        if strategy == "temporal" and block == 3: assert [b.shape[1] for b in blocks] == [3, 3, 3]


@pytest.mark.parametrize("n_prompt", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize("form", ["dplr", "diag"])
def test_a_prompt_by_convolution_equals_a_prompt_by_stepping(form, n_prompt):
    model, quantizer = make(form=form, pool=(2, 3)), Quantizer(bits=5)
    codes = torch.randint(32, (2, n_prompt))
    fed, stepped = (Stepper(model, 2, Sampling(), quantizer) for _ in range(2))
    fed.feed(codes[:, :n_prompt//2], window=3)
    fed.feed(codes[:, n_prompt//2:], window=5)
    for code in codes.unbind(1):
        stepped._step()
        stepped.x = code[:, None]
    with torch.inference_mode(): torch.testing.assert_close(fed._step(), stepped._step(), rtol=1e-9, atol=1e-9)
    assert fed.count == n_prompt


@pytest.mark.parametrize("encoder,head", KINDS)
def test_a_row_does_not_depend_on_its_batch(encoder, head):
    model, prompts = make(encoder, head), torch.rand(5, 7, 1)*2 - 1
    rows = generate(model, 40, prompts, seed=9, progress=False)  # as many rows as the prompt has
    assert rows.shape == (5, 40, 1) and len({tuple(r.flatten().tolist()) for r in rows}) == 5
    for n in (1, 2, 3): assert torch.equal(generate(model, 40, prompts[:n], batch=n, seed=9, progress=False), rows[:n])


def test_seeds():
    def again(seed): return generate(make(), 50, seed=seed, progress=False)
    assert torch.equal(again(1), again(1)) and not torch.equal(again(1), again(2))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again(1)
    model = make()
    after = torch.get_rng_state()
    torch.manual_seed(123)
    generate(model, 5, progress=False)
    # only the initialization of a model draws from the global generator
    assert torch.equal(torch.get_rng_state(), before) and not torch.equal(after, before)
    with pytest.raises(ValueError, match="seed"): again(-1)
    with pytest.raises(ValueError, match="seed"): again(1.5)


def test_the_model_does_not_change():
    model = make()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    generate(model, 20, progress=False)
    assert model.training and all(p.requires_grad for p in model.parameters())
    for k, v in model.state_dict().items(): assert torch.equal(v, before[k]) and v.dtype == before[k].dtype
    model.loss(torch.zeros(1, 8, 1, dtype=torch.int64), torch.zeros(1, 8, 1, dtype=torch.int64)).backward()


def test_works_after_inference_mode_touched_the_model():
    model = make()
    with torch.inference_mode():
        model.step(torch.zeros(1, 1, dtype=torch.int64), model.initial_state(1))   # fills the step cache
    assert generate(model, 5, progress=False).shape == (1, 5, 1)
    with torch.inference_mode(): assert generate(model, 5, progress=False).shape == (1, 5, 1)


def test_settings_reach_the_head():
    model = make()
    greedy = generate(model, 30, temperature=0, progress=False)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert torch.equal(generate(model, 30, progress=False, **settings), greedy)
    hot = generate(model, 150, temperature=50.0, progress=False)
    assert len(hot.unique()) > 25  # close to uniform over 32 levels


def test_traced_steps_are_the_same_steps():
    for (encoder, head), form, pool in [(KINDS[0], "dplr", (3, 2)), (KINDS[3], "diag", (2,)), (KINDS[1], "dplr", ())]:
        model, prompt = make(encoder, head, form=form, pool=pool), torch.zeros(5, 1)
        plain, traced = (generate(model, 40, prompt, 2, engine=e, progress=False) for e in ("plain", "traced"))
        assert torch.equal(plain, traced)


def test_what_cannot_be_traced_runs_as_it_is(caplog, monkeypatch):
    def refuse(*_, **__): raise RuntimeError("no tracer here")
    monkeypatch.setattr(torch.jit, "trace", refuse)
    with caplog.at_level(logging.INFO, "sashimi_wb"): wave = generate(make(), 20, engine="traced", progress=False)
    assert torch.equal(wave, generate(make(), 20, engine="plain", progress=False)) and "no tracer here" in caplog.text


def test_an_endless_stream_in_layouts():
    for strategy, shape in (("temporal", (1, 8, 2)), ("blocking-6", (1, 12, 2))):
        blocks = list(itertools.islice(stream(make(), None, n_channels=2, strategy=strategy, block=8), 3))
        assert [b.shape for b in blocks] == [shape]*3
        assert torch.equal(torch.cat(blocks, 1),
                           generate(make(), 3*shape[1], n_channels=2, strategy=strategy, progress=False))
    with pytest.raises(ValueError, match="the layout 'blocking' needs a number"):
        stream(make(), None, n_channels=2, strategy="blocking")
    with pytest.raises(ValueError, match="generate_stream"): generate(make(), None)


def test_known_runs():
    assert known_runs(torch.tensor([True, True, False, True])) == [(0, 2, True), (2, 3, False), (3, 4, True)]
    assert known_runs(torch.tensor([False])) == [(0, 1, False)]


def test_progress_shows_the_share_of_real_time(capsys):
    generate(make(), 70, progress=True, sample_rate=16000)
    assert "x real time" in "".join(capsys.readouterr())
    generate(make(), 70, progress=False, sample_rate=16000)
    assert "real time" not in "".join(capsys.readouterr())


def test_a_prompt_may_be_an_array_or_shared():
    model, wave = make(), np.zeros((6, 1), np.float32)
    shared = generate(model, 10, wave, batch=3, progress=False)
    assert torch.equal(shared, generate(model, 10, torch.zeros(3, 6, 1), batch=3, progress=False))


@pytest.mark.parametrize("settings,match", [
    ({"prompt": torch.zeros(8, 2)}, r"expected 1 channel\(s\), got 2"),
    ({"prompt": torch.zeros(8, 1), "n_channels": 2}, "expected 2 channel"),
    ({"prompt": torch.full((8, 1), 1.2)}, r"sample 0.*expected a number in \[-1, 1\]"),
    ({"prompt": torch.full((8, 1), float("nan"))}, "nan"),
    ({"prompt": torch.zeros(8, 1, dtype=torch.int16)}, "int16"),
    ({"prompt": torch.zeros(0, 1)}, "t of at least 1"),
    ({"prompt": torch.zeros(8)}, "expected samples"),
    ({"prompt": torch.zeros(3, 8, 1), "batch": 2}, "batch = 2 rows, got 3"),
    ({"n_samples": 0}, "n_samples: expected"),
    ({"n_samples": 2.5}, "n_samples: expected"),
    ({"batch": 0}, "batch: expected"),
    ({"block": 0}, "block: expected"),
    ({"quantizer": Quantizer(bits=8)}, "expected 5 bits"),
    ({"temperature": -1.0}, "temperature"),
    ({"top_k": 0}, "top_k"),
    ({"top_p": 1.5}, "top_p"),
    ({"strategy": "zigzag"}, "known: 'temporal'"),
    ({"engine": "warp"}, "known: plain, traced"),
])
def test_wrong_settings(settings, match):
    settings = {"n_samples": 4} | settings
    with pytest.raises(ValueError, match=match): generate(make(), progress=False, **settings)
    with pytest.raises(ValueError, match=match): stream(make(), **settings)  # at the call, not at the first block


def test_top_k_needs_a_head_with_logits():
    with pytest.raises(ValueError, match="DMLHead"): generate(make(head="dml"), 4, top_k=3, progress=False)


@pytest.mark.parametrize("strategy,place", [("temporal", "sample 2, channel 1"), ("blocking-2", "sample 3, channel 0"),
                                            ("blocking", "sample 5, channel 0")])
def test_a_broken_model_names_the_sample(strategy, place):
    model = make(pool=())
    steps = itertools.count()

    def breaks(module, inputs, params): return params*float("nan") if next(steps) == 5 else params
    model.head.register_forward_hook(breaks)
    with pytest.raises(ValueError, match=f"not finite at {place}.*row 0"):
        generate(model, 8, n_channels=2, strategy=strategy, progress=False, engine="plain")


@pytest.mark.parametrize("bits", (8, 16, 24))
@pytest.mark.parametrize("strategy", ("temporal", "blocking-4", "blocking"))
def test_bytes_are_drawn_one_after_the_other(bits, strategy):
    "A plain loop over bytes at temperature 0, in the order of the layout, gives the same samples."
    torch.manual_seed(bits)
    model = WaveModel(ModelConfig(bits, head="bytes",
                                  backbone=SaShiMiConfig(8, 1, (2, 3), kernel=KernelConfig("diag", 8)))).double()
    with torch.no_grad(): model.head.decoder.output.weight.mul_(10)
    q, n = Quantizer(bits=bits), model.head.tokens_per_sample
    made = generate(model.float(), 8, n_channels=2, strategy=strategy, temperature=0, progress=False)
    model.double()
    x, state, tokens = torch.full((1, 1), silent_input(bits)), model.initial_state(1), []
    with torch.no_grad():
        for i in range(8*2*n):
            params, state = model.step(x, state)
            tokens.append(params.argmax(-1))
            x = place_bytes(tokens[-1][:, None, None], n, i % n)[..., 0]
    naive = q.decode(deinterleave(from_bytes(torch.stack(tokens, 1)[..., None], bits), strategy, 2))
    assert torch.equal(made, naive)


@pytest.mark.parametrize("engine", ("plain", "traced"))
@pytest.mark.parametrize("strategy", ("temporal", "blocking-4", "blocking"))
def test_bytes_after_a_prompt(engine, strategy):
    "A prompt that ends inside a block: equal audio in blocks of any size, by either engine; the prompt is kept."
    torch.manual_seed(3)
    model = WaveModel(ModelConfig(24, head="bytes",
                                  backbone=SaShiMiConfig(8, 1, (2, 3), kernel=KernelConfig("diag", 8))))
    prompt = torch.randint(-2**23, 2**23, (6, 2)).double()/2**23
    whole = generate(model, 7, prompt, n_channels=2, strategy=strategy, seed=5, progress=False, keep_prompt=True,
                     engine="plain")
    assert torch.equal(whole[0, :6].double(), prompt) and whole.shape == (1, 13, 2)
    for block in (1, 5, 100):
        again = generate(model, 7, prompt, n_channels=2, strategy=strategy, seed=5, progress=False, block=block,
                         engine=engine)
        assert torch.equal(again, whole[:, 6:])
    codes = Quantizer(bits=24).encode(whole)
    assert torch.equal(from_bytes(to_bytes(interleave(codes, strategy), 24), 24), interleave(codes, strategy))


def test_mu_law_codes_are_never_decoded_as_linear():
    """A model that knows its quantizer takes no other; one that was trained without a name for its codes asks."""
    mu_law, linear = Quantizer("mu_law", 5), Quantizer("linear", 5)
    model, told = make(), make()
    told.trained_on(mu_law)
    said = generate(told, 40, seed=3, progress=False)
    assert torch.equal(said, generate(model, 40, seed=3, quantizer=mu_law, progress=False))
    assert not torch.equal(said, generate(model, 40, seed=3, progress=False))   # untrained: as Quantizer(bits=5)
    for other in (linear, Quantizer("mu_law", 5, "clip_minmax")):
        with pytest.raises(ValueError, match="expects codes of .*mu_law"):
            generate(told, 4, quantizer=other, progress=False)
        with pytest.raises(ValueError, match="expects codes of .*mu_law"): Stepper(told, 1, Sampling(), other)
    model.loss(torch.zeros(1, 8, 1, dtype=torch.long), torch.zeros(1, 8, 1, dtype=torch.long)).backward()
    with pytest.raises(ValueError, match="nothing says on which codes.*trained_on"): generate(model, 4, progress=False)
