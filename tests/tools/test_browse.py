import numpy as np
from PIL import Image

from tests.helpers import D0, SMALL
from tools.browse import main


def test_browse_draws_a_contact_sheet(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    out = tmp_path / "sheet.png"
    assert main(["--config", D0, *SMALL, "--data.augmentation", "mosaic", "--count", "5", "--out", str(out)]) == 0
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (644, 1292, 3)  # four cells and one
    assert str(out) in capsys.readouterr().out


def test_browse_names_mistakes(tmp_path, capsys):
    assert main(["--config", D0, *SMALL, "--data.augmentation", "strong"]) == 2
    assert "choose one of none, flip" in capsys.readouterr().err
