"""Folding: batch norms go into the convolutions before them, activations run along with them.

On the processor a convolution is one call of oneDNN: its weights packed once, its bias in
fp32, the ReLU after it in the same pass over memory. torch has these calls for its own compiler;
where they are missing or a network can't be traced, it runs as it is.

In bf16 the weights are rounded so that each filter keeps its sum. Rounded one by one, they change
it, and with it the mean of every feature map: through fifty layers that costs MobileNetV2 ten times
more accuracy than the rounding of activations does. Carrying each weight's rounding error on to the
next one (error diffusion, as Floyd and Steinberg 1976 do for grey levels) keeps the sum, at no cost
when the network runs.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

_SUMS = (operator.add, operator.iadd, torch.add)


def fold(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """The same function with each batch norm inside the convolution before it.

    Parameters
    ----------
    network : nn.Module
        In eval mode, float32.
    example : float32 tensor of shape (n, 3, h, w)
        What both are compared on.

    Returns
    -------
    nn.Module
        A GraphModule; or `network` itself where it has no convolution, can't be traced, or where
        the traced one gives other vectors.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return network
    try:
        graph = fx.symbolic_trace(network)
        _fold_norms(graph)
        wanted, got = network(example), graph(example)
    except Exception:  # tracing runs the network's own code, which may raise anything
        return network
    close = wanted.shape == got.shape and torch.allclose(
        wanted, got, rtol=1e-3, atol=_scale(wanted)
    )
    return graph if close else network


def _scale(vectors: torch.Tensor) -> float:
    return 1e-4 * float(vectors.abs().max())


def _fold_norms(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.args else None
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node):
            continue
        conv = modules.get(before.target) if before.op == "call_module" else None
        if type(conv) is not nn.Conv2d or len(before.users) > 1 or _called_often(graph, before):
            continue
        _replace(graph, str(before.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _called_often(graph: fx.GraphModule, node: fx.Node) -> bool:
    return [other.target for other in graph.graph.nodes].count(node.target) > 1


def _replace(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(graph.get_submodule(parent), last, module)


def diffuse_weights(network: nn.Module) -> nn.Module:
    """Weights of convolutions and linear layers that bf16 holds exactly, still as float32."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = diffuse(module.weight.data).float()
    return network


def round_weights(network: nn.Module) -> nn.Module:
    """Cast to bf16, convolutions and linear layers by `diffuse`; batch norms stay in fp32."""
    for module in diffuse_weights(network).modules():
        if isinstance(module, nn.BatchNorm2d):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.bfloat16)
    return network


def fuse_for_cpu(
    graph: nn.Module, example: torch.Tensor, dtype: torch.dtype, batch_size: int
) -> nn.Module:
    """A folded network with fused convolutions, in place.

    Parameters
    ----------
    graph : nn.Module
        From `fold`, float32. One that is no GraphModule is only cast.
    example : float32 tensor of shape (1, 3, h, w)
    dtype : torch.dtype
        float32 or bfloat16: what it will compute in.
    batch_size : int
        Images in a forward pass; weights are packed for that many.
    """
    finish = round_weights if dtype is torch.bfloat16 else nn.Module.float
    if not isinstance(graph, fx.GraphModule) or not can_fuse(dtype):
        return finish(graph)
    from torch.fx.passes.shape_prop import ShapeProp

    ShapeProp(graph).propagate(example)
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if type(conv) is nn.Conv2d and _plain(conv):
            _fuse(graph, node, conv, modules, dtype, batch_size)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return finish(graph)  # a fused one has no parameters that this could cast


@cache
def can_fuse(dtype: torch.dtype) -> bool:
    """Whether oneDNN runs fused convolutions in this dtype on this processor.

    Found by running one, since instruction sets, torch's versions and oneDNN's own limits
    (ONEDNN_MAX_CPU_ISA) all decide about it: bf16, for instance, needs AVX-512 or newer.
    """
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not there:
        return False
    conv = nn.Conv2d(1, 1, 1).requires_grad_(False)
    try:
        _FusedConv(conv, "relu", [], [1, 1, 1, 1], dtype)(torch.zeros(1, 1, 1, 1, dtype=dtype))
    except (RuntimeError, AttributeError):  # refused, or a torch without these calls
        return False
    return True


class _FusedConv(nn.Module):
    """A convolution, then a sum with another map, then an activation, each of the two if asked.

    The bias is in fp32 also where all else isn't, but for a sum: there oneDNN wants it alike.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        activation: str,
        limits: list[float],
        shape: list[int],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        weight = conv.weight.data if dtype is torch.float32 else diffuse(conv.weight.data, dtype)
        where: Any = (conv.padding, conv.stride, conv.dilation, conv.groups)
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self._weight = pack(weight.to_mkldnn(), *where, shape)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.data
        self._rest = (bias.float(), *where, activation, limits, "")
        after = None if activation == "none" else activation
        self._rest_of_sum = (bias.to(dtype), *where, "add", 1.0, after, [], "")

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> Any:
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self._weight, *self._rest)
        run = torch.ops.mkldnn._convolution_pointwise.binary
        return run(x, other, self._weight, *self._rest_of_sum)


def _plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _fuse(
    graph: fx.GraphModule,
    node: fx.Node,
    conv: nn.Conv2d,
    modules: dict[str, nn.Module],
    dtype: torch.dtype,
    batch_size: int,
) -> None:
    other, chain = _summand(graph, node), [node]  # the chain is what becomes one call
    if other is not None:
        chain += node.users
    users = list(chain[-1].users)
    found = _activation(users[0], modules) if len(users) == 1 else None
    if other is not None and found != ("relu", []):
        # A sum takes no other activation behind it. Its bias is rounded as the maps are, for which
        # in bf16 the sum alone doesn't pay.
        found = None
        if dtype is not torch.float32:
            other, chain = None, [node]
    if found is not None:
        chain += users
    activation, limits = found or ("none", [])
    source = node.args[0]
    if not isinstance(source, fx.Node) or "tensor_meta" not in source.meta:
        return
    shape = [batch_size, *source.meta["tensor_meta"].shape[1:]]
    fused = _FusedConv(conv, activation, limits, shape, dtype)
    if other is not None and not _takes_sum(fused, source, other, dtype):
        return
    name = f"fused_{str(node.target).replace('.', '_')}_{node.name}"
    graph.add_module(name, fused)
    with graph.graph.inserting_after(node):
        new = graph.graph.call_module(name, (source,) if other is None else (source, other))
    new.meta = dict(chain[-1].meta)
    chain[-1].replace_all_uses_with(new)
    for done in reversed(chain):
        graph.graph.erase_node(done)


def _summand(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What is added to the output of `node`, if that is all that it is for.

    None where the other map is of another shape, or made only after `node`.
    """
    add = next(iter(node.users)) if len(node.users) == 1 else None
    if add is None or add.op != "call_function" or add.target not in _SUMS or add.kwargs:
        return None
    others = [one for one in add.args if one is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    other, order = others[0], list(graph.graph.nodes)
    shapes = [getattr(one.meta.get("tensor_meta"), "shape", None) for one in (node, other)]
    if None in shapes or shapes[0] != shapes[1]:
        return None
    return other if order.index(other) < order.index(node) else None


def _takes_sum(
    fused: _FusedConv, source: fx.Node, other: fx.Node, dtype: torch.dtype
) -> bool:  # fmt: skip
    """Whether oneDNN adds maps of these shapes: that of torch 2.11 can't if they are 1 x 1."""
    maps = [torch.zeros(one.meta["tensor_meta"].shape, dtype=dtype) for one in (source, other)]
    try:
        fused(*(one.to(memory_format=torch.channels_last) for one in maps))
    except RuntimeError:
        return False
    return True


def _activation(
    node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[str, list[float]] | None:  # fmt: skip
    """The fused name of what this node does, and its limits; None where it does more."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        if isinstance(module, nn.ReLU6):
            return "hardtanh", [0.0, 6.0]
        return ("relu", []) if isinstance(module, nn.ReLU) else None
    return (
        ("relu", []) if node.op == "call_function" and node.target in (F.relu, torch.relu) else None
    )


_GROUP = 64  # weights among which an error is carried on


def diffuse(weight: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Round weights so that sums over up to 64 neighbours stay what they were.

    Parameters
    ----------
    weight : float32 tensor of shape (out, …)
    dtype : torch.dtype, default bfloat16

    Returns
    -------
    tensor of the same shape, of `dtype`
        Each value is next to the exact one, above or below.
    """
    out, rest = len(weight), weight[0].numel()
    width = min(rest, _GROUP)
    padding = -rest % width
    exact = torch.nn.functional.pad(weight.reshape(out, rest), (0, padding))
    exact = exact.reshape(-1, width)  # (groups, width)
    # Small ones last: what is left over at the end is half a step of the last weight.
    order = exact.abs().argsort(1, descending=True) if width == rest else None
    columns = exact if order is None else exact.gather(1, order)
    rounded = torch.empty_like(columns)
    carried = torch.zeros(len(columns))
    for i in range(width):
        wanted = columns[:, i] + carried
        rounded[:, i] = wanted.to(dtype)
        carried = wanted - rounded[:, i]
    if order is not None:
        rounded = torch.empty_like(rounded).scatter_(1, order, rounded)
    return rounded.reshape(out, rest + padding)[:, :rest].reshape(weight.shape).to(dtype)
