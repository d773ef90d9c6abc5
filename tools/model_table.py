"""Parameters and multiply-accumulates of the networks, beside the published figures: `python -m tools.model_table`.

By default the networks are those of `tools/published.yaml`, of the published sizes and numbers of classes; `--configs`
shows the shipped configurations instead, many of which are narrower, for a first run on a small machine.

Networks are built without memory (on torch's meta device). Multiply-accumulates are those of convolutions and matrix
products in one forward pass of one image of the network's own input size: what torch's FLOP counter sees, halved.
Element-wise operations, normalisation and pooling are left out; the second stage of a two-stage detector sees as many
proposals as there are at most. What was published may count more: TensorFlow's profiler finds about 2 % more in
EfficientDet.
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

PUBLISHED = Path(__file__).resolve().parent / "published.yaml"
CONFIGS = PUBLISHED.parent.parent / "configs"
# Where the data would say the number: COCO as EfficientDet counts its classes (raw category ids), VOC's classes with
# the background, BERT's vocabulary.
DEFAULTS = {"num_classes": 90, "vocab_size": 30_522}


def build_network(config: dict[str, Any]) -> nn.Module:
    """A network from its `class_path` and `init_args`, on the meta device.

    Args:
        config: the part of a configuration under `model.init_args.network`; what the data would say and it leaves out
            is taken from `DEFAULTS`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    with torch.device("meta"):
        return instantiate(parser.parse_object({"network": _completed(config)})).network


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(config.get("init_args") or {})
    module, _, name = config["class_path"].rpartition(".")
    parameters = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
    for key, value in DEFAULTS.items():
        if key in parameters:
            arguments.setdefault(key, value)
    for key in ("pretrained", "pretrained_backbone"):  # there is nothing to load on the meta device
        if key in parameters:
            arguments[key] = False
    if "encoder" in arguments:  # of a text classifier
        arguments["encoder"] = _completed(arguments["encoder"])
    return {"class_path": config["class_path"], "init_args": arguments}


def count_macs(network: nn.Module, size: int) -> int:
    """Multiply-accumulates of one forward pass of one RGB image of `size` x `size` pixels."""
    images = torch.empty(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        getattr(network.eval(), "all_stages", network)(images)
    return counter.get_total_flops() // 2


def table_row(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Ours beside the published figures (None where nobody published one; language models have no size of input)."""
    network = build_network(config)
    published = dict(getattr(network, "published", {}))
    size = getattr(network, "image_size", None)
    return {
        "name": name,
        "network": config["class_path"],
        "input_size": size,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "published_parameters": published.pop("parameters", None),
        "macs": None if size is None else count_macs(network, size) or None,  # R-CNN has no pass over the picture
        "published_macs": published.pop("macs", None),
        "published_results": published,
    }


def read_published() -> dict[str, dict[str, Any]]:
    """Name -> network, of the networks as published."""
    return yaml.safe_load(PUBLISHED.read_text())


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
    parser.add_argument(
        "--configs", type=Path, nargs="?", const=CONFIGS, help="the configurations of a folder (default: configs/)"
    )
    options = parser.parse_args(args)
    networks = read_networks(options.configs) if options.configs else read_published()
    rows = [table_row(name, config) for name, config in networks.items()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'network':30} {'size':>5} {'parameters':>13} {'published':>13} {'MACs':>9} {'published':>9}  results")
    for row in rows:
        results = ", ".join(f"{name} {value}" for name, value in row["published_results"].items())
        print(
            f"{row['name']:30} {row['input_size'] or '-':>5} "
            f"{row['parameters']:13,} {_number(row['published_parameters']):>13} "
            f"{_giga(row['macs']):>9} {_giga(row['published_macs']):>9}  {results}"
        )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _giga(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f} G"


if __name__ == "__main__":
    main()
