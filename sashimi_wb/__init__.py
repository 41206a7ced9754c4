"""A workbench for autoregressive models of raw audio: SaShiMi on S4 layers.

The public names are in the modules listed in `__all__`; each is a page of `nbs/api` with an example to copy. Modules
are imported when they are first used, so that `import sashimi_wb` is fast."""
__version__ = "0.1.0"
__all__ = ["baselines", "decoders", "encoders", "explore", "generation", "interleave", "interop", "model",
           "quantization", "s4", "sashimi", "trainer"]


def __getattr__(name):
    from importlib import import_module
    if name in __all__: return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; modules: {', '.join(__all__)}")


def __dir__(): return sorted([*globals(), *__all__])
