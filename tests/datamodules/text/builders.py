from types import SimpleNamespace

from datamodules.text import TextFiles


def files(folder, train="a b c d e f\n", **splits):
    """A corpus of a text per split."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for split, text in {"train": train, **splits}.items():
        names[split] = f"{split}.txt"
        (folder / names[split]).write_text(text)
    return TextFiles(str(folder), **names)


def attached(data, **changes):
    """The data module as a Trainer sees it."""
    usual = {
        "overfit_batches": 0,
        "limit_train_batches": 1.0,
        "current_epoch": 0,
        "global_rank": 0,
        "world_size": 1,
        "default_root_dir": ".",
    }
    data.trainer = SimpleNamespace(**usual | changes)
    return data
