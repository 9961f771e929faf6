"""Spacings: they start at the input's noise, end at the clean image, and repeat nothing."""

import numpy as np
import pytest

from vision_lang.diffusion import spacing
from vision_lang.diffusion.schedules import SCHEDULES, make_schedule
from vision_lang.errors import InputError

STEPS = [1, 2, 3, 10, 1000]


@pytest.mark.parametrize("schedule_name", sorted(SCHEDULES))
@pytest.mark.parametrize("name", ["uniform", "trailing", "karras", "log_snr"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_first_level_is_the_inputs_and_last_is_clean(schedule_name, name, shift):
    schedule = make_schedule(schedule_name)
    for n in STEPS:
        t = spacing.make_spacing(name, shift)(schedule, n)
        assert t.shape == (n + 1,) and t.dtype == np.float64
        lv = spacing.levels(schedule, t)
        assert lv.t[0] == schedule.t_max and lv.t[-1] == 0.0
        np.testing.assert_allclose(lv.alpha[0], schedule.alpha(1.0), rtol=1e-6)
        np.testing.assert_allclose(lv.sigma[0], schedule.sigma(1.0), rtol=1e-6)
        assert lv.alpha[-1] == 1.0 and lv.sigma[-1] == 0.0
        angle = np.arctan2(np.float64(lv.sigma), np.float64(lv.alpha))
        assert np.all(np.diff(angle) < 0.0)


@pytest.mark.parametrize("name", ["uniform", "trailing", "karras", "log_snr"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_later_start(name, shift):
    schedule = make_schedule("flow")
    for n in (1, 2, 7):
        t = spacing.make_spacing(name, shift)(schedule, n, 0.6)
        assert t[0] == pytest.approx(0.6, abs=2e-3 if name == "trailing" else 1e-12)
        assert t[-1] == 0.0 and np.all(np.diff(t) < 0.0) and len(t) == n + 1


def test_uniform_is_equal_steps_of_t():
    t = spacing.uniform(make_schedule("cosine"), 4)
    np.testing.assert_array_equal(t, [1.0, 0.75, 0.5, 0.25, 0.0])


def test_trailing_and_leading_are_the_published_indices():
    schedule = make_schedule("scaled_linear")

    def index(name, n, **kwargs):
        t = spacing.make_spacing(name, **kwargs)(schedule, n)
        return np.round(t * 1000 - 1).astype(int).tolist()[:-1]

    # Lin et al. 2024, table 2, for T = 1000 (counted from 1 there).
    assert index("trailing", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert index("leading", 10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert index("leading", 10, offset=1)[-1] == 1
    assert index("trailing", 3) == [999, 666, 332]


def test_karras_is_equation_5():
    schedule = make_schedule("edm")
    n, rho = 18, 7.0
    lv = spacing.levels(schedule, spacing.karras()(schedule, n))
    i = np.arange(n)
    expected = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(lv.sigma[:-1], expected, rtol=1e-5)


def test_log_snr_spacing_has_equal_steps():
    schedule = make_schedule("scaled_linear")
    t = spacing.log_snr(schedule, 12)
    np.testing.assert_allclose(np.diff(schedule.log_snr(t[:-1]), 2), 0.0, atol=1e-9)
    assert t[-2] == pytest.approx(schedule.t_min)


def test_shift():
    schedule = make_schedule("flow")
    t = spacing.uniform(schedule, 10)
    moved = spacing.shifted(spacing.uniform, 3.0)(schedule, 10)
    np.testing.assert_allclose(moved, 3.0 * t / (1.0 + 2.0 * t))
    # In log-SNR the shift is a translation by -2 log s.
    difference = schedule.log_snr(moved[1:-1]) - schedule.log_snr(t[1:-1])
    np.testing.assert_allclose(difference, -2.0 * np.log(3.0))


def test_impossible_spacings_are_refused():
    schedule = make_schedule("scaled_linear")
    with pytest.raises(InputError, match="at least 1 step"):
        spacing.uniform(schedule, 0)
    with pytest.raises(InputError, match="must start at"):
        spacing.uniform(schedule, 10, 1.5)
    with pytest.raises(InputError, match="fixes its own start"):
        spacing.leading()(schedule, 10, 0.5)
    with pytest.raises(InputError, match="Use fewer steps"):
        spacing.levels(schedule, spacing.trailing(10)(schedule, 20))


def test_the_last_step_may_end_at_the_least_noise_of_training():
    """Of Stable Diffusion's table: that of step 0, beta_start. All other levels stay."""
    schedule = make_schedule("scaled_linear")
    t = spacing.make_spacing("leading_1")(schedule, 50)
    clean, noisy = (
        spacing.levels(schedule, t, np.float64, final_sigma=name) for name in spacing.FINAL_SIGMAS
    )
    np.testing.assert_allclose([x[-1] for x in noisy], [0.001, (1 - 0.00085) ** 0.5, 0.00085**0.5])
    np.testing.assert_array_equal([x[-1] for x in clean], [0.0, 1.0, 0.0])
    for one, other in zip(clean, noisy, strict=True):
        np.testing.assert_array_equal(one[:-1], other[:-1])
    edm = make_schedule("edm")
    levels = spacing.levels(edm, spacing.uniform(edm, 5), np.float64, final_sigma="sigma_min")
    np.testing.assert_allclose(levels.sigma[-1], 0.002)
    with pytest.raises(InputError, match="another spacing"):  # which is there already
        spacing.levels(schedule, spacing.trailing()(schedule, 1000), final_sigma="sigma_min")
