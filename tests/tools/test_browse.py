import numpy as np
import pytest
from PIL import Image

from tests.helpers import D0, ROOT, SMALL
from tools.browse import main


def test_browse_draws_a_contact_sheet(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    out = tmp_path / "sheet.png"
    assert main(["--config", D0, *SMALL, "--data.augmentation", "mosaic", "--count", "5", "--out", str(out)]) == 0
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (644, 1292, 3)  # four cells and one
    assert str(out) in capsys.readouterr().out


def test_browse_draws_masks(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    out = tmp_path / "sheet.png"
    config = str(ROOT / "configs" / "fcn32s_vgg16.yaml")
    assert main(["--config", config, *SMALL[:3], "--count", "2", "--out", str(out)]) == 0
    sheet = np.asarray(Image.open(out)).reshape(-1, 3)
    assert (sheet == (128, 0, 0)).all(1).sum() > 0 or len(np.unique(sheet, axis=0)) > 50  # colours of classes


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["--data.augmentation", "strong"], "choose one of none, flip"),
        (["--split", "nope"], "has no nope split"),
        (["--count", "0"], "--count is 0"),
        (["--out", "sheet.txt"], "sheet.txt: cannot be written"),
        (["--out", "missing/sheet.png"], "sheet.png: cannot be written"),
    ],
)
def test_browse_names_mistakes(trained, monkeypatch, capsys, mistake, message):
    monkeypatch.chdir(trained.parent)
    assert main(["--config", D0, *SMALL, *mistake]) == 2
    assert message in capsys.readouterr().err
