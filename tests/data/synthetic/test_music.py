"""Music whose notes are known."""

import numpy as np
import pytest

from perceiver_vl.data.synthetic.music import TIMBRES, Note, draw_score, render_score

RATE = 8000


def test_a_score_stays_within_its_time_its_pitches_and_its_instruments() -> None:
    for seed in range(20):
        notes = draw_score(np.random.default_rng(seed), 3.0, lowest=50, pitches=12)
        assert notes == sorted(notes, key=lambda note: (note.start, note.instrument, note.pitch))
        assert {note.instrument for note in notes} <= set(range(len(TIMBRES)))
        assert all(50 <= note.pitch < 62 and 0 <= note.start < note.end <= 3.0 for note in notes)
        for instrument in range(len(TIMBRES)):
            own = [note for note in notes if note.instrument == instrument]
            for one in own:  # at most a chord of two at a time
                assert sum(other.start <= one.start < other.end for other in own) <= 2


def test_the_same_chance_makes_the_same_sound() -> None:
    notes = draw_score(np.random.default_rng(1), 1.0)
    first, again = (render_score(notes, 1.0, RATE, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (RATE,)
    assert first.dtype == np.float32
    assert np.abs(first).max() == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("instrument", range(len(TIMBRES)))
def test_a_note_sounds_at_its_pitch_from_its_beginning(instrument: int) -> None:
    sound = render_score([Note(instrument, 69, 0.5, 0.9)], 1.0, RATE, np.random.default_rng(0))
    before, during = sound[: RATE // 2], sound[RATE // 2 : int(0.9 * RATE)]
    assert np.square(before).mean() < 0.05 * np.square(during).mean()
    spectrum = np.abs(np.fft.rfft(during * np.hanning(len(during))))
    frequencies = np.fft.rfftfreq(len(during), 1 / RATE)
    near = [np.abs(frequencies - number * 440) < 15 for number in range(1, 8)]
    assert np.square(spectrum[np.any(near, axis=0)]).sum() > 0.7 * np.square(spectrum).sum()


def test_timbres_differ() -> None:
    sounds = [render_score([Note(one, 60, 0.0, 0.8)], 1.0, RATE, np.random.default_rng(0)) for one in range(3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.corrcoef(np.abs(np.fft.rfft(sounds[first])), np.abs(np.fft.rfft(sounds[second])))[0, 1] < 0.95


def test_silence_is_silent_but_for_noise() -> None:
    assert np.isfinite(render_score([], 0.5, RATE, np.random.default_rng(0))).all()
