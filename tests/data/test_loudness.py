import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data.readers.audio import PEAK, biquads, measure_loudness, normalize_loudness, read_audio

# BS.1770-5, annex 1, tables 1 and 2: the filters at 48 kHz.
SHELF = (1.53512485958697, -2.69169618940638, 1.19839281085285, -1.69065929318241, 0.73248077421585)
HIGH_PASS = (1.0, -2.0, 1.0, -1.99004745483398, 0.99007225036621)


def tone(db, seconds=4.0, rate=48_000, hertz=997.0):
    """A sine whose peaks lie at `db` of full scale."""
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (10 ** (db / 20) * torch.sin(2 * math.pi * hertz * times)).float()


def test_the_filters_are_those_of_the_standard():
    shelf, high_pass = biquads(48_000)
    assert shelf == pytest.approx(SHELF, abs=1e-9)
    assert high_pass == pytest.approx(HIGH_PASS, abs=1e-9)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.2, 1, 25])
def test_a_full_scale_tone_of_997_hz_has_the_loudness_the_standard_gives(rate, seconds):
    assert measure_loudness(tone(0, seconds, rate), rate) == pytest.approx(-3.01, abs=0.1)
    assert measure_loudness(tone(-20, seconds, rate), rate) == pytest.approx(-23.01, abs=0.1)


def test_quiet_parts_do_not_count():
    """EBU Tech 3341, cases 3 and 4, of one channel, which is 3 dB less loud than the two that it plays."""
    loud, quiet, faint = tone(-23, 60), tone(-36, 10), tone(-72, 10)
    assert measure_loudness(torch.cat([quiet, loud, quiet]), 48_000) == pytest.approx(-26.01, abs=0.1)
    assert measure_loudness(torch.cat([faint, quiet, loud, quiet, faint]), 48_000) == pytest.approx(
        -26.01, abs=0.1
    )


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_it_agrees_with_torchaudio_whose_shelf_is_a_little_lower(rate):
    from torchaudio import functional

    rng = np.random.default_rng(0)
    envelope = np.repeat(rng.uniform(0.001, 0.3, 60), rate // 4)
    samples = torch.from_numpy((rng.normal(0, 0.3, len(envelope)) * envelope).astype(np.float32))
    assert measure_loudness(samples, rate) == pytest.approx(
        float(functional.loudness(samples[None], rate)), abs=0.2
    )


@settings(deadline=None, max_examples=30)
@given(
    seconds=st.floats(0.01, 13),
    level=st.floats(-50, 0),
    target=st.floats(-60, -5),
    rate=st.sampled_from([1000, 8000, 32_000]),
)
def test_a_sound_gets_the_loudness_asked_for_or_the_peak_allowed(seconds, level, target, rate):
    samples = 10 ** (level / 20) * torch.from_numpy(
        np.random.default_rng(0).uniform(-1, 1, max(1, round(seconds * rate))).astype(np.float32)
    )
    if measure_loudness(samples, rate) == -math.inf:
        return
    changed = normalize_loudness(samples, rate, target)
    peak = float(changed.abs().max())
    assert peak <= PEAK + 1e-6
    if peak < PEAK - 1e-6 and measure_loudness(changed, rate) > -69:
        assert measure_loudness(changed, rate) == pytest.approx(target, abs=0.2)
    assert torch.allclose(changed / peak, samples / samples.abs().max(), atol=1e-5)  # nothing is clipped


def test_silence_stays_silence():
    for samples in (torch.zeros(48_000), tone(-90), torch.zeros(1)):
        assert measure_loudness(samples, 48_000) == -math.inf
        assert torch.equal(normalize_loudness(samples, 48_000, -23), samples)


def test_a_sound_can_be_read_at_a_loudness():
    samples = tone(-40, 2, 16_000).numpy()
    assert measure_loudness(read_audio(samples, 16_000, loudness=-23), 16_000) == pytest.approx(-23, abs=0.01)
    assert torch.equal(read_audio(samples, 16_000), torch.from_numpy(samples))
