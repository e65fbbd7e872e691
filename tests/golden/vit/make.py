"""Writes what tests/vit.rs compares with: features of small vision transformers by timm,
transformers and PyTorch, whose weights come from the formula of weights/export.py.

Needs the PyPI packages torch, torchvision, timm, transformers, numpy and safetensors. Run it in this
folder. For each network `<name>.tsv` lists its tensors by the keys its publishers use, and
`vit.safetensors` holds `<name>.features` and `<name>.error`, the relative error of PyTorch with weights
and activations rounded to FP16.
"""
import os
import sys
from functools import partial

import numpy as np
import timm
import torch
from safetensors.numpy import save_file
from timm.layers import GluMlp
from timm.models.vision_transformer import VisionTransformer
from transformers import (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig, ViTModel)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../weights"))
from export import emulate, formula, normalise, pictures  # noqa: E402

torch.set_num_threads(2)
TILES = 3


class ClassMean(torch.nn.Module):
    """The class token beside the mean of the patch tokens."""

    def __init__(self, model, tokens, prefix):
        super().__init__()
        self.model, self.tokens, self.prefix = model, tokens, prefix

    def forward(self, x):
        y = self.tokens(self.model, x)
        return torch.cat([y[:, 0], y[:, self.prefix:].mean(1)], 1)


class Pooler(torch.nn.Module):
    """One query's attention over all tokens, by PyTorch's own MultiheadAttention."""

    def __init__(self, width, context, heads):
        super().__init__()
        self.query = torch.nn.Parameter(torch.zeros(1, width))
        self.attn = torch.nn.MultiheadAttention(width, heads, kdim=context, vdim=context)
        self.ln_q = torch.nn.LayerNorm(width)
        self.ln_k = torch.nn.LayerNorm(context)

    def forward(self, x):
        x = self.ln_k(x).permute(1, 0, 2)
        q = self.ln_q(self.query).unsqueeze(1).repeat(1, x.shape[1], 1)
        return self.attn(q, x, x, need_weights=False)[0].permute(1, 0, 2)


class Conch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.trunk = VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=2,
                                              num_heads=2, num_classes=0, global_pool="")
        self.visual.attn_pool_contrast = Pooler(64, 96, 8)
        self.visual.ln_contrast = torch.nn.LayerNorm(64)

    def forward(self, x):
        v = self.visual
        return v.ln_contrast(v.attn_pool_contrast(v.trunk(x))[:, 0])


def transformers_4(key):
    """transformers 5 renamed parts of its models in memory; files keep the older names."""
    for new, old in [("layers.", "encoder.layer."), ("attention.q_proj", "attention.attention.query"),
                     ("attention.k_proj", "attention.attention.key"),
                     ("attention.v_proj", "attention.attention.value"),
                     ("attention.o_proj", "attention.output.dense")]:
        key = key.replace(new, old, 1) if old not in key else key
    return key


def phikon_key(key):
    key = transformers_4(key)
    return key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")


def model_of(name):
    """The network, its input side, and the publishers' key of each of its own."""
    same = lambda key: key
    if name == "plain":
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=2, num_heads=2,
                                 num_classes=0), 32, same
    if name == "registers":
        m = VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=2, num_heads=2,
                              num_classes=0, reg_tokens=4, no_embed_class=True, init_values=1e-5,
                              mlp_ratio=8 / 3 * 2, mlp_layer=partial(GluMlp, gate_last=False),
                              act_layer=torch.nn.SiLU, dynamic_img_size=True)
        return m, 44, same
    if name == "mean":
        return VisionTransformer(img_size=(40, 40), patch_size=8, embed_dim=160, depth=2, num_heads=2,
                                 num_classes=0, qk_norm=True, global_pool="avg", pre_norm=True), 40, same
    if name == "phikon":
        c = ViTConfig(hidden_size=96, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=192, image_size=32, patch_size=8, layer_norm_eps=1e-12)
        m = ViTModel(c, add_pooling_layer=True)
        wrapped = torch.nn.Module()
        wrapped.model = m
        wrapped.forward = lambda x: m(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return wrapped, 40, lambda key: phikon_key(key.removeprefix("model."))
    if name == "dinov2":
        c = Dinov2WithRegistersConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=1,
                                      mlp_ratio=2, image_size=32, patch_size=4, use_swiglu_ffn=True)
        m = Dinov2WithRegistersModel(c)
        return (ClassMean(m, lambda m, x: m(x).last_hidden_state, 5), 24,
                lambda key: transformers_4(key.removeprefix("model.")))
    if name == "conch":
        return Conch(), 32, same
    raise KeyError(name)


def build(name):
    model, side, rename = model_of(name)
    state = model.state_dict()
    for key, tensor in state.items():
        tensor.copy_(torch.from_numpy(formula(rename(key), tuple(tensor.shape))))
    model.load_state_dict(state)
    return model.eval(), side, {rename(k): tuple(v.shape) for k, v in state.items()}


contents = {}
for name in ("plain", "registers", "mean", "phikon", "dinov2", "conch"):
    model, side, shapes = build(name)
    x = normalise(pictures(f"{name} tiles", TILES, side))
    with torch.no_grad():
        features = model(x).double().numpy()
        rounded = emulate(build(name)[0])(x).double().numpy()
    error = np.linalg.norm(rounded - features) / np.linalg.norm(features)
    print(f"{name}: {features.shape}, FP16 error {error:.2e}")
    contents[f"{name}.features"] = features.astype(np.float32)
    contents[f"{name}.error"] = np.array([error], np.float32)
    with open(f"{name}.tsv", "w") as f:
        for key, shape in shapes.items():
            f.write(f"{key}\t{','.join(map(str, shape))}\n")
save_file(contents, "vit.safetensors")
os.chmod("vit.safetensors", 0o644)

# Snapshots: the configurations that the two libraries write beside weights.
from timm.models._hub import save_config_for_hf  # noqa: E402
from transformers import BitImageProcessor  # noqa: E402

tiny = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1, num_classes=0,
                         pretrained_cfg_overlay={"input_size": (3, 48, 48), "crop_pct": 0.9,
                                                 "license": "apache-2.0"})
os.makedirs("timm-snapshot", exist_ok=True)
save_config_for_hf(tiny, "timm-snapshot/config.json")
with open("timm-snapshot/model.tsv", "w") as f:
    for key, tensor in tiny.state_dict().items():
        f.write(f"{key}\t{','.join(map(str, tensor.shape))}\n")
model_of("dinov2")[0].model.config.save_pretrained("transformers-snapshot")
BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 24, "width": 24},
                  image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25]
                  ).save_pretrained("transformers-snapshot")
