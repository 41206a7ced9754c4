import errno
import math
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.core import system as core
from sashimi_wb.training.checkpoints import load_tree, read_weights, save_tree, save_weights

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict): return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float): return isinstance(b, float) and repr(a) == repr(b)  # -0.0 is not 0.0; NaN equals NaN
    return type(a) is type(b) and a == b


tensors = st.builds(lambda dtype, shape: (torch.arange(math.prod(shape)) % 2).reshape(shape).to(dtype),
                    st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), tensors)
keys = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.booleans(),
                 st.tuples(st.integers(0, 2), st.text(max_size=2)))
trees = st.recursive(leaves,
                     lambda t: st.one_of(st.lists(t, max_size=3), st.lists(t, max_size=3).map(tuple),
                                         st.dictionaries(keys, t, max_size=3)),
                     max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(tree=trees)
def test_any_tree_is_restored(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp()/"tree.ckpt"
    assert same(load_tree(save_tree(path, tree)), tree)


def test_shared_and_strided_tensors(tmp_path):
    a = torch.arange(12.0).reshape(3, 4)
    tree = {"a": a, "again": a, "turned": a.T, "row": a[1], "column": a[:, 1], "parameter": torch.nn.Parameter(a)}
    back = load_tree(save_tree(tmp_path/"t", tree))
    assert all(torch.equal(back[k], tree[k]) for k in tree) and back["a"] is back["again"]


def test_generators(tmp_path):
    tree = {"numpy": np.random.get_state(), "python": random.getstate(), "torch": torch.get_rng_state()}
    assert same(load_tree(save_tree(tmp_path/"t", tree)), tree)


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.nn.Linear(1, 1), b"bytes", 1j])
def test_errors_name_other_types_and_their_place(tmp_path, value):
    with pytest.raises(ValueError, match=f"got {type(value).__name__} at outer/3/inner"):
        save_tree(tmp_path/"t", {"outer": {3: {"inner": value}}})
    assert not list(tmp_path.iterdir())


def test_errors_name_a_damaged_file(tmp_path):
    path = save_tree(tmp_path/"t.ckpt", {"a": torch.ones(100)})
    whole = path.read_bytes()
    for broken in (b"", whole[:5], whole[:40], whole[:-1], whole + b"x", os.urandom(400)):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="t.ckpt: expected a safetensors file"): load_tree(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"): load_tree(tmp_path/"none")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"): read_weights(tmp_path)


def test_a_file_of_weights_is_no_tree(tmp_path):
    save_weights(tmp_path/"w", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="save_tree"): load_tree(tmp_path/"w")


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_tree(tmp_path/"t", {"n": 1})
    def full(handle): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(core.os, "fsync", full)
    with pytest.raises(OSError, match="free some space") as e: save_tree(path, {"n": 2})
    monkeypatch.undo()
    assert e.value.errno == errno.ENOSPC and load_tree(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_weights_keep_names_config_and_ties(tmp_path):
    from safetensors.torch import load_file

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8)
            self.out.weight = self.table.weight
            self.register_buffer("count", torch.tensor(3))

    model = Tied()
    path = save_weights(tmp_path/"deep"/"w.safetensors", model, {"bits": 3, "pool": [4, 4]}, {"step": 7, "best": 1.5})
    state, config, extra = read_weights(path)
    assert config == {"bits": 3, "pool": [4, 4]} and extra == {"step": 7, "best": 1.5}
    assert same(state, {k: state[k] for k in state}) and set(state) == set(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items()) and len(load_file(path)) == 3
    for bad in ({"f": float}, {"t": torch.ones(1)}):
        with pytest.raises(ValueError, match="plain JSON"): save_weights(tmp_path/"x", model, bad)


def test_complex_tensors_of_both_sizes(tmp_path):
    tree = {"state": (torch.randn(2, 3, dtype=torch.complex128).conj(), torch.randn(2, 3, dtype=torch.complex64),
                      torch.zeros(0, 2, dtype=torch.complex128))}
    back = load_tree(save_tree(tmp_path/"x.safetensors", tree))
    for a, b in zip(tree["state"], back["state"], strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
