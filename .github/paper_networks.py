"""The paper's two networks, trained by smwm.py: a ViT-Tiny and an AdaLN-zero transformer.

    python .github/paper_networks.py train --env pusht --networks vit --size 224 --width 384

They have 18 million parameters and are made for a GPU. Width 384 gives the paper's latent, D = 192.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import smwm  # noqa: E402


class ViT(nn.Module):
    """f as in the paper, a ViT-Tiny: images (B, 3, S, S) to latents (B, D).

    12 layers of width 192 with 3 heads on patches of 14 px, or of 8 px for S < 112; the CLS token
    through a projector.
    """

    def __init__(self, *, size: int, width: int, depth: int = 12, heads: int = 3):
        super().__init__()
        patch, dim, width = 14 if size >= 112 else 8, width // 2, 192
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.body = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.head = projector(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.body(x)[:, 0])


def projector(width: int, dim: int) -> nn.Sequential:
    hidden = nn.Linear(width, 2048), nn.BatchNorm1d(2048), nn.GELU()
    return nn.Sequential(*hidden, nn.Linear(2048, dim))


class Transformer(nn.Module):
    """g as in the paper: 6 blocks over the last P latents, a token each, every token modulated by
    the action block that followed it (AdaLN-zero). Shapes as in ForwardModel."""

    def __init__(self, *, act_dim: int, history: int, width: int, depth: int = 6):
        super().__init__()
        self.history, dim = history, width // 2
        embed = nn.Linear(act_dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)
        self.embed_act = nn.Sequential(*embed)
        self.positions = nn.Parameter(0.02 * torch.randn(history, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim=dim) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), projector(dim, dim)

    def forward(self, z: Tensor, act: Tensor) -> Tensor:
        windows = [x.unfold(-2, self.history, 1).transpose(-1, -2) for x in (z, act)]
        shape = windows[0].shape[:-2]  # (..., T')
        x, act = (window.flatten(0, -3) for window in windows)  # (n, P, D), (n, P, A)
        x, act = x + self.positions, self.embed_act(act)
        for block in self.blocks:
            x = block(x, act)
        return self.head(self.norm(x[:, -1])).unflatten(0, shape)


class TransformerBlock(nn.Module):
    """Causal attention and an MLP, each shifted, scaled and gated by the action."""

    def __init__(self, *, dim: int, heads: int = 16, head_dim: int = 64, hidden: int = 2048):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(dim, 3 * inner, bias=False), nn.Linear(inner, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        nn.init.zeros_(self.modulate[1].weight)
        nn.init.zeros_(self.modulate[1].bias)

    def forward(self, x: Tensor, act: Tensor) -> Tensor:  # (n, P, D) each
        shift, scale, gate, shift2, scale2, gate2 = self.modulate(act).chunk(6, dim=-1)
        y = self.norm(x) * (1 + scale) + shift
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + gate * self.out(y.transpose(1, 2).flatten(2))
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


smwm.NETWORKS["vit"] = (ViT, Transformer)
if __name__ == "__main__":
    sys.exit(smwm.main())
