"""Writes heads.safetensors, small heads by PyTorch and NumPy, and weep.json, WEEP by pandas, for
tests/heads.rs.

Needs the PyPI packages torch, numpy, pandas and safetensors. Run it in this folder. `<case>/<key>` is a weight,
`<case>:features`, `<case>:logits` and `<case>:scores` what goes in and comes out. Weights of two
dimensions and features are FP16 values; sums run in f64.
"""
import json

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(5)
N, D = 37, 24
contents = {}


def numbers(*shape, gain=1.0):
    return (torch.randn(*shape) * gain).half().double()


def dense(name, k, c):
    return {f"{name}.weight": numbers(k, c, gain=0.4), f"{name}.bias": numbers(k)}


def case(name, weights, features, logits, scores):
    for key, value in weights.items():
        contents[f"{name}/{key}"] = value.float().contiguous()
    for key, value in (("features", features), ("logits", logits), ("scores", scores)):
        contents[f"{name}:{key}"] = value.float().contiguous()


def apply(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


x = numbers(N, D)
w = dense("fc", 1, D)
tiles = apply(w, "fc", x)
case("percentile", w, x, torch.tensor(np.quantile(tiles.numpy(), 0.75, axis=0))[None], tiles)
case("mean", w, x, tiles.mean(0, keepdim=True), tiles)
w = dense("classifier", 3, D)
case("max", w, x, apply(w, "classifier", x.max(0, keepdim=True).values), apply(w, "classifier", x))

# Ilse et al. 2018: attention on features, plain behind a hidden layer, and gated.
w = dense("feature_extractor_part2.0", 16, D) | dense("attention.0", 8, 16) \
    | dense("attention.2", 1, 8) | dense("classifier.0", 1, 16)
h = torch.relu(apply(w, "feature_extractor_part2.0", x))
scores = apply(w, "attention.2", torch.tanh(apply(w, "attention.0", h)))
case("plain", w, x, apply(w, "classifier.0", torch.softmax(scores.T, 1) @ h), scores)
w = dense("attention_V.0", 8, D) | dense("attention_U.0", 8, D) | dense("attention_w", 1, 8) \
    | dense("classifier.0", 1, D)
scores = apply(w, "attention_w", torch.tanh(apply(w, "attention_V.0", x))
               * torch.sigmoid(apply(w, "attention_U.0", x)))
case("gated", w, x, apply(w, "classifier.0", torch.softmax(scores.T, 1) @ x), scores)

# HistCode's CLAM_SB_Pool: the mean of the hidden layer is classified.
w = dense("attention_net.0", 16, D) | dense("attention_net.2.attention_a.0", 8, 16) \
    | dense("attention_net.2.attention_b.0", 8, 16) | dense("attention_net.2.attention_c", 1, 8) \
    | dense("classifiers", 1, 16)
h = torch.relu(apply(w, "attention_net.0", x))
gate = torch.tanh(apply(w, "attention_net.2.attention_a.0", h)) \
    * torch.sigmoid(apply(w, "attention_net.2.attention_b.0", h))
scores = apply(w, "attention_net.2.attention_c", gate)
case("pooled", w, x, apply(w, "classifiers", h.mean(0, keepdim=True)), scores)
# One tile is a bag whose attention is 1.
case("single", w, x, apply(w, "classifiers", h), scores)

# The same by HistCode's own keys: no attention at all, a tile's score is its own prediction.
w = dense("fc.0", 16, D) | dense("classifiers", 1, 16)
h = torch.relu(apply(w, "fc.0", x))
case("unattended", w, x, apply(w, "classifiers", h.mean(0, keepdim=True)), apply(w, "classifiers", h))

# HistCode's CLAM_SB_Reg_NN_Pool: up to 200 tiles what attention pools, twice; of more the mean of the
# 100 of least and the mean of the 100 of most attention.
w = dense("attention_net.0", 16, D) | dense("attention_net.2.attention_a.0", 8, 16) \
    | dense("attention_net.2.attention_b.0", 8, 16) | dense("attention_net.2.attention_c", 1, 8) \
    | dense("classifiers", 1, 32)


def nn_pool(x):
    h = torch.relu(apply(w, "attention_net.0", x))
    gate = torch.tanh(apply(w, "attention_net.2.attention_a.0", h)) \
        * torch.sigmoid(apply(w, "attention_net.2.attention_b.0", h))
    scores = apply(w, "attention_net.2.attention_c", gate)
    order = torch.argsort(scores[:, 0])
    if len(x) > 200:
        pooled = torch.cat([h[order[:100]].mean(0), h[order[-100:]].mean(0)])[None]
    else:
        pooled = (torch.softmax(scores.T, 1) @ h).repeat(1, 2)
    return apply(w, "classifiers", pooled), scores


def clear(x):
    """Whether rounding cannot change which tiles are the extremes."""
    s = torch.sort(nn_pool(x)[1][:, 0]).values
    return len(x) <= 200 or min(s[100] - s[99], s[-100] - s[-101]) > 0.006


for name, n in (("nn_200", 200), ("nn_201", 201), ("nn_260", 260)):
    x = numbers(n, D)
    while not clear(x):
        x = numbers(n, D)
    case(name, w, x, *nn_pool(x))

save_file(contents, "heads.safetensors")

# WEEP (Sharma et al. 2024): drop the highest tile while the percentile of the rest stays at or above
# the threshold.
weep = []
rng = np.random.default_rng(5)
for n, q, threshold in ((60, 0.75, 0.7), (61, 0.5, 0.45), (7, 0.75, 0.2), (40, 0.75, 3.0)):
    tiles = pd.Series(rng.normal(0.8, 0.5, n).round(6))
    rest, steps = tiles.sort_values(ascending=False, kind="stable"), []
    score = tiles.quantile(q)
    while len(rest) > 1 and rest.quantile(q) >= threshold:
        tile, rest = rest.index[0], rest.iloc[1:]
        after = rest.quantile(q)
        steps.append({"tile": int(tile), "score": after, "selected": bool(after >= threshold)})
    weep.append({"predictions": tiles.tolist(), "percentile": q, "threshold": threshold,
                 "score": score, "steps": steps})
with open("weep.json", "w") as f:
    json.dump(weep, f)
    f.write("\n")
