"""A page on this machine: drop photographs, restore, compare, download (`hidiff app`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hidiff.data.dataset import to_tensor
from hidiff.data.image import to_uint8
from hidiff.options import LocalOptions, Precision
from hidiff.restore.image import restore_image
from hidiff.restore.photo import read_photo, to_pixels, write_photo
from hidiff.restore.run import result_ending
from hidiff.utils.errors import UserError
from hidiff.utils.files import read_regular_file
from hidiff.weights.find import FoundModel, load_model

if TYPE_CHECKING:
    import gradio

EXTRA = "pip install gradio"

MAX_FILE_SIZE = 200 * 2**20
"""Bytes of an uploaded file."""

KEPT_SECONDS = 3600
"""After this time uploads and results are removed."""


class PhotoRestorer:
    """Restores uploaded photographs with the model that was used last, or another one.

    Args:
        device: where models compute.
        folder: where results are written, a new folder for each request.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device = device
        self.folder = folder
        self._loaded: tuple[str, FoundModel] | None = None

    def model(self, name: str) -> FoundModel:
        """The model of a name; only the last one stays in memory.

        Raises:
            UserError: there is no such model.
        """
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            self._loaded = (name, load_model(name, device=self.device))
        return self._loaded[1]

    def restore(
        self,
        files: Sequence[str],
        name: str,
        precision: Precision,
        tiles: bool,
        progress: Callable[[float, str], None],
    ) -> tuple[list[str], list[tuple[Any, Any]], list[str]]:
        """Restore photographs one after the other; one that fails does not stop the others.

        Args:
            files: paths of the uploads.
            name: of the model.
            precision: 'fp32' or 'bf16'.
            tiles: restore in tiles, which needs less memory.
            progress: called with the part that is done, 0 to 1, and what is being done.

        Returns:
            Paths of the results, (before, after) pictures (H, W, 3) uint8 of each, and a line a
            photograph.

        Raises:
            UserError: there is no such model.
        """
        loaded = self.model(name)
        local = LocalOptions(mode="tile" if tiles else "none", size=loaded.patch_size or 384)
        place = Path(tempfile.mkdtemp(dir=self.folder))
        results, pictures, lines = [], [], []
        for index, file in enumerate(files):
            source = Path(file)

            def tell(done: float, index: int = index, source: Path = source) -> None:
                progress((index + done) / len(files), source.name)

            try:
                photo = read_photo(read_regular_file(source, MAX_FILE_SIZE), source.name)
                restored = restore_image(
                    loaded.model,
                    to_tensor(photo.pixels),
                    name=source.stem,
                    local=local,
                    precision=precision,
                    progress=tell,
                )
                pixels = to_pixels(restored, photo)
                target = place / f"{source.stem}_restored{result_ending(source)}"
                lost = write_photo(target, photo, pixels)
            except UserError as error:
                lines.append(f"{source.name}: {error}")
                continue
            results.append(str(target))
            pictures.append((to_uint8(photo.pixels), to_uint8(pixels)))
            said = [*photo.notices, *(f"{target.suffix} files do not hold {part}" for part in lost)]
            lines.append(f"{source.name}: restored{''.join(f'; {text}' for text in said)}")
        return results, pictures, lines


def build_app(restorer: PhotoRestorer, models: Sequence[str]) -> gradio.Blocks:
    """The page.

    Args:
        restorer: computes; requests wait for each other.
        models: names to choose from, the first one is chosen; others can be typed in.

    Raises:
        UserError: gradio is not installed.
    """
    gr = import_gradio()

    def work(files, name, chosen, tiles, progress=gr.Progress()):  # type: ignore[no-untyped-def] # noqa: B008
        if not files:
            raise gr.Error("Drop one photograph or more first.")
        try:
            results, pictures, lines = restorer.restore(
                files, name, chosen, tiles, lambda done, text: progress(done, desc=text)
            )
        except UserError as error:
            raise gr.Error(str(error)) from None
        names = [Path(result).name for result in results]
        shown = gr.Dropdown(
            choices=list(zip(names, range(len(names)), strict=True)),
            value=0 if names else None,
            visible=len(names) > 1,
        )
        return results, pictures, "\n".join(lines), shown, pictures[0] if pictures else None

    def show(index, pictures):  # type: ignore[no-untyped-def]
        return None if index is None or not pictures else pictures[index]

    with gr.Blocks(
        title="HI-Diff", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(
            "# Deblur photographs\n"
            "Everything is computed on this machine; nothing is sent anywhere."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                files = gr.File(
                    label="Photographs", file_count="multiple", type="filepath", height=160
                )
                name = gr.Dropdown(
                    list(models), value=models[0], label="Model", allow_custom_value=True
                )
                chosen = gr.Radio(
                    ["fp32", "bf16"], value="fp32", label="Precision (bf16 needs less memory)"
                )
                tiles = gr.Checkbox(label="Restore in tiles (for little memory)")
                button = gr.Button("Restore", variant="primary")
            with gr.Column(scale=2, min_width=300):
                slider = gr.ImageSlider(label="Blurry | restored", format="png", interactive=False)
                which = gr.Dropdown(label="Show", visible=False)
                said = gr.Textbox(label="What was done", lines=2, interactive=False)
                results = gr.File(label="Results, with their metadata", interactive=False)
        pictures = gr.State([])
        button.click(
            work,
            [files, name, chosen, tiles],
            [results, pictures, said, which, slider],
            concurrency_limit=1,
            concurrency_id="restore",
        )
        which.change(show, [which, pictures], slider)
    return page


def import_gradio() -> Any:
    """The package gradio, without its telemetry.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError:
        raise UserError(f"the app needs one more package: {EXTRA}") from None
    return gradio


@contextmanager
def serve(models: Sequence[str], device: torch.device, port: int | None = None) -> Iterator[str]:
    """Serve the page on 127.0.0.1 within the block; uploads and results are removed after it.

    Args:
        models: see `build_app`.
        device: where models compute.
        port: of the page; None takes a free one from 7860 on.

    Yields:
        The page's address.

    Raises:
        UserError: gradio is not installed, or the port is in use.
    """
    gr = import_gradio()
    with tempfile.TemporaryDirectory(prefix="hidiff_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        page = build_app(PhotoRestorer(device, Path(folder)), models)
        try:
            page.queue(max_size=50).launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_FILE_SIZE,
                allowed_paths=[folder],
                footer_links=[],
                # Fonts of this machine: the page asks no other for anything.
                theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )
        except OSError as error:
            raise UserError(f"--port {port}: the page cannot be served ({error})") from None
        try:
            yield str(page.local_url)
        finally:
            page.close()
