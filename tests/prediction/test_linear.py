"""The recursion gives the weights of least squares, for every order."""
import numpy as np
import pytest

from sashimi_wb.prediction.linear import autocorrelation, levinson


@pytest.mark.portable
def test_levinson_solves_the_normal_equations():
    rng = np.random.default_rng(0)
    r = autocorrelation(np.cumsum(rng.standard_normal((5, 400)), 1)*np.hanning(400), 10)
    weights, errors = levinson(r)
    for b in range(5):
        for m in (1, 3, 10):
            want = np.linalg.solve(r[b, np.abs(np.subtract.outer(range(m), range(m)))], r[b, 1:m + 1])
            np.testing.assert_allclose(weights[b, m - 1, :m], want, rtol=1e-6)
            np.testing.assert_allclose(errors[b, m - 1], r[b, 0] - want @ r[b, 1:m + 1], rtol=1e-6)


@pytest.mark.portable
def test_no_other_weights_leave_less():
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.standard_normal(300))*np.hanning(300)
    weights, errors = levinson(autocorrelation(x[None], 6))
    padded = np.concatenate([np.zeros(6), x, np.zeros(6)])
    past = np.stack([padded[6 - i:len(padded) - i] for i in range(1, 7)], 1)
    for m in (1, 4, 6):
        want, left, *_ = np.linalg.lstsq(past[:, :m], padded[6:], rcond=None)
        np.testing.assert_allclose(weights[0, m - 1, :m], want, rtol=1e-6)
        np.testing.assert_allclose(errors[0, m - 1], left[0], rtol=1e-6)
        assert not weights[0, m - 1, m:].any()


def test_silence_and_a_constant():
    weights, errors = levinson(np.zeros((2, 9)))
    assert not weights.any() and (errors > 0).all()
    weights, errors = levinson(np.ones((1, 9)))    # every lag fully correlated: some average of past samples
    np.testing.assert_allclose(weights[0].sum(1), 1, atol=1e-6)
    assert np.isfinite(weights).all() and (np.diff(errors) <= 0).all()
