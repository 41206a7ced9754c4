"""Arrays of any stride, byte order and number type give the same result as a plain tensor, or a ValueError."""
import numpy as np
import pytest
import torch

from sashimi_wb.audio.writing import SoundWriter
from sashimi_wb.core.system import as_tensor, check_shape
from sashimi_wb.models.sashimi import SaShiMi, SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.pages.sound_picker import as_sound
from sashimi_wb.show.players import sound_bytes
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.ssm.s4 import S4
from sashimi_wb.synthesis.generation import generate
from sashimi_wb.tokens.byte_tokens import from_bytes, place_bytes, to_bytes
from sashimi_wb.tokens.layouts import deinterleave, interleave
from sashimi_wb.tokens.quantization import QUANTIZATIONS, SCALINGS, Quantizer, check_codes, check_wave
from sashimi_wb.tokens.quantization_views import snr_db
from sashimi_wb.training.baselines import all_baselines, flac_bits_per_sample, order0_entropy, rice_bits_per_sample

WAVE = np.random.default_rng(0).uniform(-1, 1, (2, 30, 2))
CODES = np.random.default_rng(1).integers(0, 128, (2, 30, 2))
LAYOUTS = {
    "as it is": lambda x: x, "other byte order": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "Fortran": np.asfortranarray,
    "negative strides": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "every second": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "field of a record": lambda x: np.rec.fromarrays([x, x], names="a,b").a,
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "list": lambda x: x.tolist(),
    "tensor": torch.tensor, "strided tensor": lambda x: torch.tensor(x).transpose(0, 1).contiguous().transpose(0, 1),
    "with gradients": lambda x: torch.tensor(x, requires_grad=x.dtype.kind == "f"),
    "matrix of memory": lambda x: np.asarray(memoryview(x.copy())),
}
NO_NUMBERS = [None, "song.wav", b"\1\2", {}, object(), [[1.0], [2.0, 3.0]], ["a"], [None], np.array([None]),
              np.array(["2026-01-01"], "M8[D]"), np.ma.masked_less(WAVE, 0),
              torch.eye(3).to_sparse(), torch.empty(3, device="meta")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_layout_of_an_array_changes_no_sample_and_no_code(layout, quantization, scaling):
    q, lay = Quantizer(quantization, 8, scaling), LAYOUTS[layout]
    want = q.encode(torch.tensor(WAVE))
    assert torch.equal(q.encode(lay(WAVE)), want) and torch.equal(q.scale(lay(WAVE)), q.scale(torch.tensor(WAVE)))
    assert torch.equal(q.decode(lay(want.numpy())), q.decode(want))


@pytest.mark.parametrize("dtype", ("i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">u4", "<i8", ">i8", "<u8", ">u8"))
def test_codes_of_every_integer_type(dtype):
    want = Quantizer(bits=8).decode(torch.tensor(CODES))
    assert torch.equal(Quantizer(bits=8).decode(CODES.astype(dtype)), want)
    assert torch.equal(check_codes(torch.tensor(CODES).to(as_tensor(CODES.astype(dtype), "codes").dtype), 8).long(),
                       torch.tensor(CODES))
    for own in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(Quantizer(bits=8).decode(torch.tensor(CODES).to(own)), want)
    with pytest.raises(ValueError, match="divide integer PCM"): check_wave(CODES.astype(dtype))


@pytest.mark.parametrize("dtype", ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g"))
def test_samples_of_every_float_type(dtype):
    wave = WAVE.astype(dtype)
    plain = check_wave(wave)
    assert plain.dtype == (torch.float32 if wave.dtype.itemsize <= 4 else torch.float64)
    assert np.array_equal(plain.numpy(), wave.astype(np.float64).astype(plain.numpy().dtype))
    assert torch.equal(Quantizer().encode(wave), Quantizer().encode(plain))
    with pytest.raises(ValueError, match="codes: expected integers"): check_codes(wave, 8)


@pytest.mark.parametrize("shape", ((0,), (1, 0, 1), (0, 5, 2)))
def test_no_samples_are_no_codes(shape):
    for quantization in QUANTIZATIONS:
        for scaling in SCALINGS:
            q = Quantizer(quantization, 8, scaling)
            if len(shape) > 1 or scaling == "full_scale":
                assert q.encode(np.zeros(shape)).shape == q.decode(np.zeros(shape, np.int16)).shape == shape


@pytest.mark.parametrize("values", [*NO_NUMBERS, WAVE.astype(complex), WAVE > 0], ids=lambda v: type(v).__name__)
def test_values_that_are_not_samples_are_refused_by_name(values):
    for call in (check_wave, Quantizer().encode, Quantizer("mu_law").encode, Quantizer(scaling="clip_minmax").encode,
                 Quantizer().scale):
        with pytest.raises(ValueError, match="samples.*: expected .*got"): call(values)
    with pytest.raises(ValueError, match="codes: expected .*got"): check_codes(values, 8)


def test_arguments_are_not_changed():
    wave = WAVE.copy()
    for q in (Quantizer(), Quantizer("mu_law"), Quantizer(scaling="clip_minmax")): q.encode(wave)
    assert np.array_equal(wave, WAVE) and np.shares_memory(as_tensor(wave, "samples").numpy(), wave)
    with pytest.raises(ValueError, match="at most 63 bits"): as_tensor(np.array([2**63], np.uint64), "codes")


def test_shapes_are_named():
    assert check_shape(torch.zeros(2, 3, 4), "b l 4", "feats").shape == (2, 3, 4)
    for shape in ("b l", "b l 5", "2 4 h", "b l h x"):
        with pytest.raises(ValueError, match=r"feats: expected \(.*\), got \(2, 3, 4\); transpose"):
            check_shape(torch.zeros(2, 3, 4), shape, "feats", "transpose")


# ---- layers, models, heads

@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    small = SaShiMiConfig(8, 1, (2, 2), kernel=KernelConfig(d_state=8))
    return {name: WaveModel(ModelConfig(8, encoder, head, backbone=small)).eval()
            for name, encoder, head in (("codes", "embedding", "categorical"), ("squeeze", "embedding_squeeze", "dml"),
                                        ("floats", "linear_projection", "dml"))}


def leaves(state): return [x for part in state for x in leaves(part)] if isinstance(state, tuple) else [state]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [k for k in LAYOUTS if k != "with gradients"])
@pytest.mark.parametrize("name", ("codes", "squeeze", "floats"))
def test_models_take_arrays_of_any_layout(models, name, layout):
    model, lay = models[name], LAYOUTS[layout]
    own = CODES[..., :1] if name != "floats" else WAVE[..., :1].astype(np.float32).astype(np.float64)
    y = CODES[..., 1:]
    with torch.no_grad():
        want, state = model(torch.tensor(own))
        got, again = model(lay(own))
        assert torch.equal(got, want)
        assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(again), strict=True))
        assert torch.equal(model.loss(lay(own), lay(y)), model.loss(torch.tensor(own), torch.tensor(y)))
        assert torch.equal(model.step(lay(own[:, 0]), state)[0], model.step(torch.tensor(own[:, 0]), state)[0])
        if layout != "list":    # lists have float64 values
            assert torch.equal(model.head.log_prob(lay(want.numpy()), lay(y)),
                               model.head.log_prob(want, torch.tensor(y)))
        prompt = lay(WAVE[:1, :, :1])
        assert torch.equal(generate(model, 5, prompt, seed=1, progress=False),
                           generate(model, 5, torch.tensor(WAVE[:1, :, :1]), seed=1, progress=False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_bytes_and_players_take_arrays(layout):
    lay = LAYOUTS[layout]
    tokens = interleave(torch.tensor(CODES), "blocking-4")
    assert torch.equal(interleave(lay(CODES), "blocking-4"), tokens)
    assert torch.equal(deinterleave(lay(tokens.numpy()), "blocking-4"), torch.tensor(CODES))
    assert torch.equal(to_bytes(lay(CODES[..., :1]), 16), to_bytes(torch.tensor(CODES[..., :1]), 16))
    assert torch.equal(from_bytes(lay(CODES[..., :1]), 16), from_bytes(torch.tensor(CODES[..., :1]), 16))
    assert torch.equal(place_bytes(lay(CODES[..., :1]), 2), place_bytes(torch.tensor(CODES[..., :1]), 2))
    assert sound_bytes(lay(WAVE[0]), 8000) == sound_bytes(WAVE[0], 8000)
    assert order0_entropy(lay(CODES), 256) == order0_entropy(CODES, 256)
    assert rice_bits_per_sample(lay(CODES[0]), 8) == rice_bits_per_sample(CODES[0], 8)
    assert flac_bits_per_sample(lay(CODES[0]), 8, 8000) == flac_bits_per_sample(CODES[0], 8, 8000)
    assert all_baselines([lay(CODES[0]), CODES[1]], 8, 8000) == all_baselines(list(CODES), 8, 8000)
    assert np.array_equal(as_sound(lay(WAVE[0]), 8000).wave, WAVE[0]) and snr_db(lay(WAVE), WAVE) == float("inf")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_files_do_not_depend_on_the_layout(tmp_path, layout):
    for name, wave in (("a.wav", WAVE[0]), ("b.wav", LAYOUTS[layout](WAVE[0]))):
        with SoundWriter(tmp_path/name, 8000, 2) as f: f.write(wave)
    assert (tmp_path/"a.wav").read_bytes() == (tmp_path/"b.wav").read_bytes()


def test_half_precision_and_numbers_of_a_model_in_double(models):
    assert sound_bytes(torch.tensor(WAVE[0]).bfloat16(), 8000)
    assert as_sound(torch.tensor(WAVE[0]).half(), 8000).wave.dtype == np.float32
    backbone = SaShiMi(8, 1, (2,), kernel=KernelConfig(d_state=8)).eval()
    x = np.random.default_rng(0).normal(size=(2, 6, 8))
    with torch.no_grad():
        want = backbone(torch.tensor(x).float())[0]
        for values in (x, x.astype(">f4"), x.tolist(), torch.tensor(x), x.astype(np.longdouble)):
            assert torch.equal(backbone(values)[0], want)
        assert backbone.double()(x.astype(np.float32))[0].dtype == torch.float64


def test_no_state_is_silence(models):
    """A step without a state is the first step, for the layer, the block, the backbone and the model."""
    s4, backbone = S4(8, KernelConfig(d_state=8)).eval(), SaShiMi(8, 1, (2, 2), kernel=KernelConfig(d_state=8)).eval()
    x = torch.randn(3, 8)
    with torch.no_grad():
        for layer in (s4, backbone):
            y, state = layer.step(x, None)
            want, after = layer.step(x, layer.initial_state(3))
            assert torch.equal(y, want)
            assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(after), strict=True))
        y, _ = models["codes"].step(torch.tensor([[3], [4]]), None)
        assert torch.equal(y, models["codes"].step(torch.tensor([[3], [4]]), models["codes"].initial_state(2))[0])


@pytest.mark.parametrize("unet", (False, True))
def test_a_state_of_another_batch_or_model_is_refused(unet):
    s4, backbone = S4(8, KernelConfig(d_state=8)), SaShiMi(8, 1, (2, 2), kernel=KernelConfig(d_state=8), unet=unet)
    other = SaShiMi(16, 1, (2, 2), kernel=KernelConfig(d_state=8), unet=unet)
    deep = SaShiMi(8, 2, (2,), kernel=KernelConfig(d_state=8), unet=unet)
    x = torch.randn(3, 4, 8)
    for wrong in (s4.initial_state(1), s4.initial_state(2), S4(8, KernelConfig(d_state=16)).initial_state(3),
                  torch.zeros(3, 8, 4), "state", s4.initial_state(3)[0]):
        for call, own in ((s4, x), (s4.step, x[:, 0])):
            with pytest.raises(ValueError, match="state of S4: expected"): call(own, wrong)
    after = backbone(x[:2, :3])[1]
    for wrong in (backbone.initial_state(1), backbone.initial_state(4), after, other.initial_state(3),
                  deep.initial_state(3), (), (None,), after[:-1], 3, "state"):
        for call, own in ((backbone, x), (backbone.step, x[:, 0])):
            with pytest.raises(ValueError, match="state.*: expected.*got.*take it from initial_state"): call(own, wrong)


WRONG = [None, "x", {}, [[1.0], [2.0, 3.0]], np.zeros(()), np.zeros((2, 3, 8), complex), torch.eye(8).to_sparse(),
         torch.empty(2, 3, 1, device="meta")]


@pytest.mark.parametrize("values", WRONG, ids=lambda v: str(getattr(v, "shape", v)))
def test_values_that_no_function_accepts_are_refused(models, values):
    backbone, s4 = SaShiMi(8, 1, (2,), kernel=KernelConfig(d_state=8)), S4(8, KernelConfig(d_state=8))
    calls = [backbone, s4, lambda v: backbone.step(v, None), lambda v: s4.step(v, None), models["codes"].head.log_probs,
             models["floats"].head.sample,
             lambda v: models["codes"].head.log_prob(torch.zeros(2, 3, 256), v), lambda v: to_bytes(v, 16),
             lambda v: from_bytes(v, 16), lambda v: sound_bytes(v, 8000),
             lambda v: order0_entropy(v, 256), lambda v: flac_bits_per_sample(v, 8, 8000), lambda v: as_sound(v, 8000)]
    for model in models.values():
        calls += [model, model.encoder, lambda v, m=model: m.step(v, None),
                  lambda v, m=model: m.loss(v, CODES[..., :1]), lambda v, m=model: m.loss(CODES[..., :1], v)]
    for call in calls:
        with pytest.raises(ValueError, match="expected .*got"): call(values)
    if values is not None:
        with pytest.raises(ValueError, match="prompt"): generate(models["codes"], 3, values, progress=False)


@pytest.mark.parametrize("shape", ((2, 0, 8), (2, 3), (2, 3, 7), (3,)))
def test_floats_of_another_shape_are_refused(models, shape):
    backbone, s4 = SaShiMi(8, 1, (2,), kernel=KernelConfig(d_state=8)), S4(8, KernelConfig(d_state=8))
    calls = [backbone, lambda v: backbone.step(v, None), lambda v: s4.step(v, None), models["codes"].head.log_probs,
             models["floats"].head.sample, models["floats"],
             lambda v: models["floats"].step(v, None), lambda v: generate(models["codes"], 3, v, progress=False)]
    for call in calls:
        with pytest.raises(ValueError, match="expected .*got"): call(np.zeros(shape))
