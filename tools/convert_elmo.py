"""ELMo in and out of the format of its authors and of AllenNLP.

    python -m tools.convert_elmo export runs/elmo/RUN/checkpoints/best.ckpt FOLDER

writes `options.json`, `weights.hdf5` and `vocabulary.txt` (the softmax's words, for which the format has no place).

    python -m tools.convert_elmo configure options.json weights.hdf5 > published.yaml
    python train.py --config configs/elmo.yaml --config published.yaml

writes an overlay that trains on from published weights; the softmax begins afresh. For vectors in Python see
`models.language.elmo_weights.elmo_from_files`.
"""

import argparse
from pathlib import Path

import yaml

from errors import UserError
from inference import load
from models.language.elmo_predictor import ElmoPredictor
from models.language.elmo_weights import elmo_from_files, read_options, save_elmo


def export(checkpoint: str, folder: Path) -> None:
    """Write a checkpoint's ELMo, in the authors' format.

    Raises:
        UserError: the checkpoint holds something else.
    """
    model = load(checkpoint, device="cpu")
    if not isinstance(model, ElmoPredictor):
        raise UserError(f"{checkpoint}: holds no ELMo; name a checkpoint of one, not of a {type(model).__name__}")
    folder.mkdir(parents=True, exist_ok=True)
    save_elmo(model.network, folder / "options.json", folder / "weights.hdf5")
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in model.tokenizer.tokens), "utf-8")


def configuration(options: str, weights: str) -> str:
    """An overlay of a configuration for the published files; they are read once, to see that they fit together."""
    elmo_from_files(options, weights)
    network = {key: [list(f) for f in v] if key == "filters" else v for key, v in read_options(options).items()}
    path = str(Path(weights).absolute())
    return yaml.safe_dump({"model": {"init_args": {"network": {"init_args": network}, "weights": path}}})


def main(args: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="from a checkpoint to options.json and weights.hdf5")
    out.add_argument("checkpoint")
    out.add_argument("folder", type=Path)
    into = commands.add_parser("configure", help="print the overlay that starts from published files")
    into.add_argument("options")
    into.add_argument("weights")
    found = parser.parse_args(args)
    if found.command == "export":
        export(found.checkpoint, found.folder)
    else:
        print(configuration(found.options, found.weights), end="")


if __name__ == "__main__":
    main()
