"""The exported file computes what the model does, at sizes that it was not traced at."""

import numpy as np
import pytest
import torch

from hidiff import UserError
from hidiff.models import build_model
from hidiff.restore.onnx import export_onnx, pooling_matrix

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MODELS = {
    "HI-Diff": {
        "model_type": "HI_Diff_S2",
        "network_g": {
            "type": "Transformer", "dim": 8, "num_blocks": [1, 1, 1, 1], "embed_dim": 8,
            "num_refinement_blocks": 1, "ffn_expansion_factor": 2,
        },
        "network_le_dm": {
            "type": "latent_encoder_gelu", "in_chans": 3, "embed_dim": 8, "block_num": 1,
            "stage": 2,
        },
        "network_d": {
            "type": "denoising", "in_channel": 32, "out_channel": 32, "inner_channel": 32,
            "block_num": 2,
        },
        "diffusion_schedule": {"timesteps": 2},
    },
    "NAFNet": {
        "model_type": "Regression",
        "network_g": {
            "type": "NAFNet", "width": 4, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1],
            "middle_blk_num": 1,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize(("length", "bins"), [(24, 4), (33, 4), (5, 4), (7, 3)])
def test_pooling_by_products_is_adaptive_pooling(length, bins):
    values = torch.rand(1, 2, length, dtype=torch.float64)
    expected = torch.nn.functional.adaptive_avg_pool1d(values, bins)
    torch.testing.assert_close(values @ pooling_matrix(length, bins).double().T, expected)


@pytest.mark.parametrize("name", MODELS)
def test_one_file_serves_all_sizes(tmp_path, name):
    model = build_model(MODELS[name], training=False).eval()
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    default = model.draw_noise(1, torch.Generator().manual_seed(0))
    for height, width in ((128, 64), (72, 200)):
        image = torch.rand(1, 3, height, width)
        noises = [None] if default is None else [None, torch.randn_like(default)]
        for noise in noises:
            inputs = {"image": image.numpy()}
            if noise is not None:
                inputs["noise"] = noise.numpy()
            (found,) = session.run(["restored"], inputs)
            used = default if noise is None else noise
            with torch.no_grad():
                expected = model.predict(image, None, noise=used).clamp(0, 1)
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_a_size_that_does_not_fit_is_refused(tmp_path):
    model = build_model(MODELS["HI-Diff"], training=False)
    with pytest.raises(UserError, match=r"--size 64 65"):
        export_onnx(model, tmp_path / "model.onnx", size=(64, 65))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_named(tmp_path):
    class Uneven(torch.nn.Module):
        pad_multiple = (8, 8)

        def forward(self, image):
            return image if image.sum().item() > 0 else -image

    model = build_model(MODELS["NAFNet"], training=False)
    model.net_g = Uneven()
    with pytest.raises(UserError, match="cannot be exported to ONNX"):
        export_onnx(model, tmp_path / "model.onnx", size=(16, 16))
    assert not list(tmp_path.iterdir())
