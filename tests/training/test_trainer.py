import csv
import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Callback

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.loaders import AudioData
from sashimi_wb.core.system import from_json, seed_everything, to_json
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.training import checkpoints, run_checkpoints
from sashimi_wb.training.checkpoints import load_tree, read_weights
from sashimi_wb.training.evaluation import evaluate
from sashimi_wb.training.recipe import History, TrainConfig, reuse_memory
from sashimi_wb.training.run_checkpoints import checkpoints_of
from sashimi_wb.training.trainer import fit

pytestmark = pytest.mark.slow

STEPS = 5  # per epoch, in the data below
CPU = TrainConfig(max_epochs=3, device="cpu", save_every=2, patience=0, log_every=1)


@pytest.fixture(scope="session")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for i in range(8):
        t = np.arange(500)/8000
        wave = 0.4*np.sin(2*np.pi*(200 + 90*i)*t) + 0.05*rng.standard_normal(len(t))
        soundfile.write(folder/f"{i}.wav", wave, 8000)
    return folder


@pytest.fixture(scope="session")
def data(audio):
    return AudioData(DataConfig(path=audio, bits=4, sample_len=64, batch_size=4, train_percentage=0.75,
                                train_chunk_size=STEPS, val_chunk_size=2))


def small(dropout=0.2, seed=0, cls=WaveModel, **options):
    seed_everything(seed)
    backbone = SaShiMiConfig(d_model=8, n_layers=1, pool=(2,), ff=1, kernel=KernelConfig(d_state=4), dropout=dropout)
    return cls(ModelConfig(**{"bits": 4, "backbone": backbone, **options}))


def run(data, folder, config=CPU, model=None, **options):
    return fit(model or small(), data, config, folder, progress=False, **options)


def at_step(model, step, do):
    "Call `do` before the loss of a step is computed; steps count from 1, in this process."
    loss, steps = model.loss, itertools.count(1)
    def counted(*batch):
        if next(steps) == step: do()
        return loss(*batch)
    model.loss = counted
    return model


class Cut(Exception): "A power cut."


def cut(): raise Cut


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(data, folder), folder


def assert_same_run(history, folder, whole):
    record, reference = whole
    assert history.train_nats == record.train_nats and history.tokens == record.tokens and history.best == record.best
    plain = [[{k: v for k, v in e.items() if k != "seconds"} for e in h.epochs] for h in (history, record)]
    assert plain[0] == plain[1]
    a, b = load_tree(Path(folder)/"last.ckpt"), load_tree(reference/"last.ckpt")
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    assert repr(a["optimizer_states"]) == repr(b["optimizer_states"])
    assert repr(a["lr_schedulers"]) == repr(b["lr_schedulers"])
    assert torch.equal(read_weights(Path(folder)/"best.safetensors").state["head.decoder.output.weight"],
                       read_weights(reference/"best.safetensors").state["head.decoder.output.weight"])


def test_the_whole_run(whole, data):
    history, folder = whole
    assert history.steps == 3*STEPS and [e["step"] for e in history.epochs] == [5, 10, 15] and history.restarts == 0
    assert history.tokens == sum(b["mask"].sum().item() for e in range(3) for b in data.train_loader(e))
    assert history.seconds > 0 and history.peak_bytes > 1e7
    assert history.train_nats[-1] < history.train_nats[0] and len({e["lr"] for e in history.epochs}) >= 1
    for e in history.epochs:
        assert e["train_nats"] == pytest.approx(np.mean(history.train_nats[e["step"] - 5:e["step"]]))
    assert from_json(History, json.loads((folder/"history.json").read_text())).tokens == history.tokens
    assert json.loads(json.dumps(to_json(history)))["train_nats"] == history.train_nats
    assert {p.name for p in folder.iterdir()} == {"last.ckpt", "best.safetensors", "history.json", "settings.json",
                                                  "logs"}


def test_a_fixed_table_is_kept_with_the_weights(data, tmp_path):
    model = small(encoder="sinusoidal")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    run(data, tmp_path, model=model)
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert "encoder.weight" in before and changed == {name for name, _ in model.named_parameters()}
    again = small(encoder="sinusoidal", seed=1)
    run(data, tmp_path, model=again)
    assert torch.equal(again.encoder.weight, model.encoder.weight)


def test_a_finished_run_is_not_trained_again(whole, data):
    model = small(seed=3)
    assert run(data, whole[1], model=at_step(model, 1, cut)) == whole[0]
    assert all(torch.equal(v, load_tree(whole[1]/"last.ckpt")["state_dict"]["model." + k])
               for k, v in model.state_dict().items())


@pytest.mark.parametrize("step", [1, 3, 5, 8, 11, 15])
def test_cut_and_resumed_in_any_step(data, whole, tmp_path, step):
    with pytest.raises(Cut): run(data, tmp_path, model=at_step(small(), step, cut))
    history = run(data, tmp_path, model=small(seed=7))
    if step > 2: assert history.restarts == 1
    if step > 2: assert_same_run(history, tmp_path, whole)   # before the first save it starts again, with other weights
    else: assert history.steps == 15 and history.restarts == 0


def test_cut_twice_and_in_validation(data, whole, tmp_path):
    with pytest.raises(Cut): run(data, tmp_path, model=at_step(small(), 4, cut))
    model = small(seed=1)
    model.head.register_forward_pre_hook(lambda *_: None if model.training else cut())
    with pytest.raises(Cut): run(data, tmp_path, model=model)
    history = run(data, tmp_path, model=small(seed=2))
    assert history.restarts == 2
    assert_same_run(history, tmp_path, whole)


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import os, signal
from test_trainer import CPU, at_step, run, small
from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.loaders import AudioData
data = AudioData(DataConfig(path={audio!r}, bits=4, sample_len=64, batch_size=4, train_percentage=0.75,
                            train_chunk_size=5, val_chunk_size=2))
run(data, {folder!r}, model=at_step(small(), 10, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_killed_without_warning(data, audio, whole, tmp_path):
    program = CHILD.format(tests=str(Path(__file__).parent), audio=str(audio), folder=str(tmp_path/"run"))
    here = tmp_path/"elsewhere"
    here.mkdir()
    threads = str(torch.get_num_threads())
    done = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": threads, "TMPDIR": str(here)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == "" and done.stderr == ""           # neither tips nor warnings
    assert not list(here.iterdir())                          # nothing outside the folder
    assert load_tree(tmp_path/"run"/"last.ckpt")["sashimi_wb"]["step"] == 8
    history = run(data, tmp_path/"run", model=small(seed=7))
    assert_same_run(history, tmp_path/"run", whole)


def test_sigterm_saves_and_ends(data, whole, tmp_path):
    quiet = replace(CPU, save_every=None)
    with pytest.raises(SystemExit) as e:
        run(data, tmp_path, quiet, at_step(small(), 9, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert e.value.code == 143 and load_tree(tmp_path/"last.ckpt")["sashimi_wb"]["step"] == 9
    assert_same_run(run(data, tmp_path, quiet), tmp_path, whole)


def test_sigterm_in_the_last_step_of_an_epoch(data, whole, tmp_path):
    quiet = replace(CPU, save_every=None)
    with pytest.raises(SystemExit):
        run(data, tmp_path, quiet, at_step(small(), 10, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    saved = load_tree(tmp_path/"last.ckpt")["sashimi_wb"]
    assert (saved["epoch"], saved["batch"], saved["step"]) == (2, 0, 10)
    assert_same_run(run(data, tmp_path, quiet), tmp_path, whole)


@pytest.mark.parametrize("step", [7, 10])
def test_interrupt_saves_and_says_how_to_resume(data, whole, tmp_path, step):
    before, quiet = signal.getsignal(signal.SIGINT), replace(CPU, save_every=None)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step} of 15; the same call resumes"):
        run(data, tmp_path, quiet, at_step(small(), step, lambda: signal.raise_signal(signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before
    assert_same_run(run(data, tmp_path, quiet), tmp_path, whole)


@pytest.fixture
def terminal():
    "The end of the terminal ends the process, also where the tests themselves run under nohup."
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("where", ["the last step", "the last validation"])
@pytest.mark.parametrize("sig, error", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt),
                                        (signal.SIGHUP, SystemExit)])
def test_a_signal_at_the_very_end_ends_the_process(terminal, data, whole, tmp_path, where, sig, error):
    before, model = signal.getsignal(sig), small()
    def at_the_end(*args):
        if not model.training and len(seen := model.head.seen) == 2*2: signal.raise_signal(sig)
        if not model.training: seen.append(0)
    if where == "the last step": at_step(model, 15, lambda: signal.raise_signal(sig))
    else:
        model.head.seen = []
        model.head.register_forward_pre_hook(at_the_end)
    with pytest.raises(error): run(data, tmp_path, model=model)
    assert signal.getsignal(sig) is before and load_tree(tmp_path/"last.ckpt")["sashimi_wb"]["step"] == 15
    assert_same_run(run(data, tmp_path, model=small(seed=7)), tmp_path, whole)


def test_two_interrupts_stop_at_once(data, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): run(data, tmp_path, model=at_step(small(), 7, twice))
    assert signal.getsignal(signal.SIGINT) is before and load_tree(tmp_path/"last.ckpt")["sashimi_wb"]["step"] == 6


def test_a_longer_run_resumes(data, whole, tmp_path):
    assert run(data, tmp_path, replace(CPU, max_epochs=None, max_steps=7)).steps == 7
    history = run(data, tmp_path)
    assert_same_run(history, tmp_path, whole)


def test_logs_are_complete_after_a_restart(data, tmp_path):
    with pytest.raises(Cut): run(data, tmp_path, model=at_step(small(), 10, cut))
    history = run(data, tmp_path)
    rows = list(csv.DictReader((tmp_path/"logs"/"csv"/"metrics.csv").open()))
    nats = {int(r["step"]): float(r["train/loss"]) for r in rows if r["train/loss"]}
    val = {int(r["step"]): float(r["val/bits"]) for r in rows if r["val/bits"]}
    assert list(nats) == list(range(15)) and list(val) == [4, 9, 14]
    np.testing.assert_allclose(list(nats.values()), history.train_nats, rtol=1e-5)
    np.testing.assert_allclose(list(val.values()), [e["val"]["bits_per_sample"] for e in history.epochs], rtol=1e-5)
    assert {"val/accuracy", "train/bits", "val/loss"} <= set(rows[0])
    assert list((tmp_path/"logs"/"tensorboard").glob("events*"))


@pytest.mark.parametrize("tail", ["7,1", "\0\0\0", "\n,,,\nx,y\n", "9,1,2,3,4,5,6,7,8,9,10,11,12\n"])
def test_logs_that_a_power_cut_has_damaged(data, tmp_path, tail):
    with pytest.raises(Cut): run(data, tmp_path, model=at_step(small(), 8, cut))
    path = tmp_path/"logs"/"csv"/"metrics.csv"
    path.write_text(path.read_text() + tail)
    history = run(data, tmp_path)
    rows = [r for r in csv.DictReader(path.open()) if r["train/loss"]]
    assert [int(r["step"]) for r in rows] == list(range(15))
    np.testing.assert_allclose([float(r["train/loss"]) for r in rows], history.train_nats, rtol=1e-5)


def test_other_settings_are_refused(data, audio, whole):
    changes = [(replace(CPU, lr=0.1), "train.lr: was 0.004, is 0.1"), (replace(CPU, seed=5), "train.seed")]
    for config, message in changes:
        with pytest.raises(ValueError, match=message): run(data, whole[1], config)
    with pytest.raises(ValueError, match="model.head: was 'categorical', is 'dml'"):
        run(data, whole[1], model=small(head="dml"))
    other = AudioData(replace(data.config, batch_size=2))
    with pytest.raises(ValueError, match="data.batch_size: was 4, is 2.*resume=False"): run(other, whole[1])
    assert run(data, whole[1]) == whole[0]


def test_resume_false_starts_again(data, tmp_path):
    first = run(data, tmp_path, replace(CPU, max_epochs=1))
    again = run(data, tmp_path, replace(CPU, max_epochs=1, lr=0.001), resume=False)
    assert again.steps == 5 and again.restarts == 0 and again.train_nats != first.train_nats


def test_a_bad_loss_stops_and_keeps_the_last_good_checkpoint(data, tmp_path):
    model = small()
    def spoil():
        with torch.no_grad(): model.head.decoder.output.bias.fill_(math.nan)
    with pytest.raises(ValueError,
                       match=r"loss of step 8 is nan.*lower lr \(now 0.004\).*last good checkpoint is .*last.ckpt"):
        run(data, tmp_path, model=at_step(model, 8, spoil))
    saved = load_tree(tmp_path/"last.ckpt")
    assert saved["sashimi_wb"]["step"] == 6 and all(v.isfinite().all() for v in saved["state_dict"].values())


def test_bad_weights_are_never_saved(data, tmp_path):
    model = small()
    def spoil():  # the loss of this batch stays finite
        hook = model.encoder.weight.register_hook(lambda g: g*math.nan)
        assert hook
    with pytest.raises(ValueError, match="diverged: (the weights after step 8|the loss of step 8|the loss of step 9)"):
        run(data, tmp_path, model=at_step(model, 8, spoil))
    assert load_tree(tmp_path/"last.ckpt")["sashimi_wb"]["step"] == 6


def test_diverging_before_the_first_checkpoint(data, tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint yet"):
        run(data, tmp_path, replace(CPU, save_every=None, lr=1e30, grad_clip=None, weight_decay=0))


def test_a_folder_that_cannot_be_written(data, tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(OSError, match="cannot write .*choose another folder"): run(data, tmp_path/"file"/"run")
    if os.geteuid() == 0: pytest.skip("the superuser may write anywhere")
    (tmp_path/"locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="cannot write"): run(data, tmp_path/"locked"/"run")


def test_a_disk_that_fills_up(data, whole, tmp_path, monkeypatch):
    write, n_written = checkpoints.write_atomic, itertools.count()
    def filling(path, content):
        if next(n_written) >= 4: raise OSError(errno.ENOSPC, f"cannot write {path} (No space left on device)")
        return write(path, content)
    monkeypatch.setattr(checkpoints, "write_atomic", filling)
    with pytest.raises(OSError, match="No space left"): run(data, tmp_path)
    monkeypatch.undo()
    assert_same_run(run(data, tmp_path), tmp_path, whole)


def test_logs_on_a_full_disk(data, tmp_path, monkeypatch):
    from lightning.pytorch.loggers import CSVLogger
    def full(self): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(CSVLogger, "save", full)
    with pytest.raises(OSError, match="cannot write in .*free some space.*the same call resumes"): run(data, tmp_path)


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    run(data, tmp_path, replace(CPU, max_steps=2))
    path = tmp_path/"last.ckpt"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="last.ckpt: expected a safetensors file.*delete it"): run(data, tmp_path)


def test_best_is_the_best(data, tmp_path):
    history = run(data, tmp_path, replace(CPU, max_epochs=4, lr=0.05))
    losses = [e["val"]["nats_per_token"] for e in history.epochs]
    best = int(np.argmin(losses))
    state, config, extra = read_weights(tmp_path/"best.safetensors")
    (model := WaveModel(from_json(ModelConfig, config))).load_state_dict(state)
    assert history.best.items() <= extra.items() and extra["epoch"] == best
    assert evaluate(model, data.val_loader(best), "cpu")["nats_per_token"] == pytest.approx(losses[best], rel=1e-6)


def test_each_epoch_takes_the_next_chunk(data, tmp_path):
    class Watching(WaveModel):
        def loss(self, x, y, mask, rows=None):
            seen.append(y.sum().item())
            return super().loss(x, y, mask)
    seen = []
    run(data, tmp_path, model=small(cls=Watching))
    assert seen == [b["y"].sum().item() for epoch in range(3) for b in data.train_loader(epoch)]


@pytest.mark.parametrize("config", [replace(CPU, scheduler="cosine", warmup_steps=3), replace(CPU, warmup_steps=4),
                                    replace(CPU, scheduler="constant"), replace(CPU, scheduler="linear"),
                                    replace(CPU, scheduler="linear", warmup_steps=2, cycle_ends=(5, 11))])
def test_learning_rates(data, tmp_path, config):
    rates = []
    class Watching(WaveModel):
        def parameter_groups(self, *args):
            self.groups = super().parameter_groups(*args)
            return self.groups
    history = run(data, tmp_path, replace(config, patience=50), small(cls=Watching), on_epoch=rates.append)
    expected = [config.lr*config.lr_factor(e["step"] - 1, 15) for e in history.epochs]
    assert rates == history.epochs and [e["lr"] for e in rates] == pytest.approx(expected)
    last = {"cosine": 0.5*(1 + math.cos(math.pi*14/15)), "linear": 1/4 if config.cycle_ends else 1/15}
    assert config.lr_factor(14, 15) == pytest.approx(last.get(config.scheduler, 1))


def test_a_run_with_cycles_begins_as_a_shorter_run_and_goes_on(data, tmp_path):
    "A schedule that ends at each score: the first score is that of a run of this length, to the last bit."
    config = replace(CPU, scheduler="linear", warmup_steps=2, max_epochs=None, max_steps=6)
    short = run(data, tmp_path/"short", config, short_model := small())
    both = replace(config, cycle_ends=(6, 11))
    first = run(data, tmp_path/"both", both, model := small())
    assert first.train_nats == short.train_nats
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), short_model.parameters()))
    longer = run(data, tmp_path/"both", replace(both, max_steps=11))
    at_once = run(data, tmp_path/"once", replace(both, max_steps=11))
    assert longer.train_nats == at_once.train_nats and longer.restarts == 1
    with pytest.raises(ValueError, match="train.max_steps: was 6, is 11"):
        run(data, tmp_path/"short", replace(config, max_steps=11))


def test_plateau_lowers_the_rate(data, tmp_path):
    history = run(data, tmp_path, replace(CPU, max_epochs=6, lr=0.5, ssm_lr=0.4, factor=0.5))
    best, expected = math.inf, 0.5
    for e in history.epochs:
        assert e["lr"] == pytest.approx(expected)
        loss = e["val"]["nats_per_token"]
        expected, best = (expected, loss) if loss < best*(1 - 1e-4) else (expected*0.5, best)
    assert history.epochs[-1]["lr"] < 0.5


def test_runs_in_a_thread_with_bf16_and_progress(data, tmp_path, capfd):
    result = []
    config = replace(CPU, max_steps=6, precision="bf16-mixed")
    thread = threading.Thread(target=lambda: result.append(fit(small(), data, config, tmp_path)))
    thread.start()
    thread.join()
    assert result[0].steps == 6 and all(map(math.isfinite, result[0].train_nats))
    out, err = capfd.readouterr()
    assert out == "" and "6/6" in err and "tokens/s" in err and "val=" in err and "Tip" not in err


@pytest.mark.parametrize("name, value", [
    ("max_steps", 0), ("max_steps", 1.5), ("max_epochs", True), ("lr", -1), ("lr", "0.1"), ("lr", math.nan),
    ("factor", 1), ("grad_clip", 0), ("precision", "16"), ("n_processes", 0), ("scheduler", "step"), ("val_ks", (0,)),
    ("beta2", 1), ("cycle_ends", (3, 3))])
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=name): TrainConfig(**{"max_steps": 1} | {name: value})


def test_settings_need_a_length():
    with pytest.raises(ValueError, match="max_steps or max_epochs"): TrainConfig()


def test_length_of_a_run():
    assert TrainConfig(max_steps=100).steps_and_epochs(24) == (100, 5)
    assert TrainConfig(max_epochs=3).steps_and_epochs(24) == (72, 3)
    assert TrainConfig(max_steps=100, max_epochs=2).steps_and_epochs(24) == (48, 2)
    assert TrainConfig(max_steps=10, max_epochs=2).steps_and_epochs(24) == (10, 1)


def test_a_callback_ends_the_training_while_losses_wait(data, tmp_path, monkeypatch):
    """On a GPU losses are read some at a time; those that wait when a callback stops the run are not lost."""
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_): trainer.should_stop = trainer.global_step >= STEPS + 2
    monkeypatch.setattr(run_checkpoints, "TOGETHER", {})
    history = run(data, tmp_path, callbacks=[Stop()])
    assert history.steps == STEPS + 2 and len(history.epochs) == 2
    assert history.epochs[1]["train_nats"] == pytest.approx(np.mean(history.train_nats[STEPS:]))


def test_callbacks_see_the_record(data, whole, tmp_path):
    seen = []
    class Recorder(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(checkpoints_of(trainer).history.train_nats[-1])
            checkpoints_of(trainer).exclude(1000)
    history = run(data, tmp_path, callbacks=[Recorder()])
    assert seen == history.train_nats and history.seconds < 0  # the excluded time does not count as training
    assert_same_run(history, tmp_path, whole)


def test_settings_as_json():
    config = TrainConfig(max_steps=3, val_ks=(1, 5), grad_clip=None)
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config
    with pytest.raises(ValueError, match="unknown learning_rate"):
        from_json(TrainConfig, {"max_steps": 1, "learning_rate": 1})


def test_reuse_memory_is_harmless():
    assert reuse_memory() in (True, False) and torch.ones(10_000_000).sum() == 1e7


@pytest.mark.parametrize("encoder, feed", [("embedding", "codes"), ("linear_projection", "raw")])
@pytest.mark.parametrize("head", ["categorical", "dml"])
def test_evaluate_is_exact_with_padding(audio, encoder, feed, head):
    config = DataConfig(path=audio, bits=5, sample_len=96, batch_size=3, train_percentage=0.5, drop_last=False,
                        input=feed)
    loader, model = AudioData(config).test_loader(), small(bits=5, encoder=encoder, head=head).train()
    nats, hits, tokens = 0.0, 0, 0
    model.eval()
    with torch.no_grad():
        for b in loader:
            params, _ = model(b["x"])
            y, mask = b["y"][..., 0], b["mask"][..., 0]
            nats -= model.head.log_prob(params, y)[mask].double().sum().item()
            hits += (model.head.log_probs(params).topk(3).indices == y[..., None]).any(-1)[mask].sum().item()
            tokens += mask.sum().item()
    model.train()
    figures = evaluate(model, loader, "cpu")
    assert model.training and tokens == figures["tokens"] < len(loader)*3*96
    assert figures["nats_per_token"] == pytest.approx(nats/tokens, rel=1e-6)
    assert figures["accuracy@3"] == pytest.approx(hits/tokens)
    assert {"accuracy", "accuracy@5", "accuracy@10", "perplexity", "bits_per_byte", "compression_ratio"} <= set(figures)
    short = evaluate(model, loader, "cpu", ks=())
    assert short == {k: v for k, v in figures.items() if not k.startswith("accuracy")}


def test_evaluate_in_blocks(audio, monkeypatch):
    y = torch.randint(0, 2**12, (2, 4096, 1))
    batch = {"x": y, "y": y, "mask": torch.ones_like(y, dtype=torch.bool)}
    model, most = small(0.0, bits=12), []
    rank = model.head.rank
    monkeypatch.setattr(model.head, "rank", lambda p, *args: (most.append(p.numel()), rank(p, *args))[1])
    with torch.no_grad():
        assert evaluate(model, [batch], "cpu")["nats_per_token"] == pytest.approx(model.loss(y, y).item(), rel=1e-5)
    assert len(most) == 8 and max(most) <= 2**22


def test_training_states_the_quantizer(audio, tmp_path):
    """What a model is trained on it knows afterwards, and other codes are refused, in training and in evaluation."""
    mu_law = AudioData(DataConfig(path=audio, bits=4, quantization="mu_law", sample_len=64, train_percentage=0.75,
                                  train_chunk_size=2, val_chunk_size=1))
    model = small()
    fit(model, mu_law, replace(CPU, max_epochs=1), tmp_path, progress=False)
    assert model.config.quantizer == mu_law.quantizer
    kept = from_json(ModelConfig, read_weights(tmp_path/"best.safetensors").config)
    assert kept.quantizer == mu_law.quantizer
    linear = AudioData(replace(mu_law.config, quantization="linear"))
    with pytest.raises(ValueError, match="expects codes of .*mu_law"): evaluate(model, linear.val_loader(), "cpu")
    with pytest.raises(ValueError, match="expects codes of .*mu_law"):
        fit(model, linear, replace(CPU, max_epochs=1), tmp_path/"other", progress=False)


@pytest.mark.parametrize("most,remedy", [(3, "use batch_size=2, which"), (1, "use batch_size=1"), (0, "not even one")])
def test_a_batch_that_does_not_fit_into_the_memory_of_a_gpu(data, tmp_path, monkeypatch, most, remedy):
    """The memory of an imagined GPU: 100 bytes for every window, and room for two and a half at 95% of it."""
    model, peak = small(), 0
    loss = model.loss
    def limited(x, *batch):
        nonlocal peak
        peak = 100*len(x)
        if len(x) > most: raise torch.OutOfMemoryError("out of memory")
        return loss(x, *batch)
    model.loss = limited
    weights = 2*sum(p.numel()*p.element_size() for p in model.parameters())
    for name, value in {"reset_peak_memory_stats": None, "max_memory_allocated": 0, "memory_allocated": 0,
                        "get_per_process_memory_fraction": 1.0, "get_device_name": "GPU",
                        "mem_get_info": (250/0.95 + weights, 1e9)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: peak)
    with pytest.raises(ValueError, match=f"batch_size=4: .* windows of 64 tokens .* memory of GPU.*{remedy}"):
        run(data, tmp_path, model=model)
