"""Weights and outputs of the public implementations, in float64: hippo, kernels, blocks, backbones, whole models."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sashimi_wb.convolution import fft_conv
from sashimi_wb.hippo import hippo_legs, nplr, s4d
from sashimi_wb.interop import LAYER_FIXED as FIXED
from sashimi_wb.interop import LAYER_FREE as FREE
from sashimi_wb.interop import LAYER_USED as USED
from sashimi_wb.interop import (
    block_from_s4,
    c_from_tilde,
    convert_backbone,
    convert_kernel,
    from_s4,
    model_from_s4,
    read_words,
    real_step,
)
from sashimi_wb.kernels import (
    DISCRETIZATIONS,
    Discrete,
    discretize_dplr,
    kernel_by_doubling,
    state_after,
    state_response,
)
from sashimi_wb.ssm import KernelConfig, SSMKernel

torch.set_num_threads(1)
REFERENCE = Path(__file__).parent/"reference"
EXACT = 1e-9        # of the largest value, in float64
STORED = 1e-6       # where float32 stands between us and the reference: C~ as a file keeps it


def names(folder): return sorted(p.stem for p in (REFERENCE/folder).glob("*.npz"))


def read(name):
    z = np.load(REFERENCE/f"{name}.npz", allow_pickle=False)
    return json.loads(str(z["config"])) if "config" in z.files else {}, z


def tensor(x):
    x = torch.as_tensor(np.asarray(x))
    return x.to(torch.complex128) if x.is_complex() else x.double() if x.is_floating_point() else x


def weights(z, prefix="init/"):
    return {k.removeprefix(prefix): tensor(z[k]) for k in z.files if k.startswith(prefix)}


def close(ours, theirs, tolerance=EXACT):
    theirs = tensor(theirs)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance*theirs.abs().max().item())


@torch.no_grad()
def step_through(module, x):
    state, out = module.initial_state(len(x)), []
    for k in range(x.shape[1]):
        y, state = module.step(x[:, k], state)
        out.append(y)
    return torch.stack(out, 1)


# hippo

@pytest.mark.parametrize("name", names("hippo"))
def test_hippo(name):
    config, z = read(f"hippo/{name}")
    n = config["N"]
    A, B = hippo_legs(n)
    close(tensor(A), z["A"])
    close(tensor(B), z["B"][:, 0])
    Lambda, p, b, V = nplr(n)
    close(tensor(Lambda), z["nplr_w_f64"])
    close(tensor(p*b.conj()), z["phase_invariant_P_conjB_f64"].ravel())           # eigenvectors are free up to a phase
    close(tensor(np.abs(p)**2), z["phase_invariant_absP2_f64"].ravel())
    close(tensor(np.abs(b)**2), z["phase_invariant_absB2_f64"].ravel())
    close(tensor(V @ V.conj().T), z["nplr_V_f64"] @ z["nplr_V_f64"].conj().T)
    def half(A): return A.real + 1j*np.abs(A.imag)                                 # which one of a pair is stored does not matter
    for init in ("lin", "inv"): close(tensor(half(s4d(n, init))), half(z[f"s4d_{init}_A_f64"]))
    close(tensor(half(s4d(n, "legs"))), half(z["s4d_legs_A_f32"]), STORED)


# kernels: from the transformed parameters, whatever made them (rank 2, a step for every state, other inits)

def system(z, config, rate=1.0):
    A, B, dt = tensor(z["A_f64"]), tensor(z["B_f64"])[0], tensor(z["dt_f64"])*rate
    if "P_f64" in z.files: return discretize_dplr(A, B, tensor(z["P_f64"]), dt)
    return Discrete(*DISCRETIZATIONS[config.get("disc", "zoh")](A, B, dt))


def impulse(ssm, C, length): return kernel_by_doubling(ssm, C, length, torch.float64).K


@pytest.mark.parametrize("name", names("kernels"))
def test_kernel_from_parameters(name):
    config, z = read(f"kernels/{name}")
    ssm, C = system(z, config), tensor(z["C_f64"])
    close(impulse(ssm, C, z["K_f64"].shape[-1]), z["K_f64"])
    for key in [k for k in z.files if k.startswith("K_len")]: close(impulse(ssm, C, z[key].shape[-1]), z[key])
    u, D = tensor(z["u"]), tensor(z["init/D"])
    window = kernel_by_doubling(ssm, C, u.shape[-1], torch.float64)
    y = fft_conv(u, window.K) + D[..., None]*u[:, None]
    close(y.flatten(1, 2), z["y_conv_f64"])
    close(y.flatten(1, 2), z["y_step_dense_f64"])
    final, n = state_after(window, u), C.shape[-1]
    close(final, z["final_state_dense_f64"][..., :n])                              # DPLR keeps the conjugates behind
    if "state0" in z.files:
        close((y + state_response(window, tensor(z["state0"]))).flatten(1, 2), z["y_from_state_f64"])
        close(state_after(window, u, tensor(z["state0"])), z["next_state_f64"])


@pytest.mark.parametrize("name", [n for n in names("kernels") if "K_rate2.0_f64" in read(f"kernels/{n}")[1].files])
def test_kernel_at_other_rates(name):
    config, z = read(f"kernels/{name}")
    for rate in (2.0, 0.5):
        want, ssm, C = z[f"K_rate{rate}_f64"], system(z, config, rate), tensor(z["C_f64"])
        if "C_tilde_f64" in z.files:       # the public code keeps the C~ of rate 1 and cuts at another length
            C = c_from_tilde(ssm, tensor(z["C_tilde_f64"]), round(int(z["l_kernel"])/rate))
        close(impulse(ssm, C, want.shape[-1]), want)


@pytest.mark.parametrize("name", [n for n in names("kernels") if n.startswith("dplr")])
def test_c_from_tilde(name):
    config, z = read(f"kernels/{name}")
    ssm, length = system(z, config), int(z["l_kernel"])
    if length > 2: close(c_from_tilde(ssm, tensor(z["C_tilde_f64"]), length), z["C_f64"])
    close(impulse(ssm, c_from_tilde(ssm, tensor(z["C_tilde_f64"]), length), z["K_f64"].shape[-1]), z["K_f64"])
    assert c_from_tilde(ssm, tensor(z["C_f64"]), 0) is not None


# kernels: from the stored parameters, through the module

UNSUPPORTED = {"dplr_H2_N16_L64_seed8_legt_rank2": "rank=2", "s4d_zoh_legs_H4_N16_L64_seed24_ch2_relu": "dt_tie"}


def kernel_module(z, config):
    words = USED | {"dt_transform": "exp", "n_ssm": None} | {k: config[k] for k in USED if k in config}   # the class's defaults
    ours = convert_kernel({k.removeprefix("kernel."): v for k, v in weights(z).items() if k.startswith("kernel.")}, words)
    form = "diag" if config["mode"] == "diag" else "dplr"
    groups = len(ours["A_real"])
    kernel = SSMKernel(config["d_model"], KernelConfig(form, config["d_state"], "legs", words["disc"] if form == "diag" else "bilinear",
                                                       None if groups == config["d_model"] else groups), words["channels"]).double()
    kernel.load_state_dict(ours)
    return kernel


@pytest.mark.parametrize("name", names("kernels"))
@torch.no_grad()
def test_kernel_module(name):
    config, z = read(f"kernels/{name}")
    if name in UNSUPPORTED:
        with pytest.raises(NotImplementedError, match=UNSUPPORTED[name]): kernel_module(z, config)
        return
    kernel, length = kernel_module(z, config), z["K_f64"].shape[-1]
    close(kernel(length), z["K_f64"])
    close(kernel.window(length).K, z["K_f64"])


@pytest.mark.parametrize("name", [n for n in names("kernels") if n not in UNSUPPORTED])
@torch.no_grad()
def test_float32_kernel_against_float64_reference(name):
    config, z = read(f"kernels/{name}")
    close(kernel_module(z, config).float()(z["K_f64"].shape[-1]).double(), z["K_f64"], 1e-5)


def test_real_transforms():
    z = read("kernels/s4d_zoh_legs_H4_N16_L64_seed24_ch2_relu")[1]
    theirs = {k.removeprefix("kernel."): v for k, v in weights(z).items() if k.startswith("kernel.")} | {"inv_dt": torch.zeros(4, 1)}
    ours = convert_kernel(theirs, USED | {"real_transform": "relu"})
    close(-ours["A_real"].exp().repeat(2, 1), z["A_f64"].real)


# blocks

@pytest.mark.parametrize("name", names("s4block"))
def test_block(name):
    config, z = read(f"s4block/{name}")
    block, x = block_from_s4(weights(z), **config), tensor(z["x"])
    if "lengths" in z.files: x = x*(torch.arange(x.shape[1]) < tensor(z["lengths"])[:, None])[..., None]
    with torch.no_grad():
        close(block(x)[0], z["y_f64"])
        close(block(x, need_state=False)[0], z["y_f64"])
        for key in [k for k in z.files if k.startswith("x_len")]: close(block(tensor(z[key]))[0], z[key.replace("x", "y") + "_f64"])
    if "y_step_dense_f64" in z.files: close(step_through(block, x), z["y_step_dense_f64"])
    if "after/layer.kernel.C_f64" in z.files:                                       # the state dict after the first window
        after = weights(z) | {"layer.kernel.C": tensor(z["after/layer.kernel.C_f64"]), "layer.kernel.l_kernel": tensor(z["after/layer.kernel.l_kernel"])}
        with torch.no_grad(): close(block_from_s4(after, **config)(x)[0], z["y_f64"])


@torch.no_grad()
def test_block_at_another_rate():
    config, z = read("s4block/rate_d4_L64_seed9")
    after = weights(z) | {"layer.kernel.C": tensor(z["after/layer.kernel.C_f64"])}
    dt = 2*F.softplus(after["layer.kernel.inv_dt"])
    after["layer.kernel.inv_dt"] = dt + torch.log(-torch.expm1(-dt))
    after["layer.kernel.l_kernel"] = torch.tensor(round(int(z["after/layer.kernel.l_kernel"])/2))
    close(block_from_s4(after, **config)(tensor(z["x"])[:, :32])[0], z["y_rate2.0_f64"])


@pytest.mark.parametrize("name", [n for n in names("s4block") if "grad/x_f64" in read(f"s4block/{n}")[1].files])
@pytest.mark.parametrize("need_state", [False, True])
def test_block_gradients_in_the_words_of_the_reference(name, need_state):
    config, z = read(f"s4block/{name}")
    theirs = weights(z)
    if "after/layer.kernel.C_f64" in z.files:                                       # taken with C~ in place of C
        theirs |= {"layer.kernel.C": tensor(z["after/layer.kernel.C_f64"]), "layer.kernel.l_kernel": tensor(z["after/layer.kernel.l_kernel"])}
    block = block_from_s4(theirs, **config)
    for v in theirs.values(): v.requires_grad_(v.is_floating_point())
    words = read_words(config, USED, FIXED, FREE, "layer")
    ours = {f"s4.kernel.{k}": v for k, v in convert_kernel({k.removeprefix("layer.kernel."): v for k, v in theirs.items() if ".kernel." in k}, words).items()}
    ours |= {"s4.D": theirs["layer.D"], "mix.weight": theirs["output_linear.0.weight"], "mix.bias": theirs["output_linear.0.bias"]}
    x = tensor(z["x"]).requires_grad_()
    y, _ = torch.func.functional_call(block, ours, (x, None, need_state))
    (y*tensor(z["grad_out"])).sum().backward()
    close(x.grad, z["grad/x_f64"])
    for k, v in theirs.items():
        if v.requires_grad: close(v.grad, z[f"grad/{k}_f64"])


# backbones

@pytest.mark.parametrize("name", names("sashimi"))
def test_backbone(name):
    config, z = read(f"sashimi/{name}")
    model, x = from_s4(weights(z), **config), tensor(z["x"])
    with torch.no_grad():
        close(model(x)[0], z["y_f64"])
        close(model(x, need_state=False)[0], z["y_f64"])
        first, state = model(x[:, :7])
        close(torch.cat([first, model(x[:, 7:], state)[0]], 1), z["y_f64"])
        close(from_s4(weights(z) | weights(z, "after/"), **config)(x)[0], z["y_f64"], STORED)
    close(step_through(model, x), z["y_step_f64" if "y_step_f64" in z.files else "y_step_dense_f64"])


def test_backbone_in_float32():
    config, z = read("sashimi/base_d8_n1_pool44_L64_seed0")
    model = from_s4({k: v.float() if v.is_floating_point() else v for k, v in weights(z).items()}, **config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad(): close(model(torch.as_tensor(z["x"]))[0].double(), z["y_f64"], 1e-5)


def c_tilde(theirs, stem, length, config):
    "C~ = C (I - A^l), from the parameters of one kernel."
    words = USED | ({"dt_transform": "exp"} if "layer" not in config else {})
    v = convert_kernel({k.removeprefix(stem): t for k, t in theirs.items() if k.startswith(stem) and "l_kernel" not in k}, words)
    h = len(v["inv_dt"])
    A, B, P = (t.repeat(*[1]*(t.ndim - 2), h//t.shape[-2], 1) for t in (torch.complex(-v["A_real"].exp(), -v["A_imag"]),
               torch.view_as_complex(v["B"]), torch.view_as_complex(v["P"])))
    step = real_step(discretize_dplr(A, B[0], P, F.softplus(v["inv_dt"])))
    C = torch.view_as_complex(v["C"])
    row = torch.einsum("chm,hmn->chn", torch.cat([C.real, -C.imag], -1), torch.eye(step.shape[-1]).double() - torch.linalg.matrix_power(step, length))
    real, imag = row.chunk(2, -1)
    return torch.complex(real, -imag)


@pytest.mark.parametrize("name", [n for n in names("sashimi") if any(k.startswith("grad/") for k in read(f"sashimi/{n}")[1].files)])
def test_backbone_gradients_in_the_words_of_the_reference(name):
    config, z = read(f"sashimi/{name}")
    theirs = weights(z) | {k: v for k, v in weights(z, "after/").items() if k.endswith("l_kernel")}
    for key in [k for k in theirs if k.endswith("kernel.C")]:                       # C~ in double, which the files do not keep
        stem, length = key[:-1], int(z["after/" + key[:-1] + "l_kernel"])
        theirs[key] = torch.view_as_real(c_tilde(theirs, stem, length, config))
    model = from_s4(theirs, **config)
    for v in theirs.values(): v.requires_grad_(v.is_floating_point())
    _, ours, _ = convert_backbone(theirs, **config)
    y, _ = torch.func.functional_call(model, ours, (tensor(z["x"]), None, False))
    (y*tensor(z["grad_out"])).sum().backward()
    missing = [k for k, v in theirs.items() if v.requires_grad and f"grad/{k}" not in z.files and f"grad/{k}_f64" not in z.files]
    assert set(missing) <= {"x"}
    for k, v in theirs.items():
        if v.requires_grad: close(v.grad, z[f"grad/{k}_f64" if f"grad/{k}_f64" in z.files else f"grad/{k}"])


# whole models

@pytest.mark.parametrize("name", names("pipeline"))
@torch.no_grad()
def test_whole_model(name):
    config, z = read(f"pipeline/{name}")
    model = model_from_s4(weights(z), config["bits"], **config["model"])
    x, y = (torch.as_tensor(z[k])[..., None] for k in "xy")
    logits, _ = model(x)
    close(logits, z["logits_f64"])
    if "step_logits_f64" in z.files: close(step_through(model, x), z["step_logits_f64"])
    close(model.loss(x, y, y >= 0), z["loss_f64"])                                  # padding is -100


# errors

def state():
    config, z = read("sashimi/base_d8_n1_pool4_L20_seed3_B1")
    return weights(z), config


def test_every_key_is_used_or_named():
    theirs, config = state()
    with pytest.raises(ValueError, match="d_layers.0.spare has no place"): from_s4(theirs | {"d_layers.0.spare": torch.ones(1)}, **config)
    for key in theirs:
        if key.endswith("l_kernel"): continue
        with pytest.raises(ValueError, match="nothing for"): from_s4({k: v for k, v in theirs.items() if k != key}, **config)
    with pytest.raises(ValueError, match="c_layers.0.layer.layer.D: expected"): from_s4(theirs | {"c_layers.0.layer.layer.D": torch.ones(1, 3)}, **config)


@pytest.mark.parametrize("words,error,match", [
    ({"d_modle": 8}, ValueError, "unknown word 'd_modle'"),
    ({"layer": {"d_stat": 8}}, ValueError, "unknown word 'd_stat'"),
    ({"unet": True}, NotImplementedError, "unet=True"), ({"interp": 2}, NotImplementedError, "interp=2"),
    ({"act_pool": "relu"}, NotImplementedError, "act_pool='relu'"), ({"dropres": 0.1}, NotImplementedError, "dropres=0.1"),
    ({"layer": {"bidirectional": True}}, NotImplementedError, "bidirectional=True"),
    ({"layer": {"rank": 2}}, NotImplementedError, "rank=2"), ({"layer": {"channels": 2, "d_state": 8}}, NotImplementedError, "channels=2"),
    ({"layer": {"mode": "ssm"}}, ValueError, "unknown mode 'ssm'"), ({"layer": {"gate": 2}}, NotImplementedError, "gate=2"),
    ({"layer": {"dt_transform": "cube", "d_state": 8}}, ValueError, "unknown dt_transform 'cube'"),
    ({"layer": {"l_max": 8}}, NotImplementedError, "l_max=8 cuts the kernel"), ({"d_model": 12}, ValueError, "expected .* got"),
    ({"n_layers": 3}, ValueError, "nothing for"), ({"n_layers": 1, "ff": 0}, ValueError, "has no place"),
])
def test_words_that_cannot_be(words, error, match):
    theirs, config = state()
    if "l_max" in words.get("layer", {}):
        with pytest.raises(error, match=match): read_words({"L": 20} | words["layer"], USED, FIXED, FREE, "layer")
        return
    with pytest.raises(error, match=match): from_s4(theirs, **config | words)


def test_a_block_is_no_backbone():
    theirs, _ = state()
    with pytest.raises(ValueError, match="expected the state dict of an S4Block"): block_from_s4({"norm.weight": theirs["norm.weight"]})
