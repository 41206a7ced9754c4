"""Weights and outputs of the public implementations, in float64: hippo, kernels, blocks, backbones, whole models."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sashimi_wb.models.interop import (
    LAYER_FIXED,
    block_from_s4,
    c_from_tilde,
    convert_backbone,
    convert_kernel,
    from_s4,
    kernel_config,
    layer_words,
    model_from_s4,
    real_step,
    rename,
    sampled_system,
)
from sashimi_wb.ssm.convolution import fft_conv
from sashimi_wb.ssm.hippo import MEASURES, hippo_legs, nplr, s4d
from sashimi_wb.ssm.kernels import (
    DISCRETIZATIONS,
    Discrete,
    discretize_dplr,
    kernel_by_doubling,
    state_after,
    state_response,
)
from sashimi_wb.ssm.s4 import S4
from sashimi_wb.training.metrics import accuracy_at

torch.set_num_threads(1)
REFERENCE = Path(__file__).parents[1]/"reference"
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
    return torch.stack(out, 1), state


# hippo

@pytest.mark.parametrize("name", names("hippo"))
def test_hippo(name):
    config, z = read(f"hippo/{name}")
    n = config["N"]
    A, B = hippo_legs(n)
    close(tensor(A), z["A"])
    close(tensor(B), z["B"][:, 0])
    Lambda, (p,), b, V = nplr(n)
    close(tensor(Lambda), z["nplr_w_f64"])
    close(tensor(p*b.conj()), z["phase_invariant_P_conjB_f64"].ravel())           # eigenvectors are free up to a phase
    close(tensor(np.abs(p)**2), z["phase_invariant_absP2_f64"].ravel())
    close(tensor(np.abs(b)**2), z["phase_invariant_absB2_f64"].ravel())
    close(tensor(V @ V.conj().T), z["nplr_V_f64"] @ z["nplr_V_f64"].conj().T)
    def half(A):
        # which one of a pair is stored does not matter
        return A.real + 1j*np.abs(A.imag)
    for init in ("lin", "inv", "inv2", "quad", "real"):
        close(tensor(half(s4d(n, init))), half(z[f"s4d_{init}_A_f64"]))
        assert (z[f"s4d_{init}_B_f32"] == 1).all()                                 # ours, too
    close(tensor(half(s4d(n, "legs"))), half(z["s4d_legs_A_f32"]), STORED)


@pytest.mark.parametrize("measure,rank,real", [("legs", 1, -0.5), ("legt", 2, 0.0), ("fout", 1, 0.0)])
@pytest.mark.parametrize("n", [2, 4, 16, 64, 256])
def test_normal_plus_low_rank(measure, rank, real, n):
    A, B = MEASURES[measure][0](n)
    Lambda, P, b, V = nplr(n, measure)
    Vc, Pc = np.hstack([V, V.conj()]), np.hstack([P, P.conj()])
    assert P.shape == (rank, n//2) and np.abs(Lambda.real - real).max() < 1e-9
    close(tensor(Vc @ Vc.conj().T), np.eye(n) + 0j)
    close(tensor(Vc @ (np.diag(np.r_[Lambda, Lambda.conj()]) - Pc.T @ Pc.conj()) @ Vc.conj().T), A + 0j)
    close(tensor(2*(V @ b).real), B)


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


@pytest.mark.parametrize("name", [n for n in names("kernels") if n.startswith("dplr")])
def test_c_from_tilde(name):
    config, z = read(f"kernels/{name}")
    ssm, length = system(z, config), int(z["l_kernel"])
    if length > 2: close(c_from_tilde(ssm, tensor(z["C_tilde_f64"]), length), z["C_f64"])
    close(impulse(ssm, c_from_tilde(ssm, tensor(z["C_tilde_f64"]), length), z["K_f64"].shape[-1]), z["K_f64"])
    assert c_from_tilde(ssm, tensor(z["C_f64"]), 0) is not None


# kernels: from the stored parameters, through the module

def layer_and_reference(name):
    config, z = read(f"kernels/{name}")
    words = layer_words({k: v for k, v in config.items() if k not in ("extra_L", "rates", "steps", "d_model")},
                        dt_transform="exp", n_ssm=None)
    kernel = {k.removeprefix("kernel."): v for k, v in weights(z).items() if k.startswith("kernel.")}
    layer = S4(config["d_model"], kernel_config(words), words["channels"]).double()
    layer.load_state_dict({f"kernel.{k}": v for k, v in convert_kernel(kernel, words).items()} | {"D": weights(z)["D"]})
    return layer, z


@pytest.mark.parametrize("name", names("kernels"))
@torch.no_grad()
def test_layer(name):
    layer, z = layer_and_reference(name)
    length = z["K_f64"].shape[-1]
    close(layer.kernel(length), z["K_f64"])
    close(layer.kernel.window(length).K, z["K_f64"])
    for key in [k for k in z.files if k.startswith("K_len")]: close(layer.kernel(z[key].shape[-1]), z[key])
    u, n = tensor(z["u"]).mT, layer.kernel.config.d_state//2
    for need_state in (False, True): close(layer(u, need_state=need_state)[0].mT, z["y_conv_f64"])
    close(layer(u)[1], z["final_state_dense_f64"][..., :n])
    y, state = step_through(layer, u)
    close(y.mT, z["y_step_dense_f64"])
    close(state, z["final_state_dense_f64"][..., :n])
    if "state0" in z.files:
        y, state = layer(u, tensor(z["state0"]))
        close(y.mT, z["y_from_state_f64"])
        close(state, z["next_state_f64"])


@pytest.mark.parametrize("name", [n for n in names("kernels") if "K_rate2.0_f64" in read(f"kernels/{n}")[1].files])
@pytest.mark.parametrize("rate", [2.0, 0.5])
@torch.no_grad()
def test_kernel_at_another_rate(name, rate):
    layer, z = layer_and_reference(name)
    kernel, want = layer.kernel, z[f"K_rate{rate}_f64"]
    if "C_tilde_f64" in z.files:       # the public code keeps the C~ of rate 1 and cuts at another length: another C
        close(kernel(want.shape[-1], rate), want, 0.03)
        C = c_from_tilde(kernel.discrete(rate)[0], tensor(z["C_tilde_f64"]), round(int(z["l_kernel"])/rate))
        kernel.C.copy_(torch.view_as_real(C))
    close(kernel(want.shape[-1], rate), want)
    close(kernel.window(want.shape[-1], rate).K, want)


@pytest.mark.parametrize("name", names("kernels"))
@torch.no_grad()
def test_float32_kernel_against_float64_reference(name):
    layer, z = layer_and_reference(name)
    close(layer.kernel.float()(z["K_f64"].shape[-1]).double(), z["K_f64"], 1e-5)


def test_transforms():
    theirs = {"A_real": torch.rand(2, 3) + 0.1, "A_imag": torch.rand(2, 3), "C": torch.ones(1, 2, 3, 2).double(),
              "inv_dt": torch.zeros(2, 1)}
    for name, f in (("relu", lambda a: a + 1e-4), ("softplus", F.softplus), ("sigmoid", torch.sigmoid),
                    ("none", lambda a: a)):
        ours = convert_kernel(theirs, layer_words({"real_transform": name, "imag_transform": name}))
        close(ours["A_real"].exp(), f(theirs["A_real"].double()))
        close(ours["A_imag"], f(theirs["A_imag"].double()))
    with pytest.raises(ValueError, match="states that decay"):
        convert_kernel(theirs | {"A_real": -torch.ones(2, 3)}, layer_words({"real_transform": "none"}))


# blocks

@pytest.mark.parametrize("name", names("s4block"))
@torch.no_grad()
def test_block(name):
    config, z = read(f"s4block/{name}")
    block, x = block_from_s4(weights(z), **config), tensor(z["x"])
    lengths = tensor(z["lengths"]) if "lengths" in z.files else None
    close(block(x, lengths=lengths)[0], z["y_f64"])
    close(block(x, need_state=False, lengths=lengths)[0], z["y_f64"])
    for key in [k for k in z.files if k.startswith("x_len")]:
        close(block(tensor(z[key]))[0], z[key.replace("x", "y") + "_f64"])
    if config["l_max"]:
        with pytest.raises(ValueError, match="use l_max=None"): block.initial_state(1)
    if "y_step_dense_f64" in z.files:
        close(step_through(block_from_s4(weights(z), **config | {"l_max": None}), x)[0], z["y_step_dense_f64"])
    if "after/layer.kernel.C_f64" in z.files:
        close(block_from_s4(after_first_window(z), **config)(x, lengths=lengths)[0], z["y_f64"])


def after_first_window(z):
    "The state dict that the first window leaves behind: C~ in place of C."
    return weights(z) | {f"layer.kernel.{k}": tensor(z[f"after/layer.kernel.{k}"]) for k in ("l_kernel",)} | {
        "layer.kernel.C": tensor(z["after/layer.kernel.C_f64"])}


@torch.no_grad()
def test_block_at_another_rate():
    config, z = read("s4block/rate_d4_L64_seed9")
    block, x = block_from_s4(weights(z), **config), tensor(z["x"])[:, :32]
    # theirs keeps the C~ of rate 1: another C
    kernel = block.s4.kernel
    C = c_from_tilde(kernel.discrete(2.0)[0], torch.view_as_complex(tensor(z["after/layer.kernel.C_f64"])),
                     int(z["after/layer.kernel.l_kernel"])//2)
    kernel.C.copy_(torch.view_as_real(C))
    close(block(x, rate=2.0)[0], z["y_rate2.0_f64"])


@pytest.mark.parametrize("name", [n for n in names("s4block") if "grad/x_f64" in read(f"s4block/{n}")[1].files])
@pytest.mark.parametrize("need_state", [False, True])
def test_block_gradients_in_the_words_of_the_reference(name, need_state):
    config, z = read(f"s4block/{name}")
    # taken with C~ in place of C
    theirs = after_first_window(z) if "after/layer.kernel.C_f64" in z.files else weights(z)
    block = block_from_s4(theirs, **config)
    for v in theirs.values(): v.requires_grad_(v.is_floating_point())
    ours = {f"s4.kernel.{k}": v
            for k, v in convert_kernel({k.removeprefix("layer.kernel."): v for k, v in theirs.items()
                                        if ".kernel." in k}, layer_words(config)).items()}
    ours |= {"s4.D": theirs["layer.D"], "mix.weight": theirs["output_linear.0.weight"],
             "mix.bias": theirs["output_linear.0.bias"]}
    x = tensor(z["x"]).requires_grad_()
    y, _ = torch.func.functional_call(block, ours, (x, None, need_state))
    (y*tensor(z["grad_out"])).sum().backward()
    close(x.grad, z["grad/x_f64"])
    for k, v in theirs.items():
        if v.requires_grad: close(v.grad, z[f"grad/{k}_f64"])


# backbones

@pytest.mark.slow
@pytest.mark.parametrize("name", names("sashimi"))
@torch.no_grad()
def test_backbone(name):
    config, z = read(f"sashimi/{name}")
    model, x = from_s4(weights(z), **config), tensor(z["x"])
    close(model(x)[0], z["y_f64"])
    close(model(x, need_state=False)[0], z["y_f64"])
    close(from_s4(weights(z) | weights(z, "after/"), **config)(x)[0], z["y_f64"], STORED)
    if model.no_state:
        with pytest.raises(ValueError, match="call forward on whole windows"): model.initial_state(len(x))
        assert model(x)[1] is None
        return
    first, state = model(x[:, :7])
    close(torch.cat([first, model(x[:, 7:], state)[0]], 1), z["y_f64"])
    close(step_through(model, x)[0], z["y_step_f64" if "y_step_f64" in z.files else "y_step_dense_f64"])


def test_backbone_in_float32():
    config, z = read("sashimi/base_d8_n1_pool44_L64_seed0")
    model = from_s4({k: v.float() if v.is_floating_point() else v for k, v in weights(z).items()}, **config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad(): close(model(torch.as_tensor(z["x"]))[0].double(), z["y_f64"], 1e-5)


def with_c_tilde(theirs, lengths, words):
    "A state dict after its first window, in double precision: C~ = C (I - A^l) in every kernel, and l."
    out = dict(theirs)
    for stem in [k.removesuffix("l_kernel") for k in theirs if k.endswith("l_kernel")]:
        v = convert_kernel({k.removeprefix(stem): t for k, t in theirs.items() if k.startswith(stem)
                            and "l_kernel" not in k}, words)
        length, step, C = int(lengths[stem + "l_kernel"]), real_step(sampled_system(v)), torch.view_as_complex(v["C"])
        row = torch.cat([C.real, -C.imag], -1)
        row = row - torch.einsum("chm,hmn->chn", row, torch.linalg.matrix_power(step, length))
        real, imag = row.chunk(2, -1)
        out |= {stem + "C": torch.stack([real, -imag], -1), stem + "l_kernel": torch.tensor(length)}
    return out


def has_gradients(name): return any(k.startswith("grad/") for k in read(f"sashimi/{name}")[1].files)


@pytest.mark.parametrize("name", [n for n in names("sashimi") if has_gradients(n)])
def test_backbone_gradients_in_the_words_of_the_reference(name):
    config, z = read(f"sashimi/{name}")
    words = layer_words(config.get("layer") or {},
                        **({} if "layer" in config else {"dt_transform": "exp", "n_ssm": None}))
    # the files keep it in single precision
    theirs = with_c_tilde(weights(z), weights(z, "after/"), words)
    model = from_s4(theirs, **config)
    for v in theirs.values(): v.requires_grad_(v.is_floating_point())
    _, ours, _ = convert_backbone(theirs, **config)
    y, _ = torch.func.functional_call(model, ours, (tensor(z["x"]), None, False))
    (y*tensor(z["grad_out"])).sum().backward()
    missing = [k for k, v in theirs.items() if v.requires_grad and f"grad/{k}" not in z.files
               and f"grad/{k}_f64" not in z.files]
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
    close(step_through(model, x)[0], z["step_logits_f64"])
    close(model.loss(x, y, y >= 0), z["loss_f64"])                                  # padding is -100
    close(model.loss(x, y, y >= 0)/np.log(2), z["metric/bpb_f64"])
    # theirs counts padding as wrong answers
    counted = (y >= 0).double().mean().item()
    for k, key in ((1, "accuracy"), (3, "accuracy@3"), (5, "accuracy@5"), (10, "accuracy@10")):
        assert counted*accuracy_at(logits, y[..., 0], k,
                                   y[..., 0] >= 0) == pytest.approx(float(z[f"metric/{key}_f64"]), rel=1e-6)


@pytest.mark.parametrize("name", names("pipeline"))
def test_training_in_the_words_of_the_reference(name):
    """Four steps of the reference's AdamW with its parameter groups on its parameters, C~ among them."""
    config, z = read(f"pipeline/{name}")
    lengths, words = {}, layer_words(config["model"]["layer"])
    # as long as the window is at its scale
    for key in [k for k in z.files if k.endswith("l_kernel")]:
        level = len(config["model"]["pool"])
        if "c_layers" not in key: level -= 1 + int(key.split("u_layers.")[1][0])
        lengths[key.removeprefix("init/")] = config["L"]//int(np.prod(config["model"]["pool"][:level]))
    theirs = with_c_tilde(weights(z), lengths, words)
    model = model_from_s4(theirs, config["bits"], **config["model"])
    for v in theirs.values(): v.requires_grad_(v.is_floating_point())
    groups = [g | {"params": [theirs[k] for k in g["params"]], "betas": tuple(g["betas"])}
              for g in config["optimizer_groups"]]
    assert sum(len(g["params"]) for g in groups) == len([v for v in theirs.values() if v.requires_grad])
    optimizer, x, y, losses = torch.optim.AdamW(groups), torch.as_tensor(z["x"])[..., None], torch.as_tensor(z["y"]), []
    outer = [(r"^encoder\.0\.(?:embedding\.)?", "encoder."),
             (r"^decoder\.0\.output_transform\.", "head.decoder.output.")]
    for _ in range(config["optimizer_steps"]):
        inner = convert_backbone({k.removeprefix("model."): v for k, v in theirs.items() if k.startswith("model.")},
                                 **config["model"])[1]
        ours = {f"backbone.{k}": v for k, v in inner.items()} | {rename(k, outer): v for k, v in theirs.items()
                                                                 if not k.startswith("model.")}
        logits, _ = torch.func.functional_call(model, ours, (x, None, False))
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close(torch.tensor(losses, dtype=torch.float64), z["train_losses_f64"])
    for k, v in theirs.items():
        if v.requires_grad: close(v.detach(), z[f"trained/{k}_f64"])


# errors

def state():
    config, z = read("sashimi/base_d8_n1_pool4_L20_seed3_B1")
    return weights(z), config


def test_every_key_is_used_or_named():
    theirs, config = state()
    with pytest.raises(ValueError, match="d_layers.0.spare has no place"):
        from_s4(theirs | {"d_layers.0.spare": torch.ones(1)}, **config)
    for key in theirs:
        if key.endswith("l_kernel"): continue
        with pytest.raises(ValueError, match="nothing for"):
            from_s4({k: v for k, v in theirs.items() if k != key}, **config)
    with pytest.raises(ValueError, match="c_layers.0.layer.layer.D: expected"):
        from_s4(theirs | {"c_layers.0.layer.layer.D": torch.ones(1, 3)}, **config)


@pytest.mark.parametrize("words,error,match", [
    ({"d_modle": 8}, ValueError, "unknown word 'd_modle'"),
    ({"layer": {"d_stat": 8}}, ValueError, "unknown word 'd_stat'"),
    ({"unet": True}, ValueError, "nothing for down_stages"), ({"interp": 2}, ValueError, "nothing for interp"),
    ({"interp": 3}, ValueError, "power of two"), ({"cff": 0}, NotImplementedError, "cff=0"),
    ({"act_pool": "relu"}, NotImplementedError, "act_pool='relu'"),
    ({"dropres": 0.1}, NotImplementedError, "dropres=0.1"),
    ({"layer": {"bidirectional": True, "d_state": 8}}, ValueError, r"kernel.C: expected \(2, 16, 4, 2\)"),
    ({"layer": {"rank": 2, "d_state": 8}}, ValueError, r"kernel.P: expected \(2, 1, 4, 2\)"),
    ({"layer": {"rank": 0}}, ValueError, "expected at least"),
    ({"layer": {"channels": 2, "d_state": 8}}, NotImplementedError, "channels=2"),
    ({"layer": {"dt_tie": False}}, ValueError, "share a step"),
    ({"layer": {"mode": "diag", "disc": "dss"}}, NotImplementedError, "it has no steps"),
    ({"layer": {"mode": "ssm"}}, ValueError, "unknown mode 'ssm'"),
    ({"layer": {"dt_transform": "cube", "d_state": 8}}, ValueError, "unknown dt_transform 'cube'"),
    ({"d_model": 12}, ValueError, "expected .* got"), ({"n_layers": 3}, ValueError, "nothing for"),
    ({"n_layers": 1, "ff": 0}, ValueError, "has no place"),
], ids=str)
def test_words_that_cannot_be(words, error, match):
    theirs, config = state()
    with pytest.raises(error, match=match): from_s4(theirs, **config | words)


@pytest.mark.parametrize("word", LAYER_FIXED)
def test_a_refused_option_says_why(word):
    with pytest.raises(NotImplementedError, match=f"layer: {word}='other' cannot be loaded.*: {LAYER_FIXED[word][1]}"):
        layer_words({word: "other"})


def test_a_block_is_no_backbone():
    theirs, _ = state()
    with pytest.raises(ValueError, match="expected the state dict of an S4Block"):
        block_from_s4({"norm.weight": theirs["norm.weight"]})
