"""Parameters, multiply-accumulates and input size of every configuration: `python -m tools.model_table [--json]`.

Networks are built without memory (on torch's meta device), with 90 classes where the data would say the number (COCO as
EfficientDet counts its classes: raw category ids). Multiply-accumulates are those of convolutions and matrix products
in one forward pass of one image of the network's own input size: what torch's FLOP counter sees, halved. Element-wise
operations, normalisation and pooling are left out. The published figures, where a network has a `published` dictionary,
stand beside ours; automl's multiply-accumulates come from TensorFlow's profiler, which counts more operations (about
2 % for EfficientDet).
"""

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NUM_CLASSES = 90


def build_network(config: dict[str, Any], num_classes: int = NUM_CLASSES) -> nn.Module:
    """A network from its `class_path` and `init_args`, on the meta device.

    Args:
        config: the part of a configuration under `model.init_args.network`.
        num_classes: given to the network if it takes a number of classes and the configuration leaves it to the data.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    config = {"class_path": config["class_path"], "init_args": dict(config.get("init_args") or {})}
    module, _, name = config["class_path"].rpartition(".")
    parameters = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
    if "num_classes" in parameters:
        config["init_args"].setdefault("num_classes", num_classes)
    for key in ("pretrained", "pretrained_backbone"):  # there is nothing to load on the meta device
        if key in parameters:
            config["init_args"][key] = False
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    with torch.device("meta"):
        return instantiate(parser.parse_object({"network": config})).network


def count_macs(network: nn.Module, size: int) -> int:
    """Multiply-accumulates of one forward pass of one RGB image of `size` x `size` pixels."""
    images = torch.empty(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(images)
    return counter.get_total_flops() // 2


def table_row(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Ours beside the published figures (None where nobody published one)."""
    network = build_network(config)
    published = dict(getattr(network, "published", {}))
    return {
        "config": name,
        "network": config["class_path"],
        "input_size": network.image_size,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "published_parameters": published.pop("parameters", None),
        "macs": count_macs(network, network.image_size),
        "published_macs": published.pop("macs", None),
        "published_results": published,
    }


def read_networks(folder: Path) -> dict[str, dict[str, Any]]:
    """Configuration's name -> its network part, for every YAML file of the folder that has one."""
    networks = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text())
            networks[path.stem] = content["model"]["init_args"]["network"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise UserError(f"{path} describes no network under model.init_args.network: correct the file") from error
    return networks


def main(args: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of configurations")
    options = parser.parse_args(args)
    rows = [table_row(name, config) for name, config in read_networks(options.configs).items()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'config':20} {'size':>5} {'parameters':>12} {'published':>12} {'MACs':>9} {'published':>9}  results")
    for row in rows:
        results = ", ".join(f"{name} {value}" for name, value in row["published_results"].items())
        print(
            f"{row['config']:20} {row['input_size']:5} "
            f"{row['parameters']:12,} {_number(row['published_parameters']):>12} "
            f"{_giga(row['macs']):>9} {_giga(row['published_macs']):>9}  {results}"
        )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _giga(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f} G"


if __name__ == "__main__":
    main()
