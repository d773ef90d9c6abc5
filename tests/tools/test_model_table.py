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
def shipped():
    return {name: model_table.table_row(name, config) for name, config in networks().items()}


def networks():
    everything = model_table.read_networks(model_table.CONFIGS)
    return {name: config for name, config in everything.items() if name.startswith("efficientdet")}


def test_every_variant_is_shipped_with_its_published_parameters(shipped):
    assert set(shipped) == {f"efficientdet_{variant}" for variant in VARIANTS}
    for variant, row in VARIANTS.items():
        ours = shipped[f"efficientdet_{variant}"]
        assert ours["parameters"] == ours["published_parameters"] == row.parameters
        assert ours["input_size"] == row.image_size
        # TensorFlow's profiler counts more than convolutions.
        assert 0.97 < ours["macs"] / row.macs < 1
    assert shipped["efficientdet_d0"]["macs"] == 2_492_331_520


def test_json_and_table(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG % "d0")
    model_table.main(["--json", "--configs", str(tmp_path)])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["config"], row["parameters"]) for row in rows] == [("small", 3_880_067)]
    assert rows[0]["published_results"] == {"COCO test-dev AP": 34.6, "COCO val AP": 34.3}
    model_table.main(["--configs", str(tmp_path)])
    assert "3,880,067    3,880,067    2.49 G    2.55 G" in capsys.readouterr().out


def test_file_without_a_network(tmp_path):
    (tmp_path / "odd.yaml").write_text("trainer: {max_epochs: 1}")
    with pytest.raises(UserError, match=r"odd.yaml describes no network under model.init_args.network"):
        model_table.read_networks(tmp_path)
