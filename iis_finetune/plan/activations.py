"""What a forward and backward pass holds beside weights and their states, in bytes on one device.

The terms follow the graph of transformers 5.6 decoder blocks with PEFT 0.18 adapters, as autograd saves it. What lives
only inside one backward function cannot be read from that code: measured factors, torch 2.13 on CPU, 2026-11-21.
"""

import math
from collections.abc import Mapping

from msgspec import Struct

from ..models import Shapes

# Layers that read the same tensor as another one, which autograd then saves once.
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
OF_ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
Items = dict[str, float]


class Pass(Struct, frozen=True):
    """One forward and backward pass; `stream` and `compute` are bytes of an element of the residual stream, of matmuls.

    `trained` maps the linear layers of a block that train or carry an adapter to (inputs, outputs); `layers` counts the
    blocks whose activations are kept; `rank` is None without adapters; `dropout` is the bytes of its mask, or None.
    `keeps_scores` says that the attention holds its scores, in elements of `score` bytes; `decomposes` that adapters
    are DoRA's; `chunked` that a fused loss never holds all logits.
    """

    shapes: Shapes
    trained: Mapping[str, tuple[int, int]]
    rows: int
    length: int
    layers: int
    stream: int
    compute: int
    score: int
    autocast: bool
    rank: int | None
    dropout: int | None
    checkpointing: bool
    keeps_scores: bool
    decomposes: bool = False
    chunked: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def loss_tokens(self) -> int:
        """Tokens whose logits are there at once: Liger makes chunks that are about as large as the hidden states."""
        if not self.chunked:
            return self.tokens
        # liger-kernel ops/fused_linear_cross_entropy.py: chunk_size, the next power of two
        each = math.ceil(self.tokens / math.ceil(self.shapes.vocabulary_size / self.shapes.hidden_size))
        return min(self.tokens, int(2 ** math.ceil(math.log2(each))))

    @property
    def all_scores(self) -> int:
        return self.rows * self.shapes.attention_heads * self.length**2


def at_loss(one: Pass) -> Items:
    """The forward pass is done: three fp32 copies of the logits (log-softmax, its gradient, the logits' gradient)."""
    copies = 12 + (one.compute if one.shapes.softcap else 0)
    hidden = 3 * one.tokens * one.shapes.hidden_size * 4
    return {
        "activations": _inputs_kept(one, one.layers)
        + _others(one, one.layers) * (_attention(one) + _mlp(one))
        + hidden,
        "attention scores": _others(one, one.layers) * _scores(one),
        "logits": copies * one.loss_tokens * one.shapes.vocabulary_size,
    }


def without_gradients(one: Pass, beside: Items | None = None) -> Items:
    """A forward pass that saves nothing: the logits, as they come and in fp32, and their log-softmax.

    `beside` is what a forward pass with gradients left behind: its own logits in fp32 and their log-softmax.
    """
    wide = one.compute if one.compute < 4 else 0
    copies = wide + 8 + (8 if beside else 0)
    return {
        "activations": one.tokens * 3 * one.shapes.hidden_size * 4 + (beside or {}).get("activations", 0),
        "logits": copies * one.tokens * one.shapes.vocabulary_size,
    }


def in_mlp(one: Pass, alive: int) -> Items:
    """In the MLP of a block, backwards, with `alive` blocks still to do: all of this block is still saved."""
    wide, hidden = one.shapes.intermediate_size, one.shapes.hidden_size
    if one.compute == 4:
        elements = 2.0 * wide + hidden if one.checkpointing else max(2 * wide, 5 * hidden)
    else:
        elements = (2.75 if one.dropout and one.autocast else 2) * wide + 2 * hidden
    blocks = 1 + _others(one, alive - 1)
    return {
        "activations": _inputs_kept(one, alive) + blocks * (_attention(one) + _mlp(one)) + one.tokens * elements * 4,
        "attention scores": blocks * _scores(one),
    }


def in_attention(one: Pass, alive: int) -> Items:
    """In the attention of a block, backwards: its MLP is done, two gradients of the scores are there."""
    blocks, passing = _others(one, alive - 1), 3 * one.tokens * one.shapes.hidden_size * 4
    others = blocks * (_attention(one) + _mlp(one))
    gradients = (4 + one.score) * one.all_scores if one.keeps_scores else 0
    return {
        "activations": _inputs_kept(one, alive) + others + _attention(one) + passing,
        "attention scores": (blocks + 1) * _scores(one) + gradients,
    }


def _inputs_kept(one: Pass, alive: int) -> float:
    return alive * one.tokens * one.shapes.hidden_size * one.stream if one.checkpointing else 0


def _others(one: Pass, blocks: int) -> int:
    """Blocks that are wholly saved: none with checkpointing, which computes them again one at a time."""
    return 0 if one.checkpointing else blocks


def _scores(one: Pass) -> float:
    """The softmax in fp32, and once more in the matmuls' dtype when that is another."""
    narrow = one.score if one.score < 4 else 0
    capped = one.score if one.shapes.softcap else 0
    return (4 + narrow + capped) * one.all_scores if one.keeps_scores else 0


def _norms(one: Pass) -> float:
    """Half of a block's norms: each keeps its input in fp32, and the normed values when its weight trains."""
    each = 4 + (one.stream if one.rank is None else 0)
    return one.tokens * one.shapes.norms_per_layer / 2 * one.shapes.hidden_size * each


def _attention(one: Pass) -> float:
    shapes = one.shapes
    query, key_value = shapes.query_size, shapes.key_value_size
    heads = 4 * (query + key_value) if shapes.query_key_norm else 0
    repeated = query if one.keeps_scores else key_value
    own_output = not one.keeps_scores and (one.dropout or (one.autocast and one.rank) or "o_proj" not in one.trained)
    output = one.compute * query if own_output else 0
    saved = heads + one.compute * (query + 2 * repeated) + output
    return _norms(one) + one.tokens * (saved + _linear(one, attention=True))


def _mlp(one: Pass) -> float:
    saved = one.compute * 3 * one.shapes.intermediate_size
    return _norms(one) + one.tokens * (saved + _linear(one, attention=False))


def _linear(one: Pass, attention: bool) -> float:
    """Inputs of the trained layers, bytes a token; where an adapter casts its input, it no longer shares it."""
    sizes = {name: size for name, (size, _) in one.trained.items() if (name in OF_ATTENTION) == attention}
    shared = sum({SAME_INPUT.get(name, name): size for name, size in sizes.items()}.values())
    if one.rank is None:
        return one.compute * (sum(sizes.values()) if one.autocast else shared)
    narrow = 2 if one.autocast else 4
    middle = narrow * one.rank * len(sizes)
    if one.decomposes:  # DoRA scales the layer's own output and the adapter's, for which both are saved
        outputs = sum(size for name, (_, size) in one.trained.items() if name in sizes)
        middle += 2 * narrow * outputs
    if one.dropout:
        return (narrow + one.dropout) * sum(sizes.values()) + middle
    return (4 * shared if one.stream == 4 and not one.autocast else narrow * sum(sizes.values())) + middle
