"""Every form of attention is the same function, and `split_einsum` leaves no tokens last."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgediff.backends._attention import FORMS, rewrite_attention
from edgediff.backends._capture import clean_program, operator_name
from edgediff.errors import BackendError

HEADS, WIDTH = 4, 6


class Block(nn.Module):
    """A transformer over a picture: norm, self- and cross-attention, gated feed-forward, residuals."""

    def __init__(self, *, causal=False, mask=None):
        super().__init__()
        size = HEADS * WIDTH
        self.norm, self.out_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.q, self.k, self.v, self.o = (nn.Linear(size, size, bias=index != 1) for index in range(4))
        self.cross = nn.ModuleList([nn.Linear(size, size), nn.Linear(10, size), nn.Linear(10, size)])
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(2 * size, size)
        self.causal, self.mask = causal, mask

    def attend(self, q, k, v, mask=None, causal=False):
        batch = q.shape[0]
        q, k, v = (one.view(batch, -1, HEADS, WIDTH).transpose(1, 2) for one in (q, k, v))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return found.transpose(1, 2).reshape(batch, -1, HEADS * WIDTH)

    def forward(self, picture, text):
        batch, channels, height, width = picture.shape
        x = picture.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        normed = self.norm(x)
        x = x + self.o(self.attend(self.q(normed), self.k(normed), self.v(normed), self.mask, self.causal))
        query, key, value = self.cross
        x = x + self.attend(query(x), key(text), value(text))
        gate, hidden = self.up(self.out_norm(x)).chunk(2, dim=-1)
        x = x + 0.5 * self.down(F.gelu(gate) * hidden)
        return (x.reshape(batch, height, width, channels).permute(0, 3, 1, 2) + picture, self.out_norm(x))


def captured(module, *example):
    program = torch.export.export(module.eval(), example, strict=False).run_decompositions({})
    clean_program(program)
    return program


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 24, 3, 5, generator=generator), torch.randn(2, 7, 10, generator=generator)


MASKS = {
    "none": {},
    "causal": {"causal": True},
    "bool": {"mask": torch.tril(torch.ones(15, 15)).bool()[None, None]},
    "float": {"mask": torch.randn(1, 1, 15, 15, generator=torch.Generator().manual_seed(1))},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("form", "chunk"), [("sdpa", 0), ("original", 0), ("split_einsum", 0), ("split_einsum", 4)])
def test_every_form_is_the_untouched_program(form, chunk, mask):
    torch.manual_seed(0)
    module, example = Block(**MASKS[mask]), inputs()
    program = captured(module, *example)
    rewrite_attention(program, form, query_chunk=chunk)
    with torch.no_grad():
        for wanted, found in zip(module(*example), program.module()(*example), strict=True):
            assert found.shape == wanted.shape
            assert float((found - wanted).abs().max()) <= 2e-5 * float(wanted.abs().max())


def names(program):
    return [operator_name(node) for node in program.graph_module.graph.nodes if node.op == "call_function"]


def test_split_einsum_is_channels_first_throughout():
    program = captured(Block(), *inputs())
    rewrite_attention(program, "split_einsum")
    found = names(program)
    assert "linear" not in found
    assert "layer_norm" not in found
    assert "permute" not in found
    assert found.count("einsum") == 2 * 2 * HEADS
    assert found.count("conv2d") == 9
    assert found.count("transpose") <= 4  # the text in, keys of two attentions, the second output back


def test_original_is_two_products_and_a_softmax():
    program = captured(Block(), *inputs())
    rewrite_attention(program, "original")
    assert "scaled_dot_product_attention" not in names(program)
    assert names(program).count("matmul") == 4
    assert names(program).count("softmax") == 2


def test_an_unknown_form_is_an_error():
    with pytest.raises(BackendError, match=r"unknown form of attention 'split_einsun'; did you mean 'split_einsum'"):
        rewrite_attention(captured(Block(), *inputs()), "split_einsun")
    assert FORMS == ("sdpa", "split_einsum", "original")
