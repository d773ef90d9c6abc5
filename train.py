"""Train, validate, test or use any system of this template, from a configuration file.

    python train.py --config configs/efficientdet_d0.yaml
    python train.py --config configs/efficientdet_d0.yaml --data configs/data/coco.yaml --trainer.devices 4
    python train.py test --config configs/efficientdet_d0.yaml --ckpt_path best
    python train.py predict --config configs/efficientdet_d0.yaml --ckpt_path best --data.images street.jpg

The first word (fit, validate, test, predict) defaults to fit; `--help` and `fit --help` list all options.
"""

import logging
import os
import sys
import warnings

# Noise that no user can act on: deprecations inside of Lightning and its advertisements.
warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")
warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")  # predictions carry their own
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.getMessage())
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing albumentations would ask the network

from pytorch_lightning.utilities.exceptions import SIGTERMException

from errors import UserError
from lightning_modules.cli import TriptychCLI


def main(args: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 when all went well, 2 for a user's mistake, 143 when SIGTERM ended a training (a checkpoint was written).

    Args:
        args: the words of the command line; `sys.argv[1:]` if none are given.
    """
    try:
        TriptychCLI(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SIGTERMException:
        # Lightning's launcher kills rank 0 as soon as another process reports a failure.
        return 143 if os.environ.get("LOCAL_RANK", "0") == "0" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
