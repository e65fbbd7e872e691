"""vits.py: the vision transformers that recipes in weights/ stand for, as timm, transformers and PyTorch
build them, two blocks deep, with weights from the formula of weights/export.py.

Needs torch, timm, transformers and numpy (PyPI). A layout is what decides the keys and the graph; encoders
that differ in depth alone share one. `build` gives the width of publication, or a narrow network of
the same layout and the same width of a head.
"""
import collections
import os
import sys

import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig,
                          Dinov2WithRegistersModel, ViTConfig, ViTModel)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "weights"))
import export  # noqa: E402

DEPTH = 2
SCALE = {"init_values": 1e-5}
GATED = {**SCALE, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
REGISTERS = {"reg_tokens": 4, "no_embed_class": True}

# How it is built, width, heads, side of a patch, side of the picture, more arguments.
Layout = collections.namedtuple("Layout", "source width heads patch side more")

# Named after a recipe; `qk-norm` is of none.
LAYOUTS = {
    "uni": Layout("timm", 1024, 16, 16, 224, SCALE),
    "uni2-h": Layout("timm", 1536, 24, 14, 224,
                     {**GATED, "reg_tokens": 8, "no_embed_class": True, "mlp_ratio": 2.66667 * 2}),
    "virchow": Layout("timm", 1280, 16, 14, 224, {**GATED, "mlp_ratio": 5.3375, "global_pool": ""}),
    "virchow2": Layout("timm", 1280, 16, 14, 224,
                       {**GATED, "mlp_ratio": 5.3375, "global_pool": "", "reg_tokens": 4}),
    "prov-gigapath": Layout("timm", 1536, 24, 16, 224, {**GATED, "mlp_ratio": 5.33334}),
    # H-optimus-1 too.
    "h-optimus-0": Layout("timm", 1536, 24, 14, 224, {**GATED, **REGISTERS, "mlp_ratio": 5.33334}),
    "h0-mini": Layout("timm", 768, 12, 14, 224, {**GATED, **REGISTERS, "mlp_ratio": 2.66667 * 2}),
    "kaiko-vits8": Layout("timm", 384, 6, 8, 224, {}),
    # ViT-S/16 of Kaiko and Lunit too.
    "kaiko-vitb16": Layout("timm", 768, 12, 16, 224, {}),
    "kaiko-vitl14": Layout("timm", 1024, 16, 14, 224, {**SCALE, **REGISTERS}),
    "qk-norm": Layout("timm", 384, 6, 16, 224, {"qk_norm": True, "pre_norm": True, "global_pool": "avg"}),
    "phikon": Layout("vit", 768, 12, 16, 224, {}),
    "phikon-v2": Layout("dinov2", 1024, 16, 16, 224, {}),
    "hibou-b": Layout("dinov2-registers", 768, 12, 14, 224, {}),
    "hibou-l": Layout("dinov2-registers", 1024, 16, 14, 224, {}),
    "midnight": Layout("dinov2", 1536, 24, 14, 224, {"use_swiglu_ffn": True}),
    "conch": Layout("conch", 768, 12, 16, 448, {"pooled": 512}),
    "conch-v1.5": Layout("conch-v1.5", 1024, 16, 16, 448, {"pooled": 768, **SCALE}),
}


class Pooler(nn.Module):
    """CONCH's attention pooling by PyTorch's own MultiheadAttention."""

    def __init__(self, width, context):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, width))
        self.attn = nn.MultiheadAttention(width, 8, kdim=context, vdim=context)
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(context)

    def forward(self, x):
        x = self.ln_k(x).permute(1, 0, 2)
        q = self.ln_q(self.query).unsqueeze(1).repeat(1, x.shape[1], 1)
        return self.attn(q, x, x, need_weights=False)[0].permute(1, 0, 2)


class Tower(nn.Module):
    """CONCH's image tower before the projection to the space shared with text."""

    def __init__(self, trunk, pooled, context):
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = Pooler(pooled, context)
        self.ln_contrast = nn.LayerNorm(pooled)

    def forward(self, x):
        return self.ln_contrast(self.attn_pool_contrast(self.trunk(x))[:, 0])


class Tokens(nn.Module):
    """What a recipe takes of a network's tokens."""

    def __init__(self, net, tokens, pool, prefix):
        super().__init__()
        self.net, self.tokens, self.pool, self.prefix = net, tokens, pool, prefix

    def forward(self, x):
        y = self.tokens(self.net, x)
        if self.pool == "class":
            return y[:, 0]
        return torch.cat([y[:, 0], y[:, self.prefix:].mean(1)], 1)


def transformers_key(key):
    """transformers 5 renamed parts of its models in memory; files keep the older names."""
    if key.startswith("layers."):
        key = "encoder.layer." + key.removeprefix("layers.")
        key = key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
    for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"),
                     ("v_proj", "attention.value"), ("o_proj", "output.dense")):
        key = key.replace(f"attention.{new}", f"attention.{old}")
    return key


def join_gates(state):
    """Files hold both halves of SwiGLU as one matrix, `weights_in`."""
    for key in [key for key in state if ".mlp.gate_proj." in key]:
        value = state.pop(key.replace("gate_proj", "up_proj"))
        state[key.replace("gate_proj", "weights_in")] = torch.cat([state.pop(key), value])
    return {key.replace("mlp.down_proj", "mlp.weights_out"): value for key, value in state.items()}


def network(layout, pool):
    """The module and the publisher's key for one of its own."""
    source, width, heads, patch, side, more = layout
    if source in ("timm", "conch", "conch-v1.5"):
        more = dict(more)
        pooled = more.pop("pooled", None)
        if pooled:
            more["global_pool"] = ""
        net = VisionTransformer(img_size=side, patch_size=patch, embed_dim=width, depth=DEPTH,
                                num_heads=heads, num_classes=0, **more)
        if pooled:
            prefix = "visual." if source == "conch" else ""
            return Tower(net, pooled, width), lambda key: prefix + key
        if pool != "class-mean":
            return net, lambda key: key
        return Tokens(net, lambda net, x: net(x), pool, net.num_prefix_tokens), \
            lambda key: key.removeprefix("net.")
    common = dict(hidden_size=width, num_hidden_layers=DEPTH, num_attention_heads=heads,
                  image_size=side, patch_size=patch, **more)
    registers = 0
    if source == "vit":
        net = ViTModel(ViTConfig(intermediate_size=4 * width, layer_norm_eps=1e-12, **common))
    elif source == "dinov2":
        net = Dinov2Model(Dinov2Config(**common))
    else:
        registers = 4
        net = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **common))
    tokens = Tokens(net, lambda net, x: net(x).last_hidden_state, pool, 1 + registers)
    return tokens, lambda key: transformers_key(key.removeprefix("net."))


def build(name, pool, small):
    """The network, its state dict under its publisher's keys, its heads and the side of its input."""
    layout = LAYOUTS[name]
    if small:
        more = {**layout.more, "pooled": 64} if "pooled" in layout.more else layout.more
        layout = layout._replace(width=2 * layout.width // layout.heads, heads=2, side=3 * layout.patch,
                                 more=more)
    model, rename = network(layout, pool)
    state = model.state_dict()
    for key, tensor in state.items():
        tensor.copy_(torch.from_numpy(export.formula(rename(key), tuple(tensor.shape))))
    model.load_state_dict(state)
    published = join_gates({rename(key): tensor for key, tensor in state.items()})
    return model.eval(), published, layout.heads, layout.side
