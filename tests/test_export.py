"""Unfolded layers under torch.fx and in ONNX; folded ones are in test_folding."""

import copy
import pickle

import onnxruntime
import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations

from tests.placement import DEVICE
from triton_dirac import DiracConv1d, DiracConv2d, DiracConv3d, functional, prepared
from triton_dirac.models import diracnet

MODULES = {1: DiracConv1d, 2: DiracConv2d, 3: DiracConv3d}
SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}


def tiled(dims):
    layer = MODULES[dims](8, 4, 3, 1)
    eye = nn.init.dirac_(torch.empty(4, 4, *(3,) * dims))
    layer.load_state_dict(layer.state_dict() | {"delta": eye.repeat(1, 2, *(1,) * dims), "alpha": torch.tensor([5.0])})
    return layer


LAYERS = {
    "plain": lambda dims: MODULES[dims](8, 4, 3, stride=2),
    "groups": lambda dims: MODULES[dims](8, 4, 3, 1, groups=2, bias=False),
    "padded": lambda dims: MODULES[dims](8, 4, 3, 1, padding_mode="replicate"),
    "same": lambda dims: MODULES[dims](8, 12, 2, "same"),
    "tiled": tiled,
    "weight norm": lambda dims: parametrizations.weight_norm(MODULES[dims](8, 4, 3)),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dims", MODULES)
def test_symbolic_trace(dims, make):
    layer = make(dims)
    image = torch.randn(2, 8, *SIZES[dims])
    traced = fx.symbolic_trace(layer)
    assert torch.equal(traced(image), layer(image))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(traced(image), layer(image))
    traced(image).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    for twin in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert torch.equal(twin(image), layer(image))


@pytest.mark.parametrize("dims", MODULES)
def test_symbolic_trace_in_low_precision_and_within_prepared(dims):
    layer = MODULES[dims](8, 4, 3, dtype=torch.bfloat16)
    image = torch.randn(2, 8, *SIZES[dims]).bfloat16()
    with prepared(layer):
        expected = layer(image)
        traced = fx.symbolic_trace(layer)
    with torch.no_grad():
        layer.weight.mul_(-1)  # not the filters that were ready while it was traced
    assert not torch.equal(layer(image), expected)
    assert torch.equal(traced(image), layer(image))


def test_symbolic_trace_of_a_net():
    net = diracnet(10, 1).eval()
    image = torch.randn(2, 3, 16, 16)
    traced = fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes].count(functional.dirac_conv2d) == 6
    assert torch.equal(traced(image), net(image))


def in_onnxruntime(model, image, path, **options):
    torch.onnx.export(model, (image[:2],), path, dynamo=True, verbose=False, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: image.cpu().numpy()})
    return [torch.from_numpy(output).to(image.device) for output in outputs]


class SideBySide(nn.Module):
    """Layers of the same input: the exporter's time is by the export and not by the layer."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return [layer(x) for layer in self.layers]


@pytest.mark.slow
@pytest.mark.parametrize("dims", MODULES)
def test_onnx(dims, tmp_path):
    """Writing into a view of the filters stopped the exporter."""
    model = SideBySide(make(dims) for make in LAYERS.values()).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.beta.uniform_(0.5, 1)
    image = torch.randn(2, 8, *SIZES[dims])
    for name, mine, expected in zip(
        LAYERS, in_onnxruntime(model, image, tmp_path / "layers.onnx"), model(image), strict=True
    ):
        torch.testing.assert_close(mine, expected, msg=lambda said, name=name: f"{name}: {said}")


def test_onnx_of_a_net_for_any_batch(tmp_path):
    net = diracnet(10, 1).eval()
    image = torch.randn(5, 3, 16, 16)
    batch = torch.export.Dim("batch", min=1)
    (output,) = in_onnxruntime(net, image, tmp_path / "net.onnx", dynamic_shapes=({0: batch},))
    torch.testing.assert_close(output, net(image), rtol=1e-4, atol=1e-5)


def test_onnx_takes_torch_operators_where_auto_would_take_triton(tmp_path):
    class Asks(nn.Module):
        def forward(self, x):
            chosen.append(functional.use_triton("auto", torch.float32, torch.device("cuda")))
            return x + 1

    chosen = []
    torch.onnx.export(Asks().eval(), (torch.ones(1),), tmp_path / "asks.onnx", dynamo=True, verbose=False)
    assert chosen
    assert not any(chosen)


def test_onnx_of_the_triton_backend_names_the_operator(tmp_path):
    layer = DiracConv2d(4, 4, 3, backend="triton").eval()
    with pytest.raises(Exception, match=r"triton_dirac[.:]+dirac_conv2d"):
        torch.onnx.export(layer, (torch.randn(1, 4, 8, 8),), tmp_path / "x.onnx", dynamo=True, verbose=False)


def test_an_exported_program_has_no_node_for_each_filter():
    layer, image = DiracConv2d(64, 64, 3).eval(), torch.randn(1, 64, 4, 4)
    program = torch.export.export(layer, (image,))
    assert len(program.graph.nodes) < 60
    torch.testing.assert_close(program.module()(image), layer(image))
