"""A workbench for autoregressive models of raw audio: SaShiMi on S4 layers.

What is promised stands in the modules listed in `__all__`; each is a page of `nbs/api` with an example to copy. They are
imported when they are first used, so that `import sashimi_wb` costs nothing."""
__version__ = "0.1.0"
__all__ = ["baselines", "decoders", "encoders", "explore", "generation", "interleave", "interop", "model", "quantization", "s4",
           "sashimi", "trainer"]


def __getattr__(name):
    if name not in __all__: raise AttributeError(f"module {__name__!r} has no attribute {name!r}; modules: {', '.join(__all__)}")
    from importlib import import_module
    return import_module(f"{__name__}.{name}")


def __dir__(): return sorted([*globals(), *__all__])
