"""Publishes a folder as a model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from heterolora.common.errors import UserError

_LATER = "try again later with: hf upload"


def check_publishing(name: str) -> None:
    """Raise UserError if `name` is no name of a model, or no access token is set. Does not use the network."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"--push-to-hub '{name}' is no name of a model on the hub", "give NAME or OWNER/NAME") from None
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push-to-hub needs the hub, and HF_HUB_OFFLINE is set", "unset it")
    if get_token() is None:
        raise UserError("--push-to-hub needs an access token of the hub", "run hf auth login, or set HF_TOKEN")


def publish(folder: Path, name: str) -> str:
    """Upload all files of a folder as one commit, and return the address of the model.

    The model is created if the hub does not have it. Raises UserError if the hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        model = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=model.repo_id, folder_path=folder, commit_message="Upload by HeteroLoRA")
    except HfHubHTTPError as refusal:
        status = getattr(refusal.response, "status_code", None)
        if status in (401, 403):
            found = f"the hub does not let this token write to {name} (HTTP {status})"
            raise UserError(found, f"use a token with write access; then: hf upload {name} {folder}") from None
        said = refusal.server_message or str(refusal).partition("\n")[0]
        raise UserError(f"the hub refuses {name}: {said}", f"{_LATER} {name} {folder}") from None
    except (HTTPError, OSError, ValueError) as failure:
        lines = str(failure).splitlines() or [type(failure).__name__]
        raise UserError(f"{name} was not uploaded to {api.endpoint}: {lines[0]}", f"{_LATER} {name} {folder}") from None
    return str(model)
