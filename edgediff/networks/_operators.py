"""Operators below the units: convolutions, linear maps, norms and activations that can go by themselves.

An operator is replaced by the cheapest thing that keeps the shape: itself by the identity where input and output
agree; a convolution that changes the channels by a 1x1 convolution of its centre taps; the projection of the time
embedding by zero. Which replacement a type of operator gets is our choice: LD-Pruner's text names identity and
a cheaper operator of the same shape only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgediff.graph.units import Operator, OperatorKind, Role, Unit, UnitGraph

if TYPE_CHECKING:
    from edgediff.networks import Family

WHOLE: tuple[Role, ...] = ("embedding", "entry", "exit")  # units whose operators stay
TIME_PROJECTION = "time_emb_proj"
NORMS = (nn.GroupNorm, nn.LayerNorm)


class Zero(nn.Module):
    """`[batch, anything]` -> zeros `[batch, width]`: what a removed time projection adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[0], self.width)


def describe_operators(family: Family, model: nn.Module, unit: Unit) -> tuple[Operator, ...]:
    """The operators of a unit that have a replacement, with parameters; `count_operators` adds the MACs."""
    if unit.role in WHOLE:
        return ()
    found: list[Operator] = []
    for root in family.unit_modules(unit):
        for name, module in _leaves(model, root):
            kind = _kind_of(name, module)
            if kind is not None:
                left = replace_operator(name, module)
                found.append(Operator(name, kind, _count(module), 0, _count(left), 0))
    return tuple(found)


@contextmanager
def watch_operators(model: nn.Module, operators: Sequence[Operator]) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Within it, the output shapes of every call of the operators are noted under their names."""
    shapes: dict[str, list[tuple[int, ...]]] = {operator.name: [] for operator in operators}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: shapes[name].append(tuple(output.shape))

    handles = [model.get_submodule(o.name).register_forward_hook(note(o.name)) for o in operators]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def count_operators(
    model: nn.Module, operators: Sequence[Operator], shapes: Mapping[str, list[tuple[int, ...]]]
) -> tuple[Operator, ...]:
    """The operators with the MACs of one sample that went into outputs of these shapes, and those that their
    replacements would take."""
    found: list[Operator] = []
    for operator in operators:
        module = model.get_submodule(operator.name)
        left = replace_operator(operator.name, module)
        macs, left_macs = (sum(_macs(one, shape) for shape in shapes[operator.name]) for one in (module, left))
        found.append(replace(operator, macs=macs, left_macs=left_macs))
    return tuple(found)


def copy_without_operators(model: nn.Module, graph: UnitGraph) -> nn.Module:
    """A copy of `model`, the whole network, in which `graph`'s cut operators are replaced. It shares the tensors of
    `model`; a centre tap is a tensor of its own."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    network: nn.Module = copy.deepcopy(model, memo=dict(shared))
    for name in sorted(graph.cuts & graph.operators.keys()):
        parent, _, last = name.rpartition(".")
        network.get_submodule(parent)._modules[last] = replace_operator(name, network.get_submodule(name))
    return network


def _leaves(model: nn.Module, root: str) -> Iterator[tuple[str, nn.Module]]:
    try:
        module = model.get_submodule(root)
    except AttributeError:  # a module that this release of the family does not have
        return
    for name, child in module.named_modules():
        if not any(child.children()):
            yield f"{root}.{name}" if name else root, child


def _kind_of(name: str, module: nn.Module) -> OperatorKind | None:
    """None for what has no cheaper replacement: a 1x1 map between widths, strided convolutions, dropout."""
    if isinstance(module, nn.Conv2d):
        plain = module.stride == (1, 1) and module.groups == 1
        wide = module.kernel_size != (1, 1)
        return "conv" if plain and (wide or module.in_channels == module.out_channels) else None
    if isinstance(module, nn.Linear):
        same = module.in_features == module.out_features
        return "linear" if same or name.endswith(f".{TIME_PROJECTION}") else None
    if isinstance(module, NORMS):
        return "norm"
    return "activation" if isinstance(module, nn.SiLU) else None


def replace_operator(name: str, module: nn.Module) -> nn.Module:
    """What stands in the place of the operator `module` when it is cut."""
    if isinstance(module, nn.Linear) and name.endswith(f".{TIME_PROJECTION}"):
        return Zero(module.out_features)
    if isinstance(module, nn.Conv2d) and module.in_channels != module.out_channels:
        return _centre_tap(module)
    return nn.Identity()


def _centre_tap(conv: nn.Conv2d) -> nn.Conv2d:
    row, column = conv.kernel_size[0] // 2, conv.kernel_size[1] // 2
    with torch.device("meta"):
        tap = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
    with torch.no_grad():
        weight = conv.weight[:, :, row : row + 1, column : column + 1].clone()
        tap.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        if conv.bias is not None:
            tap.bias = conv.bias
    return tap.train(conv.training)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates for one sample of an output of this shape."""
    values = 1
    for size in shape[1:]:
        values *= size
    if isinstance(module, nn.Conv2d):
        return values * module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    return values * module.in_features if isinstance(module, nn.Linear) else 0
