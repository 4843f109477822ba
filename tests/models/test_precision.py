"""Precision and activation checkpointing: what changes, and what must not."""

import copy

import pytest
import torch
from small_data import train_options

from hidiff import build_model
from hidiff.archs import restormer
from hidiff.benchmark.timing import bytes_for_backward
from hidiff.models.precision import precision
from hidiff.options import parse_options
from hidiff.utils.errors import UserError


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    return build_model(train_options(tmp_path, 2)).train()


def batch(size=32):
    generator = torch.Generator().manual_seed(7)
    lq, gt = torch.rand(2, 2, 3, size, size, generator=generator)
    return lq, gt, torch.randn(2, 16, 32, generator=generator)


def losses_and_gradients(model):
    lq, gt, noise = batch()
    losses = model(lq, gt, noise=noise)
    trained = [p for p in model.parameters() if p.requires_grad]
    return losses, torch.autograd.grad(sum(losses.values()), trained)


def watch(model):
    """The dtype of every module's output, by name, once the model has run."""
    dtypes = {}

    def hook(name):
        def note(module, inputs, output):
            if isinstance(output, torch.Tensor):
                dtypes[name] = output.dtype

        return note

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    return dtypes


def test_bf16_is_where_it_is_meant_and_nowhere_else(model, monkeypatch):
    attentions = []
    attend = restormer.Attention._attention

    def note(self, q, k):
        attentions.append((q.dtype, attend(self, q, k).dtype))
        return attend(self, q, k)

    monkeypatch.setattr(restormer.Attention, "_attention", note)
    dtypes = watch(model)
    with precision(model, "bf16"):
        losses, gradients = losses_and_gradients(model)
    features = [
        name
        for name in dtypes
        if name.startswith("net_g.")
        and (".blocks." in name or "reduce_chan" in name or ".body" in name)
        # The prior's own maps and what it is turned into stay float32.
        and not name.endswith(("ln1", "ln2"))
    ]
    assert len(features) > 60
    assert {dtypes[name] for name in features} == {torch.bfloat16}
    others = [name for name in dtypes if not name.startswith("net_g.")]
    others += ["net_g.patch_embed", "net_g.output", "net_g.down_1", "net_g.down_2"]
    others += [name for name in dtypes if name.endswith(("him.kv", "him.norm2", "ln1", "ln2"))]
    assert len(others) > 40
    assert {dtypes[name] for name in others} == {torch.float32}
    assert {q for q, _ in attentions} == {torch.bfloat16}
    assert {out for _, out in attentions} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_bf16_is_close_to_float64(model):
    """Within what 8 bits of mantissa allow; TF32 does nothing on a CPU."""
    reference_model = copy.deepcopy(model).double()
    lq, gt, noise = batch()
    expected = reference_model(lq.double(), gt.double(), noise=noise.double())
    reference = reference_model.restore(lq.double(), noise=noise.double())
    errors = {}
    for name in ("fp32", "tf32", "bf16"):
        with precision(model, name):
            losses, _ = losses_and_gradients(model)
            restored = model.restore(lq, noise=noise)
        # Of what the network adds to the image, not of the image.
        residual, ours = reference - lq.double(), restored.double() - lq.double()
        errors[name] = float((ours - residual).norm() / residual.norm())
        assert restored.dtype == torch.float32
        for key, value in expected.items():
            limit = {"bf16": 5e-3}.get(name, 1e-5)
            assert losses[key].item() == pytest.approx(value.item(), rel=limit)
    assert errors["fp32"] < 1e-5
    assert errors["tf32"] == errors["fp32"]
    assert 1e-4 < errors["bf16"] < 2e-2


def test_the_prior_is_that_of_float32(model):
    """The chain multiplies the denoiser's error by up to 174 in the released model."""
    lq, gt, noise = batch()
    with precision(model, "fp32"):
        expected = model(lq, gt, noise=noise)["l_pix_diff"]
    with precision(model, "bf16"):
        assert torch.equal(model(lq, gt, noise=noise)["l_pix_diff"], expected)


@pytest.mark.parametrize(("name", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_the_process_is_left_as_it_was(model, name, tf32):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with pytest.raises(KeyError), precision(model, name):
        assert [flag.allow_tf32 for flag in flags] == [tf32, tf32]
        raise KeyError
    assert [flag.allow_tf32 for flag in flags] == before
    assert model.net_g.feature_dtype is None


def test_checkpointing_keeps_less_and_changes_nothing(model):
    def saved():
        lq, gt, noise = batch()
        return bytes_for_backward(lambda: model(lq, gt, noise=noise), model)

    expected, reference = losses_and_gradients(model)
    kept = {(): saved()}
    for levels in ((1,), (1, 2), (1, 2, 3, 4)):
        model.net_g.recompute_levels(levels)
        losses, gradients = losses_and_gradients(model)
        for name, value in expected.items():
            assert torch.equal(losses[name], value)
        for ours, theirs in zip(gradients, reference, strict=True):
            assert torch.equal(ours, theirs)
        kept[levels] = saved()
    sizes = list(kept.values())
    assert sizes == sorted(sizes, reverse=True)
    assert kept[(1,)] < 0.6 * kept[()]
    model.net_g.recompute_levels(())
    assert saved() == kept[()]


@pytest.mark.parametrize(
    ("section", "option", "value", "message"),
    [
        ("train", "precision", "fp16", "^train.precision: "),
        ("val", "precision", "half", "^val.precision: "),
        ("train", "activation_checkpointing", [5], "^train.activation_checkpointing"),
        ("train", "compile", "yes please", "train.compile"),
    ],
)
def test_wrong_options_are_named(tmp_path, section, option, value, message):
    options = train_options(tmp_path, 2)
    options[section][option] = value
    with pytest.raises(UserError, match=message):
        parse_options(options)
