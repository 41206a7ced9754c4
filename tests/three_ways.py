"""A layer or a model run step by step and window by window, to compare with one window."""
import torch


def leaves(state):
    """The tensors of a nested tuple, in order."""
    return [x for part in state for x in leaves(part)] if isinstance(state, tuple) else [state]


def step_through(module, x, state=None):
    """Outputs of steps from a state, or from the beginning, and the state after them."""
    state, out = module.initial_state(len(x)) if state is None else state, []
    for k in range(x.shape[1]):
        y, state = module.step(x[:, k], state)
        out.append(y)
    return torch.stack(out, 1), state


def in_windows(module, x, sizes, state=None):
    """Outputs of windows with carried state, and the state after them."""
    out = []
    for part in x.split(sizes, 1):
        y, state = module(part, state)
        out.append(y)
    return torch.cat(out, 1), state
