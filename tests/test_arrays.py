"""Arrays as callers hold them: any stride, byte order and type of number gives the result of a plain tensor, or a ValueError."""
import numpy as np
import pytest
import torch

from sashimi_wb.core import as_tensor, check_shape
from sashimi_wb.quantization import QUANTIZATIONS, SCALINGS, Quantizer, check_codes, check_wave

WAVE = np.random.default_rng(0).uniform(-1, 1, (2, 30, 2))
CODES = np.random.default_rng(1).integers(0, 128, (2, 30, 2))
LAYOUTS = {
    "as it is": lambda x: x, "other byte order": lambda x: x.astype(x.dtype.newbyteorder(">")), "Fortran": np.asfortranarray,
    "negative strides": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1], "every second": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "read-only": lambda x: np.broadcast_to(x, x.shape), "field of a record": lambda x: np.rec.fromarrays([x, x], names="a,b").a,
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape), "list": lambda x: x.tolist(),
    "tensor": torch.tensor, "strided tensor": lambda x: torch.tensor(x).transpose(0, 1).contiguous().transpose(0, 1),
    "with gradients": lambda x: torch.tensor(x, requires_grad=x.dtype.kind == "f"), "matrix of memory": lambda x: np.asarray(memoryview(x.copy())),
}
NO_NUMBERS = [None, "song.wav", b"\1\2", {}, object(), [[1.0], [2.0, 3.0]], ["a"], [None], np.array([None]), np.array(["2026-01-01"], "M8[D]"),
              np.ma.masked_less(WAVE, 0), torch.eye(3).to_sparse(), torch.empty(3, device="meta")]


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
    assert torch.equal(check_codes(torch.tensor(CODES).to(as_tensor(CODES.astype(dtype), "codes").dtype), 8).long(), torch.tensor(CODES))
    for own in (torch.uint8, torch.uint16, torch.uint32, torch.uint64): assert torch.equal(Quantizer(bits=8).decode(torch.tensor(CODES).to(own)), want)
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
def test_what_holds_no_samples_is_refused_by_name(values):
    for call in (check_wave, Quantizer().encode, Quantizer("mu_law").encode, Quantizer(scaling="clip_minmax").encode, Quantizer().scale):
        with pytest.raises(ValueError, match="samples.*: expected .*got"): call(values)
    with pytest.raises(ValueError, match="codes: expected .*got"): check_codes(values, 8)


def test_nothing_is_written_into_what_was_given():
    wave = WAVE.copy()
    for q in (Quantizer(), Quantizer("mu_law"), Quantizer(scaling="clip_minmax")): q.encode(wave)
    assert np.array_equal(wave, WAVE) and np.shares_memory(as_tensor(wave, "samples").numpy(), wave)
    with pytest.raises(ValueError, match="at most 63 bits"): as_tensor(np.array([2**63], np.uint64), "codes")


def test_shapes_are_named():
    assert check_shape(torch.zeros(2, 3, 4), "b l 4", "feats").shape == (2, 3, 4)
    for shape in ("b l", "b l 5", "2 4 h", "b l h x"):
        with pytest.raises(ValueError, match=r"feats: expected the shape \(.*\), got \(2, 3, 4\); transpose"): check_shape(torch.zeros(2, 3, 4), shape, "feats", "transpose")
