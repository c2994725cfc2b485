"""Push: a checkpoint with its card into a repository on the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from dsmr.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, find_checkpoint, hub_errors, load_checkpoint
from dsmr.sharing.card import About
from dsmr.sharing.exporting import CARD_FILE, export

FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)
"""All that is uploaded."""


class HubError(RuntimeError):
    """The hub did not take what it was given; the message says what to do."""


def push(
    source: str | os.PathLike[str], repository: str, about: About | None = None, *, private: bool | None = None
) -> str:
    """Upload a checkpoint's weights, as they are, its `config.json` and a model card; older ones there are replaced.

    Nothing else in the checkpoint's folder is uploaded, and nothing in the repository is removed.

    Args:
        source: see `dsmr.model.load_checkpoint`; every byte is verified first.
        repository: its id, "owner/name"; made if it is not there.
        about: what the card says besides; None: the card is the `README.md` beside the weights.
        private: whether only its owner may see a repository that is made; None: the owner's default.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError, CheckpointError, ValueError, OSError: see `export`; nothing was uploaded.
        HubError: there is no token, the hub cannot be reached, or it refuses.
    """
    with tempfile.TemporaryDirectory(prefix="dsmr-push-") as temporary:
        folder = Path(temporary)
        if about is None:
            load_checkpoint(source)
            for name in FILES:
                shutil.copyfile(find_checkpoint(source) / name, folder / name)
        else:
            export(source, about).write(folder)
        return _upload(folder, repository, private)


def _upload(folder: Path, repository: str, private: bool | None) -> str:
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise HubError("expected a token for the Hugging Face Hub, got none: run `hf auth login`, or set HF_TOKEN")
    troubles: tuple[type[Exception], ...] = (RuntimeError, ValueError, *hub_errors())
    try:
        url = huggingface_hub.create_repo(repository, private=private, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=[*FILES], commit_message="Upload a dsmr checkpoint"
        )
    except troubles as error:
        raise HubError(_explained(error, repository)) from error
    return str(url)


def _explained(error: BaseException, repository: str) -> str:
    """What went wrong and what to do about it, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of the upload of one file
        error = error.__cause__
    said = " ".join(str(error).split())
    if isinstance(error, HFValidationError):
        return f"expected a repository owner/name, got {repository!r}: {said}"
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hugging Face Hub is not asked while HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, HfHubHTTPError):
        said = error.server_message or said
        advice = {401: "log in anew with `hf auth login`", 403: "take an owner and a token that may write there"}
        status = error.response.status_code
        return f"the Hugging Face Hub refuses {repository} ({status}: {said}): {advice.get(status, 'see what it says')}"
    if isinstance(error, RuntimeError | ValueError):
        return f"the Hugging Face Hub does not take {repository}: {said}"
    return f"the Hugging Face Hub cannot be reached ({said}): try again when there is a connection"
