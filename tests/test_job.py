"""The whole job: what it says of the images it was given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from repzoo import job, verbs
from repzoo.artifact import Step
from repzoo.data.source import open_source
from repzoo.errors import InputError
from repzoo.verbs import QuantizeOptions

QUICK = job.JobOptions(QuantizeOptions(images=20, force=True), seconds=0.2)


def test_images_that_the_model_was_trained_on_are_said(digits_folder: Path) -> None:
    source = open_source(digits_folder)
    name = source.join(*source.parts).name
    model = verbs.load("repghostnet_050.digits")
    trained = dataclasses.replace(model, steps=(*model.steps, Step("train", "0", {"data": name})))
    remarks = [job.run(one, source, QUICK).remarks for one in (model, trained)]
    assert not any("trained on" in said for said in remarks[0])
    assert remarks[1][0].startswith(f"the model was trained on {name}")


def test_what_cannot_be_written_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> list[Path]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, "_write_all", full)
    result = job.JobResult({}, (), {}, ())
    with pytest.raises(InputError, match=r"No space left.*give another place"):
        job.write(result, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
