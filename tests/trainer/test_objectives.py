"""Objectives that no golden run has train, are evaluated and write a card."""

import pytest
from support import tiny_run

RUNS = {
    "decoder": (
        "model.vocabulary_size=260",
        "objective.kind=mixture",
        'objective.parts=[{"kind": "prefix"}, {"kind": "fill_in_the_middle", "weight": 3}]',
    ),
    "encoder_decoder": (
        *tiny_run.FAMILIES["encoder_decoder"],
        "model.vocabulary_size=281",
        "tokenizer.sentinels=20",
        "objective.kind=mixture_of_denoisers",
    ),
}


@pytest.mark.parametrize(
    "family", ["decoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)]
)
def test_thirty_steps_lower_the_loss(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_run.write_recipe(tmp_path)
    edits = ("training.steps=30", "model.dropout=0", "model.layers=1", "checkpoint.every_steps=0")
    assert tiny_run.run(*RUNS[family], *edits, "evaluation.every_steps=30") == 0

    rows = tiny_run.rows()
    losses = [value for _, value in rows["train/loss"]]
    # Both begin near the entropy of a uniform choice (5.6) and know the letters' frequencies (2.9)
    # after 30 steps.
    assert losses[0] > 5 and max(losses[-5:]) < 3.5
    assert rows["eval/loss"][-1][1] < 3.5
    assert "Objective:" in (tmp_path / "runs/tiny/README.md").read_text()
