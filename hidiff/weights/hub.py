"""Models in repositories of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from hidiff.utils.errors import UserError
from hidiff.weights.experiment import MODEL_SUFFIX

HUB = "hf:"
"""How the names of such models begin."""


def fetch_from_hub(text: str) -> Path:
    """The downloaded copy of what a text such as hf:OWNER/NAME names.

    Raises:
        UserError: huggingface_hub is not installed, there is no such place, or no network.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{text}: the Hugging Face Hub needs one more package: pip install huggingface_hub"
        ) from None
    place, _, version = text.removeprefix(HUB).partition("@")
    parts = place.split("/")
    if len(parts) < 2 or not all(parts):
        raise UserError(f"{text}: write hf:OWNER/NAME, as in the repository's address")
    repository, part = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if part.endswith(MODEL_SUFFIX):
            file = huggingface_hub.hf_hub_download(repository, part, revision=version or None)
            return Path(file)
        ends = (MODEL_SUFFIX, ".pth", ".yml", ".yaml")
        wanted = [f"{part}/*{end}" if part else f"*{end}" for end in ends]
        folder = huggingface_hub.snapshot_download(
            repository, revision=version or None, allow_patterns=wanted
        )
    except Exception as error:
        # Of several libraries, and OSError of what lies below them.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{text}: cannot be had from the Hugging Face Hub ({reason}); look at the name, the "
            "network and, for a private repository, at `hf auth login`"
        ) from None
    return Path(folder, part)
