"""The place in the training data, restored also where Lightning forgets to."""

from pytorch_lightning import Callback, LightningModule, Trainer


class LoaderState(Callback):
    """Loads the training loader's state if Lightning 2.6 left it aside.

    The Trainer saves `state_dict()` of the training loader in every checkpoint, but loads it only from those written
    within an epoch: a run that goes on from the end of an epoch would read the first epoch's order again. Lightning
    also leaves it aside when something asked for `Trainer.estimated_stepping_batches` (Lightning #20550).
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load what is pending, and begin the iteration anew: it was begun before."""
        loop = trainer.fit_loop
        if loop._combined_loader_states_to_load:
            loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
            loop._combined_loader_states_to_load = []
            iter(loop._data_fetcher)
