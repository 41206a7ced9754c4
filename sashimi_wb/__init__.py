"""A workbench for autoregressive models of raw audio: SaShiMi on S4 layers.

The public names are those of `FACE` and the modules listed in `__all__`; each module is a page of `nbs/api` with an
example to copy. Modules are imported when they are first used, so that `import sashimi_wb` is fast."""
__version__ = "0.1.0"
__all__ = ["baselines", "compression", "decoders", "encoders", "explore", "generation", "interleave", "interop",
           "model", "quantization", "s4", "sashimi", "trainer", "workbench"]
# a name of the package itself -> its module
FACE = {"load_audio": "workbench", "fit": "workbench", "frame": "workbench", "ablate": "workbench",
        "Study": "workbench", "run_study": "workbench", "read_study": "workbench", "PRESETS": "workbench",
        "Experiment": "workbench", "bundled": "workbench", "load_model": "model", "ModelConfig": "model",
        "WaveModel": "model", "Quantizer": "quantization", "explore_quantization": "explore",
        "explore_layouts": "explore", "explore_state_space": "explore", "explore_forward_pass": "explore",
        "explore_training": "explore", "explore_generation": "explore", "explore_runs": "explore",
        "explore_compression": "explore"}


def __getattr__(name):
    from importlib import import_module
    if name in __all__: return import_module(f"{__name__}.{name}")
    if name in FACE: return getattr(import_module(f"{__name__}.{FACE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; names: {', '.join([*FACE, *__all__])}")


def __dir__(): return sorted({*globals(), *FACE, *__all__})
