"""Whether W&B runs online or offline, found out before it starts: once it has tried, it does not let go."""

import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import wandb
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

PATIENCE = 4.0  # seconds that the server is given to answer
# W&B renamed its server: a key that `wandb login` kept for one name serves for the other.
SERVERS = {"api.wandb.ai", "api.forge.coreweave.com"}


def decide_mode(asked: str | None = None) -> str:
    """`online` with an API key and a server that answers, else `offline`; never asks anybody.

    Args:
        asked: a mode of W&B that settles it, except that nothing is online without an API key. The environment's
            WANDB_MODE comes before it, and `wandb offline` in this directory after it.
    """
    settings = wandb.setup().settings  # of the environment and W&B's settings files
    asked = os.environ.get("WANDB_MODE") or asked or (settings.mode if settings.mode != "online" else None)
    if asked not in (None, "online"):
        return asked
    if not (settings.api_key or settings.identity_token_file or os.environ.get("WANDB_API_KEY") or _kept_key(settings)):
        say = rank_zero_warn if asked else rank_zero_info
        say("W&B logs offline: there is no API key (`wandb login` sets one)")
        return "offline"
    fault = None if asked else find_fault(settings.base_url)
    if fault:
        rank_zero_info(f"W&B logs offline: {settings.base_url} does not answer ({fault})")
        return "offline"
    return "online"


def find_fault(url: str, patience: float = PATIENCE) -> str | None:
    """Why a server does not answer HTTP, through the proxy if one is configured; None if it does.

    An open connection is not enough: behind a firewall that swallows everything W&B would wait for a minute. A thread
    asks, since looking up a name cannot be given a time limit.
    """
    faults: list[str | None] = [f"nothing within {patience:g} seconds"]

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=patience).close()
            faults[0] = None
        except urllib.error.HTTPError:  # an answer, too
            faults[0] = None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            # W&B trusts other certificates than Python does: let it see for itself.
            faults[0] = None if isinstance(reason, ssl.SSLCertVerificationError) else str(reason)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return faults[0]


def _kept_key(settings: wandb.Settings) -> bool:
    """Whether `wandb login` kept a key for the server."""
    server = urlparse(settings.base_url).netloc
    for file in filter(None, (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")):
        try:
            known = netrc.netrc(Path(file).expanduser())
        except (OSError, ValueError, netrc.NetrcParseError):
            continue
        return any(known.authenticators(name) for name in (SERVERS if server in SERVERS else {server}))
    return False
