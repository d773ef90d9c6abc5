import json

import pytest

from errors import UserError
from models.detection.efficientdet import VARIANTS
from tools import model_table

CONFIG = """
model:
  init_args:
    network:
      class_path: models.detection.EfficientDet
      init_args: {variant: %s, pretrained_backbone: true}
"""


@pytest.fixture(scope="module")
def published():
    return {name: model_table.table_row(name, config) for name, config in model_table.read_published().items()}


def test_published_parameters_are_equal(published):
    for name, row in published.items():
        assert row["published_parameters"] is not None, name
        assert row["parameters"] == row["published_parameters"], name


def test_published_macs_are_near(published):
    compared = {name: row for name, row in published.items() if row["published_macs"] is not None}
    assert len(compared) > 8
    for name, row in compared.items():
        assert row["macs"] == pytest.approx(row["published_macs"], rel=0.03), name


def test_every_efficientdet_is_among_them(published):
    names = {f"EfficientDet-{variant.upper().replace('X', 'x')}" for variant in VARIANTS}
    assert names <= published.keys()
    assert published["EfficientDet-D0"]["macs"] == 2_492_331_520


def test_json_and_table(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG % "d0")
    model_table.main(["--json", "--configs", str(tmp_path)])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["parameters"]) for row in rows] == [("small", 3_880_067)]
    assert rows[0]["published_results"] == {"COCO test-dev AP": 34.6, "COCO val AP": 34.3}
    model_table.main(["--configs", str(tmp_path)])
    assert "3,880,067     3,880,067    2.49 G    2.55 G" in capsys.readouterr().out


def test_shipped_configurations_can_be_built():
    networks = model_table.read_networks(model_table.CONFIGS)
    assert len(networks) > 20
    for name, config in networks.items():
        assert sum(p.numel() for p in model_table.build_network(config).parameters()) > 0, name


def test_file_without_a_network(tmp_path):
    (tmp_path / "odd.yaml").write_text("trainer: {max_epochs: 1}")
    with pytest.raises(UserError, match=r"odd.yaml describes no network under model.init_args.network"):
        model_table.read_networks(tmp_path)
