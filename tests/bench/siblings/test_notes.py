"""The bench of Perceiver TF: what its figures are of."""

from pathlib import Path

import mido
import pytest
import torch

from perceiver_vl import UsageError
from perceiver_vl.bench.siblings.notes import SMALL, WAYS, draw_pieces, measure_notes, onset_f1, recurrent_net
from perceiver_vl.data.synthetic.music import TIMBRES, Note
from perceiver_vl.inference.transcription import load_transcriber, transcribe
from perceiver_vl.media.sound import read_sound
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription


def test_pieces_are_drawn_the_same_again() -> None:
    config = PerceiverTFConfig(**SMALL)
    first, again, test = draw_pieces(3, config, 0), draw_pieces(3, config, 0), draw_pieces(3, config, 0, 1)
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, test.frames)
    assert first.frames.shape == (3, 62, 128)
    assert first.onsets.shape == first.there.shape == (3, 62, 3, 36)
    assert 0 < first.onsets.sum() <= 2 * sum(map(len, first.scores))  # onsets last two frames, within the piece


def test_a_note_counts_where_its_pitch_is_right_and_it_begins_in_time() -> None:
    wanted = [Note(0, 60, 1.0, 1.5), Note(0, 64, 2.0, 2.2)]
    assert onset_f1(wanted, wanted) == (2, 2, 2)
    assert onset_f1([Note(0, 60, 1.04, 1.1), Note(0, 65, 2.0, 2.2)], wanted) == (1, 2, 2)
    assert onset_f1([Note(0, 60, 1.06, 1.5)], wanted) == (0, 1, 2)
    assert onset_f1([], wanted) == (0, 0, 2)


def test_the_baseline_has_as_many_weights() -> None:
    config = PerceiverTFConfig(**SMALL)
    many = PerceiverTFForTranscription(config).num_parameters()
    own = sum(weight.numel() for weight in recurrent_net(config, many).parameters())
    assert 0.8 * many < own <= many


def test_every_way_is_trained_and_the_first_is_kept(tmp_path: Path) -> None:
    report = measure_notes(pieces=4, tested=2, steps=1, ways=list(WAYS), out=tmp_path / "kept")
    assert [one.model for one in report.heard] == [*(f"Perceiver TF, {way}" for way in WAYS), "convolutions and GRU"]
    assert all(list(one.by_instrument) == list(TIMBRES) for one in report.heard)
    model = load_transcriber(tmp_path / "kept")
    samples = read_sound(tmp_path / "kept" / "example.wav", model.config.sample_rate)
    assert transcribe(model, samples).seconds == pytest.approx(10.0)
    assert mido.MidiFile(tmp_path / "kept" / "example-score.mid").length == pytest.approx(10.0, abs=0.1)
    with pytest.raises(UsageError, match="is not empty, name a new folder"):
        measure_notes(pieces=4, tested=2, steps=1, out=tmp_path / "kept")
    with pytest.raises(UsageError, match="ways=none: unknown, choose from added"):
        measure_notes(ways=["none"])
