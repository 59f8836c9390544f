"""The mmBERT encoder with its masked-language-model head: ModernBERT over one flat stream of documents.

Modules carry the names of transformers' ModernBertForMaskedLM, so a checkpoint converts without renaming.

Shapes: T tokens of the packed batch, M masked tokens, D hidden_size, I intermediate_size, H heads, K = D / H
head size, V vocab_size.

Source:
    Warner et al. 2024, arXiv:2412.13663 (architecture); mmBERT's settings, arXiv:2509.06888 and its YAMLs.
"""

from collections.abc import Callable
from itertools import pairwise
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbert.attention import Kernel, Packing, Window, resolve_kernel, varlen_attention
from mmbert.config import ModelConfig
from mmbert.geglu import geglu
from mmbert.linear import Linear
from mmbert.linear_cross_entropy import Losses, linear_cross_entropy
from mmbert.rope import Rope


class Embeddings(nn.Module):
    """Token embeddings, normalised: (T,) -> (T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = layer_norm(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.tok_embeddings(input_ids))


class Attention(nn.Module):
    """Bidirectional attention inside each document: all of it in every n-th layer from 0, a window in the others."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.window: Window | None = None
        if layer % config.global_attn_every_n_layers != 0:
            self.window = (config.local_attention // 2, config.local_attention // 2)
        self.Wqkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.Wo = Linear(config.hidden_size, config.hidden_size)
        self.out_drop = nn.Dropout(config.attn_out_dropout)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, both rotated, and values of x (T, D): (T, H, K) each."""
        return rope.project(x, self.Wqkv.weight, self.num_heads)

    def merge(self, out: Tensor) -> Tensor:
        """What attention adds to the residual stream: out (T, H, K) -> (T, D)."""
        return self.out_drop(self.Wo(out.flatten(start_dim=1)))


class Mlp(nn.Module):
    """GeGLU: (T, D) -> (T, D). Wi holds both branches, the activated one first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.Wi = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.Wo = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.Wo(geglu(self.Wi(x)))


class EncoderLayer(nn.Module):
    """Pre-norm block. The first has no norm before attention: the embeddings were normalised already."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if layer == 0 else layer_norm(config)
        self.attn = Attention(config, layer)
        self.mlp_norm = layer_norm(config)
        self.mlp = Mlp(config)

    def before_attention(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the residual stream x (T, D): (T, H, K) each."""
        return self.attn.project(self.attn_norm(x), rope)

    def attend(
        self, qkv: tuple[Tensor, Tensor, Tensor], packing: Packing, kernel: Kernel, wanted: Tensor | None = None
    ) -> Tensor:
        """(T, H, K), or (M, H, K) of the tokens that are wanted: the only part of a layer where tokens meet."""
        return varlen_attention(*qkv, packing, self.attn.window, kernel, wanted)

    def after_attention(self, x: Tensor, out: Tensor) -> Tensor:
        """The residual stream behind this layer: x (T, D) and out (T, H, K) -> (T, D)."""
        x = x + self.attn.merge(out)
        return x + self.mlp(self.mlp_norm(x))


def pass_on(
    layer: EncoderLayer, following: EncoderLayer, x: Tensor, out: Tensor, rope: Rope
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """From one layer's attention to the next one's, without a break for torch.compile."""
    x = layer.after_attention(x, out)
    return x, following.before_attention(x, rope)


class Encoder(nn.Module):
    """Embeddings, layers and the final norm: (T,) -> (T, D), or (M, D) of some tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = layer_norm(config)
        self.first: Callable[..., tuple[Tensor, Tensor, Tensor]] = EncoderLayer.before_attention
        self.pass_on: Callable[..., tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = pass_on

    def forward(self, input_ids: Tensor, packing: Packing, wanted: Tensor | None = None) -> Tensor:
        config = self.config
        kernel = resolve_kernel(config.attention, input_ids.device.type)
        global_rope = Rope.build(packing.positions, config.global_rope_theta, config.head_dim)
        local_rope = Rope.build(packing.positions, config.local_rope_theta, config.head_dim)
        x = self.embeddings(input_ids)
        qkv = self.first(self.layers[0], x, global_rope)
        for layer, following in pairwise(self.layers):
            out = layer.attend(qkv, packing, kernel)
            rope = global_rope if following.attn.window is None else local_rope
            x, qkv = self.pass_on(layer, following, x, out, rope)
        *_, last = self.layers
        out = last.attend(qkv, packing, kernel, wanted)
        if wanted is not None:  # behind the last attention no token needs another
            x = x.index_select(0, wanted)
        return self.final_norm(last.after_attention(x, out))

    def compile_layers(self) -> None:
        """Have torch.compile fuse what lies between the products of matrices, from attention to attention.

        All layers share two graphs, the first one's and that of all others. The number of tokens must stay the same
        from batch to batch, or they are compiled anew; the last layer has as many in its end as are masked, and is
        left as it is. TORCHDYNAMO_DISABLE=1 switches it off.
        """
        torch._dynamo.config.optimize_ddp = False  # on several ranks it would cut the graphs apart at DDP's buckets
        self.first = torch.compile(EncoderLayer.before_attention, dynamic=False)
        self.pass_on = torch.compile(pass_on, dynamic=False)


class PredictionHead(nn.Module):
    """What stands between the encoder and the decoder: (M, D) -> (M, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.norm = layer_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x)))


class MmBertForMaskedLM(nn.Module):
    """The model that is trained. Its decoder's weight is the embedding matrix.

    The weights come from torch's global generator: the same seed gives the same model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Encoder(config)
        self.head = PredictionHead(config)
        # On the meta device, for its own (V, D) matrix is never used: 786 MB in the base model.
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, device="meta")
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight
        self.decoder.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise_full_megatron(self, config)

    def forward(self, input_ids: Tensor, packing: Packing, masked: Tensor | None = None) -> Tensor:
        """Predict tokens.

        Args:
            input_ids: (T,) documents laid end to end.
            packing: where they lie.
            masked: (M,) ascending places of the tokens to predict; None for all.

        Returns:
            Logits (M, V), or (T, V).
        """
        return self.decoder(self.head(self.model(input_ids, packing, masked)))

    def loss(self, input_ids: Tensor, packing: Packing, masked: Tensor, targets: Tensor) -> Losses:
        """Cross-entropies at the masked tokens, in fp32, without the logits of more than a chunk of them.

        Only masked tokens reach the head: over all tokens it would be more than half of the work.

        Args:
            input_ids, packing, masked: see `forward`.
            targets: (M,) the tokens that were there.
        """
        hidden = self.head(self.model(input_ids, packing, masked))  # (M, D)
        return linear_cross_entropy(hidden, self.decoder.weight, self.decoder.bias, targets)


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


def initialise_full_megatron(model: MmBertForMaskedLM, config: ModelConfig) -> None:
    """Draw all matrices from truncated normals; norms are 1 and biases 0 already.

    What writes to the residual stream (`attn.Wo`, `mlp.Wo`) gets std / sqrt(2 layers), so that the stream's
    variance does not grow with depth. transformers does the same to `head.dense`, mmBERT's recipe does not.

    Source:
        `init_method: full_megatron` of mmBERT's YAMLs; ModernBERT's initialization.py.
    """
    for name, module in model.named_modules():
        if module is model.decoder or not isinstance(module, nn.Linear | nn.Embedding):
            continue
        std = config.initializer_range
        if name.endswith((".attn.Wo", ".mlp.Wo")):
            std /= sqrt(2 * config.num_hidden_layers)
        cut = config.initializer_cutoff_factor * std
        nn.init.trunc_normal_(module.weight, std=std, a=-cut, b=cut)
