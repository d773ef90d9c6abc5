from pathlib import Path

import jsonargparse
import pytest
import yaml

import datamodules.segmentation

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "data"


@pytest.mark.parametrize(
    "name", ["shapes_segmentation", "shapes_segmentation_64", "voc_segmentation", "camvid", "coco_segmentation"]
)
def test_a_configuration_shows_every_option(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    kind = getattr(datamodules.segmentation, config["class_path"].removeprefix("datamodules."))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "data")
    options = vars(parser.get_defaults().data)
    # What a run is about, not the dataset: pictures to predict on; the seed is linked to seed_everything.
    assert options.keys() - config["init_args"].keys() == {"images", "seed"}
    parser.parse_object({"data": config["init_args"]})  # raises at a value of the wrong type
    data = kind(**config["init_args"])
    assert "train" in data.splits
    assert (data.batch_size, list(data.scale)) == (config["init_args"]["batch_size"], config["init_args"]["scale"])
