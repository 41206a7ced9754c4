"""Every field of every configuration refuses other types and ranges by name, and text is read as the type of its field.

The tests run over the fields of the classes, so a new field is covered without a new line here.
"""
import json
import math
import pickle
from dataclasses import MISSING, dataclass, fields, replace
from typing import Annotated

import numpy as np
import pytest

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.core.checks import (
    Count,
    OneOf,
    check_int,
    check_value,
    field_types,
    from_json,
    read_values,
    to_json,
    words,
)
from sashimi_wb.models.sashimi import SaShiMi, SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig
from sashimi_wb.pages.activations import PassSettings
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.studies.experiment import PRESETS, Experiment, arm_parameters, experiment
from sashimi_wb.studies.growing_clip import GenerationRequest
from sashimi_wb.studies.study_files import StudyParameters, get_study, study_parameters
from sashimi_wb.synthesis.stepping import Sampling
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.training.recipe import History, TrainConfig

GIVEN = {DataConfig: {"path": "x"}, TrainConfig: {"max_steps": 1}}
CONFIGS = (Experiment, DataConfig, ModelConfig, SaShiMiConfig, KernelConfig,
           TrainConfig, Sampling, Quantizer, GenerationRequest, PassSettings, StudyParameters)
FIELDS = [(cls, f.name) for cls in CONFIGS for f in fields(cls)]


def plain(cls, name):
    """The annotation of a field in words: "an integer or None"."""
    return words(field_types(cls)[name])


@pytest.mark.parametrize("cls,name", FIELDS, ids=lambda p: getattr(p, "__name__", p))
def test_no_field_accepts_another_type(cls, name):
    """Try values that no field accepts, and values that this one does not."""
    hint, said = field_types(cls)[name], plain(cls, name)
    for wrong in (object(), {1: 2}, b"8", 1j, math.nan, math.inf, -math.inf, np.nan, 10**400, -10**400,
                  [[[8]]], [None]):
        if "a list" in said and wrong == [[[8]]]: wrong = [[["x"]]]
        with pytest.raises(ValueError) as e: cls(**GIVEN.get(cls, {}) | {name: wrong})
        assert f".{name}: " in str(e.value) and len(str(e.value)) < 800
    if "None" not in said and name not in ("context_len", "pad_len"):    # these two read None as 0
        with pytest.raises(ValueError, match=f"{name}: "): cls(**GIVEN.get(cls, {}) | {name: None})
    if "integer" in said or "a number" in said:
        for wrong in (True, "8", "", np.bool_(True)):
            with pytest.raises(ValueError, match=f"{name}: expected "): check_value(name, wrong, hint)


@pytest.mark.parametrize("cls", CONFIGS)
def test_numbers_of_numpy_give_equal_records(cls):
    """Equal values give equal configurations, hashes and JSON, whatever their type."""
    config = cls(**GIVEN.get(cls, {}))
    as_numpy = {n: np.int64(v) if isinstance(v, int) else np.float64(v) for n in field_types(cls)
                if isinstance(v := getattr(config, n), (int, float)) and not isinstance(v, bool)}
    as_numpy |= {n: np.bool_(v) for n in field_types(cls) if isinstance(v := getattr(config, n), bool)}
    as_numpy |= {n: np.array(v, int) for n in field_types(cls) if isinstance(v := getattr(config, n), tuple) and v}
    other = replace(config, **as_numpy)
    assert other == config and hash(other) == hash(config) and json.dumps(to_json(other)) == json.dumps(to_json(config))
    assert from_json(cls, json.loads(json.dumps(to_json(config)))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_an_integer_and_minus_zero_are_the_same_float():
    a = experiment("smoke", {"dropout": 0, "weight_decay": 1, "temperature": -0.0})
    b = experiment("smoke", {"dropout": 0.0, "weight_decay": 1.0, "temperature": 0.0})
    assert json.dumps(to_json(a)) == json.dumps(to_json(b))


@pytest.mark.parametrize("cls", CONFIGS)
def test_json_names_class_and_key(cls):
    whole = to_json(cls(**GIVEN.get(cls, {})))
    for damaged in (None, [], "text", 3):
        with pytest.raises(ValueError, match=f"{cls.__name__}: expected an object of names and values"):
            from_json(cls, damaged)
    with pytest.raises(ValueError, match=f"{cls.__name__}: unknown nonsense; known: "):
        from_json(cls, whole | {"nonsense": 1})
    for name, hint in field_types(cls).items():
        for damaged in ({"a": 1}, [{}], 1.5j):
            with pytest.raises(ValueError, match=rf"^{cls.__name__}\.{name}: |^\w+: unknown a; known: "):
                from_json(cls, whole | {name: damaged})
        if "None" not in words(hint):
            with pytest.raises(ValueError, match=rf"{cls.__name__}\.{name}: "): from_json(cls, whole | {name: None})
        needed = next(f for f in fields(cls) if f.name == name)
        if needed.default is MISSING and needed.default_factory is MISSING:
            with pytest.raises(ValueError, match=f"{cls.__name__}: {name} is missing; expected"):
                from_json(cls, {k: v for k, v in whole.items() if k != name})


def test_nested_json_names_the_inner_class():
    whole = to_json(ModelConfig())
    whole["backbone"]["kernel"]["d_state"] = "64"
    with pytest.raises(ValueError, match="KernelConfig.d_state: expected an integer from 2 to 1,024, got '64'"):
        from_json(ModelConfig, whole)
    whole["backbone"] = None
    with pytest.raises(ValueError, match="ModelConfig.backbone: expected SaShiMiConfig, got None"):
        from_json(ModelConfig, whole)
    history = History([1.0], [{"epoch": 0}])
    assert from_json(History, json.loads(json.dumps(to_json(history)))) == history


@pytest.mark.parametrize("changes,field", [
    ({"d_model": 0}, "d_model"), ({"d_model": 10**9}, "d_model"), ({"d_model": 16384, "expand": 2}, "width"),
    ({"expand": 64, "pool": [2]*9}, "width"), ({"n_layers": 0}, "n_layers"), ({"n_layers": 10**6}, "n_layers"),
    ({"pool": (4, 0)}, "pool"), ({"pool": (-4,)}, "pool"), ({"expand": 0}, "expand"), ({"ff": -1}, "ff"),
    ({"ff": 10**6}, "ff"), ({"dropout": 1}, "dropout"), ({"dropout": -0.1}, "dropout"), ({"d_state": 7}, "d_state"),
    ({"d_state": 0}, "d_state"), ({"d_state": 10**6}, "d_state"), ({"n_mixtures": 0}, "n_mixtures"),
    ({"n_mixtures": 10**7}, "n_mixtures"), ({"lr": 0}, "lr"), ({"lr": -1}, "lr"), ({"ssm_lr": -1}, "ssm_lr"),
    ({"weight_decay": -1}, "weight_decay"), ({"warmup_steps": -1}, "warmup_steps"), ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"), ({"split_seed": -1}, "split_seed"), ({"train_percentage": 0}, "train_percentage"),
    ({"train_percentage": 1}, "train_percentage"), ({"train_percentage": 88}, "train_percentage"),
    ({"batch_size": 0}, "batch_size"), ({"batch_size": 10**9}, "batch_size"), ({"sample_len": 10**15}, "sample_len"),
    ({"pad_len": 10**12}, "tokens in a batch"), ({"target_sr": 0}, "target_sr"), ({"target_sr": 10**9}, "target_sr"),
    ({"prompt_s": -1}, "prompt_s"), ({"prompt_s": 1e12}, "prompt_s"),
    ({"continuation_s": math.inf}, "continuation_s"), ({"temperature": -1}, "temperature"),
    ({"temperature": math.nan}, "temperature"), ({"temperature": 1e300}, "temperature"), ({"steps": (0,)}, "steps"),
    ({"steps": (4, 4)}, "steps"), ({"steps": 10**30}, "steps"), ({"max_epochs": 0}, "max_epochs"),
    ({"max_epochs": "inf"}, "max_epochs"), ({"steps": (), "max_epochs": "None"}, "max_epochs"),
    ({"val_chunk_size": 0}, "val_chunk_size"), ({"context_len": 512}, "context_len"),
    ({"channels": "Stereo"}, "did you mean 'stereo'"), ({"kernel": "DPLR"}, "did you mean 'dplr'"),
    ({"scheduler": "cosin"}, "did you mean 'cosine'"),
    ({"encoder": "linear_projecton"}, "did you mean 'linear_projection'"), ({"scheduler": ""}, "known: plateau"),
    ({"interleaving_strategy": "blocking-0"}, "blocking-N"), ({"stem": "vocals"}, "known: mixture"),
    ({"dataset": 3}, "dataset"), ({"bits": 25}, "bits"), ({"learning_rate": 1}, "known: bits"),
    ({"n_layer": 1}, "did you mean 'n_layers'")])
def test_ranges_are_checked_before_anything_runs(changes, field):
    with pytest.raises(ValueError, match=field): experiment("smoke", changes)


@pytest.mark.parametrize("name,given,want", [
    ("tie_weights", "false", False), ("tie_weights", "False", False), ("drop_last", "TRUE", True),
    ("drop_last", " true ", True), ("pool", "[2,4]", (2, 4)), ("pool", "(2, 4)", (2, 4)), ("pool", "(2,)", (2,)),
    ("pool", "2,4", (2, 4)), ("pool", "2", (2,)), ("pool", 2, (2,)), ("pool", [2.0, "4"], (2, 4)), ("pool", "[]", ()),
    ("steps", 10, (10,)), ("steps", "[10, 20]", (10, 20)), ("steps", "10,20", (10, 20)),
    ("steps", "1e1", (10,)), ("dropout", "1e-1", 0.1), ("dropout", "0", 0.0), ("dropout", ".5", 0.5),
    ("lr", "1E-3", 1e-3), ("lr", 1, 1.0), ("seed", 1.0, 1), ("seed", "7", 7), ("seed", "+7", 7), ("seed", "1e3", 1000),
    ("bits", "8", 8), ("bits", "8.0", 8), ("target_sr", "None", None), ("target_sr", "null", None),
    ("target_sr", "8000", 8000), ("max_epochs", "NULL", None), ("test_s", "none", None), ("temperature", "-0.0", 0.0),
    ("kernel", "diag", "diag"), ("stem", "mixture", "mixture")])
def test_text_is_read_as_the_type_of_its_field(name, given, want):
    got = getattr(experiment("smoke", {name: given}), name)
    assert (got, type(got)) == (want, type(want)) and str(got) == str(want)


@pytest.mark.parametrize("name,given", [
    ("tie_weights", "maybe"), ("tie_weights", 1), ("tie_weights", 0.0), ("tie_weights", ""), ("tie_weights", "None"),
    ("tie_weights", "no!"), ("pool", "[2,4"), ("pool", "2;4"), ("pool", "2,,4"), ("pool", ""), ("pool", "[[2]]"),
    ("pool", "[2.5]"), ("pool", {"a": 1}), ("pool", "None"), ("pool", True), ("steps", "ten"),
    ("steps", "[10, None]"), ("dropout", "nan"), ("dropout", "1e-1x"), ("dropout", [0.1]), ("dropout", ""),
    ("lr", "1e999"),
    ("lr", [1e-3, 1e-4]), ("seed", 8.5), ("seed", "8.5"), ("seed", True), ("seed", "True"), ("seed", "9"*5000),
    ("seed", ""), ("bits", "eight"), ("bits", "0x8"), ("bits", [8]), ("bits", math.nan), ("target_sr", ""),
    ("target_sr", "44.1k"), ("max_epochs", math.inf), ("kernel", 5), ("kernel", "None"), ("kernel", ["dplr"]),
    ("temperature", "Infinity")])
def test_unreadable_values_are_refused_by_name(name, given):
    with pytest.raises(ValueError) as e: experiment("smoke", {name: given})
    assert str(e.value).startswith(f"Experiment.{name}: ") and len(str(e.value)) < 300


def test_every_parameter_of_the_notebooks():
    arm = dict.fromkeys(["preset", *field_types(Experiment)]) | {
        "preset": "smoke", "audio": "", "runs": "", "changes": ""}
    assert arm_parameters(arm) == (experiment("smoke"), "", "")
    def read(**given): return arm_parameters(arm | given)[0]
    assert read(changes='{"bits": "6", "lr": null}', pool="[2]") == experiment("smoke", {"bits": 6, "pool": (2,)})
    assert read(changes={"bits": 6}, bits=7).bits == 7                       # a named parameter takes precedence
    for e in (experiment("small", {"train_chunk_size": "None"}), *map(experiment, PRESETS)):   # a whole experiment
        assert read(preset="", changes=json.dumps(to_json(e))) == e
    assert read(preset="", changes=json.dumps(to_json(experiment("smoke"))), seed="3").seed == 3
    for wrong, message in (({"changes": "[1]"}, "changes: expected an object"),
                           ({"changes": '{"lr": NaN}'}, "Experiment.lr"),
                           ({"changes": '{"bit": 8}'}, "did you mean 'bits'"),
                           ({"preset": "Small"}, "did you mean 'small'"),
                           ({"preset": None}, "preset: expected text, got None"),
                           ({"audio": 3}, "audio: expected text, got 3"),
                           ({"runs": ["a"]}, "runs: expected text"),
                           ({"bitz": 8}, "unknown parameter bitz; known: preset")):
        with pytest.raises(ValueError, match=message): read(**wrong)
    given = dict(preset="small", n_seeds="2", audio="a", runs="r", workers=3.0)
    assert study_parameters(given) == StudyParameters("small", 2, "a", "r", 3)
    for name, wrong in (("n_seeds", 0), ("n_seeds", 10**9), ("n_seeds", 1.5), ("workers", -1), ("workers", "many"),
                        ("workers", True), ("preset", "")):
        with pytest.raises(ValueError, match=name): study_parameters({name: wrong})


def test_arguments_of_functions():
    assert type(check_int("n", np.uint8(3), 1)) is int
    for wrong in (True, 1.0, "1", None, 0, 10**30, np.float64(1), [1]):
        with pytest.raises(ValueError, match=r"n: expected an integer (of at least 1|from 1 to 9), got "):
            check_int("n", wrong, 1, 9)
    with pytest.raises(ValueError, match="seeds: expected an integer"): get_study("bit_depth").given("smoke", True)
    with pytest.raises(ValueError, match="SaShiMiConfig.d_model: expected an integer from 1 to 16,384, got '64'"):
        SaShiMi(d_model="64")
    assert read_values({}, {}) == {} and check_value("n", None, Count | None) is None


def test_fields_without_a_range_are_checked_by_type():
    @dataclass(frozen=True)
    class Plain:
        n: int
        names: tuple[str, ...] = ()
    assert from_json(Plain, {"n": 1, "names": ["a"]}) == Plain(1, ("a",))
    for wrong, message in (({}, "Plain: n is missing; expected an integer"),
                           ({"n": None}, "Plain.n: expected an integer, got None"),
                           ({"n": 1, "names": [1]}, "Plain.names: expected a list, each item text")):
        with pytest.raises(ValueError, match=message): from_json(Plain, wrong)


def test_names_that_are_added_later_count():
    names = {"a": 1}
    hint = Annotated[str, OneOf(names)]
    with pytest.raises(ValueError, match="unknown letter 'b'; known: a"): check_value("letter", "b", hint)
    names["b"] = 2
    assert check_value("letter", "b", hint) == "b"
