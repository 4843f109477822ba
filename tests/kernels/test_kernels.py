"""The depthwise convolutions: operators, choice of implementation, and Triton's kernels."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hidiff import kernels
from hidiff.kernels import operators
from hidiff.kernels.choosing import Chooser, agree
from hidiff.utils.errors import UserError

FUNCTIONS = {
    "plain": (kernels.depthwise_conv3x3, torch.ops.hidiff.depthwise_conv3x3),
    "gated": (kernels.gated_depthwise_conv3x3, torch.ops.hidiff.gated_depthwise_conv3x3),
}
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param][0]


def tensors(dtype=torch.float64, channels=6, bias=True):
    """x, weight and bias, which need gradients."""
    shapes = [(2, channels, 5, 7), (channels, 1, 3, 3), (channels,)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return inputs if bias else [*inputs[:2], None]


@pytest.mark.parametrize("mode", ["auto", "triton"])
@pytest.mark.parametrize("bias", [True, False])
def test_without_a_gpu_the_values_are_eager_ones(function, mode, bias):
    inputs = tensors(bias=bias)
    needed = [t for t in inputs if t is not None]
    expected = function(*inputs, mode="eager")
    grad = torch.randn_like(expected)
    out = function(*inputs, mode=mode)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        torch.autograd.grad(out, needed, grad), torch.autograd.grad(expected, needed, grad)
    )


def test_eager_is_the_networks_formula():
    x, weight, bias = tensors()
    convolved = F.conv2d(x, weight, bias, padding=1, groups=6)
    assert torch.equal(kernels.depthwise_conv3x3(x, weight, bias, mode="eager"), convolved)
    gated = F.gelu(convolved[:, :3]) * convolved[:, 3:]
    assert torch.equal(kernels.gated_depthwise_conv3x3(x, weight, bias, mode="eager"), gated)


def test_float32_weights_serve_bfloat16_data_also_under_autocast(function):
    x, weight, bias = tensors(torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = function(x, weight, bias, mode="auto")
        single = function(x.float(), weight, bias, mode="auto")
    assert (out.dtype, single.dtype) == (torch.bfloat16, torch.float32)
    gradients = torch.autograd.grad(out.float().sum(), [x, weight, bias])
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    # Data, weights and results are rounded to eight digits here: three roundings, and a sum.
    assert float(((out - single).norm() / single.norm()).detach()) < 0.01


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_operators_keep_torchs_rules(name, bias):
    operator = FUNCTIONS[name][1].default
    torch.library.opcheck(operator, (*tensors(bias=bias), "auto"))
    x, weight, bias = (t if t is None else t.detach() for t in tensors(bias=bias))
    grad = torch.randn_like(operator(x, weight, bias, "auto"))
    backward = getattr(torch.ops.hidiff, f"{operator._opname}_backward").default
    torch.library.opcheck(backward, (grad, x, weight, bias, "auto"))


def test_torch_compile_keeps_them_in_one_graph():
    operators = []

    def network(x, weight, bias):
        x = kernels.depthwise_conv3x3(x.relu(), weight, bias, mode="auto")
        x = kernels.gated_depthwise_conv3x3(x, weight, None, mode="auto")
        return kernels.depthwise_conv3x3(torch.cat([x, x], dim=1), weight, bias, mode="auto").sin()

    def backend(graph, example_inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    inputs = tensors()
    torch._dynamo.reset()
    out = torch.compile(network, fullgraph=True, backend=backend)(*inputs)
    expected = network(*inputs)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    )
    assert sum("hidiff" in name for name in operators) == 3


def test_operations_are_counted_as_for_eager(function):
    inputs = [t.to("meta") for t in tensors()]
    counts = []
    for mode in ("eager", "auto"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(*inputs, mode=mode)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 9 * 2 * 6 * 5 * 7


@pytest.fixture
def wide_products_on_the_cpu():
    """Stand-in for the CUDA operator that multiplies bfloat16 into float32."""
    library = torch.library.Library("aten", "IMPL")
    calls = []

    def multiply(a, b, dtype):
        calls.append((a.dtype, dtype))
        return torch.bmm(a.to(dtype), b.to(dtype))

    library.impl("bmm.dtype", multiply, "CPU")
    yield calls
    library._destroy()


def queries_and_keys():
    q, k = (torch.randn(2, 3, 4, 25).bfloat16().requires_grad_() for _ in range(2))
    return q, k, torch.randn(2, 3, 4, 4)


@pytest.mark.parametrize("mode", ["eager", "triton", "auto"])
def test_gram_matrix_is_that_of_exact_products(mode):
    q, k, grad = queries_and_keys()
    gram = kernels.gram_matrix(q, k, mode=mode)
    exact = [t.detach().double().requires_grad_() for t in (q, k)]
    expected = exact[0] @ exact[1].transpose(-2, -1)
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram, expected.float(), rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(gram, (q, k), grad)
    theirs = torch.autograd.grad(expected, exact, grad.double())
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        # Two roundings to eight digits: of the incoming gradient and of the result.
        assert float((one - other).norm() / other.norm()) < 2**-7


@pytest.mark.parametrize(("mode", "used"), [("eager", 0), ("triton", 1), ("auto", 2)])
def test_gram_matrix_takes_tensor_cores_by_mode(mode, used, wide_products_on_the_cpu, monkeypatch):
    monkeypatch.setattr(operators, "_chooser", Chooser(lambda way: way() is None))
    monkeypatch.setattr(operators, "_may_time", lambda x: True)
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: torch.no_grad())
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    q, k, _ = (t.detach() for t in queries_and_keys())
    gram = operators.gram._init_fn(q.flatten(0, 1), k.flatten(0, 1), mode)
    torch.testing.assert_close(gram, operators._gram_wide(q.flatten(0, 1), k.flatten(0, 1)))
    # Both are as fast here: the check, the timing, and then the first one is kept.
    assert len(wide_products_on_the_cpu) == used
    assert set(wide_products_on_the_cpu) <= {(torch.bfloat16, torch.float32)}


def test_gram_matrix_keeps_torchs_rules():
    q, k, _ = queries_and_keys()
    q, k = (t.detach().flatten(0, 1).requires_grad_() for t in (q, k))
    for mode in ("eager", "auto"):
        torch.library.opcheck(torch.ops.hidiff.gram.default, (q, k, mode))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.ops.hidiff.gram(q.to("meta"), k.to("meta"), "auto")
    assert counter.get_total_flops() == 2 * 6 * 4 * 4 * 25


def choose(times, chooser=None, **options):
    """Which of two implementations takes part; times are numbers, or what their call raises."""
    ways = {name: partial(str, name) for name in ("eager", "triton")}

    def time(way):
        found = times[way()].pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    chooser = chooser or Chooser(time)
    return chooser, chooser.run("a", ways, **options)


@pytest.mark.parametrize(("eager", "triton"), [(2.0, 1.0), (1.0, 2.0)])
def test_chooser_times_once_for_each_key(eager, triton):
    winner, loser = ("triton", "eager") if triton < eager else ("eager", "triton")
    times = {"eager": [eager, triton], "triton": [triton, eager]}
    chooser, found = choose(times)
    assert [found, choose(times, chooser)[1]] == [winner, winner]
    assert chooser.run("b", {name: partial(str, name) for name in times}) == loser


TOO_LARGE = torch.OutOfMemoryError("too large")


@pytest.mark.parametrize(
    ("eager", "triton", "agree", "winner"),
    [
        (2.0, TOO_LARGE, True, "eager"),  # it fails
        (2.0, 1.0, False, "eager"),  # its result is another
        (TOO_LARGE, 1.0, False, "triton"),  # the reference fails, so nothing is compared
        (TOO_LARGE, TOO_LARGE, True, "eager"),  # all fail while they are timed
    ],
)
def test_chooser_gives_up_what_fails(eager, triton, agree, winner):
    times = {"eager": [eager], "triton": [triton]}
    with pytest.warns(UserWarning):
        chooser, found = choose(times, agree=lambda reference, result: agree)
    assert found == winner
    assert chooser.chosen == ({} if eager is triton else {"a": winner})


def test_chooser_remembers_nothing_where_it_must_not_time():
    times = {"eager": [2.0], "triton": [1.0]}
    chooser, found = choose(times, may_time=False)
    assert found == "eager"
    assert choose(times, chooser)[1] == "triton"
    assert choose(times, chooser, may_time=False)[1] == "triton"


class OnGpu(torch.Tensor):
    """A CPU tensor that says that it is on the GPU."""

    is_cuda = True


def test_kernels_without_triton(monkeypatch):
    monkeypatch.setattr(operators, "triton_kernels", None)
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: torch.no_grad())
    inputs = [t.detach() for t in tensors(torch.float32)]
    inputs[0] = inputs[0].as_subclass(OnGpu)
    with pytest.raises(UserError):
        operators._run("conv", "triton", inputs[0], inputs)
    out = operators._run("conv", "auto", inputs[0], inputs)
    expected = kernels.depthwise_conv3x3(*inputs, mode="eager")
    torch.testing.assert_close(out, expected)


@pytest.mark.slow("Triton's interpreter takes a millisecond for each operation of each program")
@needs_triton
def test_the_kernels_values_in_tritons_interpreter(root):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    tests = root / "tests/kernels/kernels_interpreted.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env=environment, cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow("compiles kernels to machine code")
@needs_triton
@pytest.mark.parametrize(
    ("capability", "dtype", "channels", "backward"),
    [(80, torch.bfloat16, 254, True), (90, torch.float32, 256, False)],
)
def test_the_kernels_compile_for_gpus(capability, dtype, channels, backward, monkeypatch, tmp_path):
    """Down to machine code, which needs no GPU, with the arguments of real launches."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hidiff.kernels import triton_kernels

    if triton_kernels.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set")
    launches = []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        triton.JITFunction,
        "run",
        lambda kernel, *args, grid, warmup, **options: launches.append((kernel, args, options)),
    )
    x, weight, bias = tensors(torch.float32, channels)
    x = x.detach().to(dtype, memory_format=torch.channels_last)
    if backward:
        triton_kernels.gated_backward(x[:, : channels // 2], x, weight, bias)  # and the plain one
    else:
        triton_kernels.conv(x, weight, bias)
        triton_kernels.gated(x, weight, None)

    names = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
    for kernel, arguments, options in launches:
        signature = dict.fromkeys(kernel.arg_names, "constexpr")
        aligned = {}
        for index, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = names[value.dtype] if is_tensor else "i32"
            if is_tensor:
                aligned[(index,)] = [["tt.divisibility", 16]]
        constants = {name: options.pop(name) for name in kernel.arg_names if name in options}
        assert list(constants) == kernel.arg_names[len(arguments) :]
        source = ASTSource(kernel, signature, constants, aligned)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=options)
        assert len(compiled.asm["cubin"]) > 1000
        assert ".f64" not in compiled.asm["ptx"]  # no constant has become double precision
    assert len(launches) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_agrees_and_mistakes_do_not(dtype):
    x, weight, bias = (t.detach() for t in tensors(torch.float32, channels=64))
    exact = kernels.depthwise_conv3x3(x, weight, bias, mode="eager")
    rounded = exact.to(dtype)
    assert agree(exact, rounded)
    assert agree((exact, weight), (rounded, weight))
    without_tap = weight.clone()
    without_tap[:, :, 2, 2] = 0
    assert not agree(exact, kernels.depthwise_conv3x3(x, without_tap, bias, mode="eager"))
    without_row = rounded.clone()
    without_row[:, :, -1] = 0
    assert not agree(exact, without_row)
    assert not agree((exact, weight), (rounded, 0 * weight))
    nothing = torch.full_like(exact, torch.nan)
    assert not agree(exact, nothing) and not agree(exact, exact / 0)
    assert agree(nothing, exact)  # there is nothing to compare with
