"""Data sets of the hub, or of its cache here: all rows of one, or one file of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alignment.command_line import UserError


@cache
def read_hub(name: str, what: str) -> list[dict]:
    """The train split of a data set on the hub, or in its cache. It is asked for twice: to hash it, and to use it."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"{what} {name} does not exist (and is no owner/name of the hub)")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{what} {name}: the hub needs the package datasets; pip install datasets") from None
    try:
        return datasets.load_dataset(name, split="train").to_list()
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, ValueError, FileNotFoundError) as error:
        raise UserError(f"{what} {name} does not exist here nor on the hub: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:  # it is a script, which datasets runs no more
        raise UserError(f"{what} {name} cannot be had: {str(error).splitlines()[0]}; give one of its files") from None


def hub_file(repository: str, name: str, what: str, remedy: str) -> Path:
    """A file of a data set on the hub, from there or from its cache. Raises UserError, which ends in the remedy."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{what} cannot be had from the hub ({reason}); {remedy}") from None
