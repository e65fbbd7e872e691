"""networks.py: heads and whole networks of the published systems as PyTorch modules under the keys of
their authors' checkpoints, written from the description of each.

Needs torch and torchvision (PyPI). A head takes the features of one bag, `[N, D]`, and returns logits
`[1, K]` and a score of every tile `[N, A]`: attention before the softmax, or a prediction.
"""
import torch
import torchvision
from torch import nn


class Gate(nn.Module):
    """Gated attention (Ilse et al. 2018) as CLAM names it."""

    def __init__(self, hidden, width, branches, dropout):
        super().__init__()
        drop = [nn.Dropout(0.25)] if dropout else []
        self.attention_a = nn.Sequential(nn.Linear(hidden, width), nn.Tanh(), *drop)
        self.attention_b = nn.Sequential(nn.Linear(hidden, width), nn.Sigmoid(), *drop)
        self.attention_c = nn.Linear(width, branches)

    def forward(self, h):
        return self.attention_c(self.attention_a(h) * self.attention_b(h))


class Pool(nn.Module):
    """One row of a bag: weighted by attention, or the mean. A module, so that what it puts out can be
    rounded as FP16 would store it."""

    def forward(self, h, scores=None):
        return h.mean(0, keepdim=True) if scores is None else torch.softmax(scores.T, 1) @ h


class Clam(nn.Module):
    """CLAM_SB and CLAM_MB (Lu et al. 2021), and HistCode's regressions. `dropout` moves the gate from
    index 2 to 3; `pooled` is HistCode's CLAM_SB_Pool: the mean of all tiles is classified."""

    def __init__(self, classes, multiple=False, dropout=False, pooled=False, instances=True,
                 size=(1024, 512, 256)):
        super().__init__()
        d, hidden, width = size
        gate = Gate(hidden, width, classes if multiple else 1, dropout)
        drop = [nn.Dropout(0.25)] if dropout else []
        self.attention_net = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), *drop, gate)
        if multiple:
            self.classifiers = nn.ModuleList([nn.Linear(hidden, 1) for _ in range(classes)])
        else:
            self.classifiers = nn.Linear(hidden, classes)
        if instances:
            self.instance_classifiers = nn.ModuleList([nn.Linear(hidden, 2) for _ in range(classes)])
        self.multiple, self.pooled, self.pool = multiple, pooled, Pool()

    def forward(self, features):
        *first, gate = self.attention_net
        h = features
        for layer in first:
            h = layer(h)
        scores = gate(h)
        if self.pooled:
            return self.classifiers(self.pool(h)), scores
        pooled = self.pool(h, scores)
        if self.multiple:
            rows = [layer(pooled[c]) for c, layer in enumerate(self.classifiers)]
            return torch.stack(rows, 1), scores
        return self.classifiers(pooled), scores


class Abmil(nn.Module):
    """Attention MIL (Ilse et al. 2018) under the keys of github.com/AMLab-Amsterdam/AttentionDeepMIL,
    plain behind a hidden layer, or gated on the features themselves."""

    def __init__(self, d, width, classes=1, gated=False):
        super().__init__()
        self.gated, self.pool = gated, Pool()
        if gated:
            self.attention_V = nn.Sequential(nn.Linear(d, width), nn.Tanh())
            self.attention_U = nn.Sequential(nn.Linear(d, width), nn.Sigmoid())
            self.attention_w = nn.Linear(width, 1)
            hidden = d
        else:
            hidden = d // 2
            self.feature_extractor_part2 = nn.Sequential(nn.Linear(d, hidden), nn.ReLU())
            self.attention = nn.Sequential(nn.Linear(hidden, width), nn.Tanh(), nn.Linear(width, 1))
        self.classifier = nn.Sequential(nn.Linear(hidden, classes))

    def forward(self, h):
        if self.gated:
            scores = self.attention_w(self.attention_V(h) * self.attention_U(h))
        else:
            h = self.feature_extractor_part2(h)
            scores = self.attention(h)
        return self.classifier(self.pool(h, scores)), scores


class LastLayer(nn.Module):
    """A linear layer and an aggregate over tiles: of its predictions, or of the features before it."""

    def __init__(self, d, classes, aggregate, of_features=False):
        super().__init__()
        self.fc = nn.Linear(d, classes)
        self.aggregate, self.of_features = aggregate, of_features

    def forward(self, features):
        aggregate = {"mean": lambda x: x.mean(0, keepdim=True),
                     "max": lambda x: x.max(0, keepdim=True).values,
                     # numpy's default, and pandas's.
                     "percentile": lambda x: torch.quantile(x, 0.75, dim=0, keepdim=True)}
        aggregate, scores = aggregate[self.aggregate], self.fc(features)
        return self.fc(aggregate(features)) if self.of_features else aggregate(scores), scores


class BalnmpHead(nn.Module):
    """DL-CNB (Xu et al. 2021) behind its backbone; with `clinical` values, DL-CNB+C, which repeats them
    ten times. Without `dropout` the second layer of the attention has index 2."""

    def __init__(self, d=25088, classes=2, clinical=0, dropout=True):
        super().__init__()
        drop = [nn.Dropout(0.5)] if dropout else []
        aggregator = nn.Module()
        aggregator.fc1 = nn.Sequential(nn.Linear(d, 256), *drop, nn.ReLU())
        aggregator.attention = nn.Sequential(nn.Linear(256, 1), *drop, nn.Tanh(), nn.Linear(1, 1))
        self.attention_aggregator, self.pool = aggregator, Pool()
        self.classifier = nn.Sequential(nn.Linear(256 + 10 * clinical, 64), nn.ReLU(),
                                        nn.Linear(64, classes))

    def forward(self, features, clinical=None):
        h = self.attention_aggregator.fc1(features)
        scores = self.attention_aggregator.attention(h)
        pooled = self.pool(h, scores)
        if clinical is not None:
            pooled = torch.cat([pooled, clinical.reshape(1, -1).repeat(1, 10)], 1)
        return self.classifier(pooled), scores


def vgg16_bn():
    """BALNMP's backbone: 25088 features. Its filters have zero mean and a strong centre, so that signals
    pass and rounding errors do not grow from layer to layer, as in trained networks."""
    vgg = torchvision.models.vgg16_bn(weights=None)
    for m in vgg.features:
        if isinstance(m, nn.Conv2d):
            w = m.weight.detach()
            w -= w.mean((1, 2, 3), keepdim=True)
            k = torch.arange(len(w))
            w[k, k % w.shape[1], 1, 1] += w.flatten(1).norm(dim=1)
    return nn.Sequential(vgg.features, vgg.avgpool)


def balnmp(extractor, head, original=False):
    """A checkpoint of DL-CNB or DL-CNB+C; `original` has the keys of the published weights."""
    prefix = "image_feature_extractor." + ("" if original else "extractor.")
    backbone = {prefix + key: value for key, value in extractor.state_dict().items()}
    return backbone | head.state_dict()


def resnet50_layer3():
    """CLAM's truncated ResNet-50: 1024 features after the third stage."""
    model = torchvision.models.resnet50(weights=None)
    model.layer4 = model.fc = nn.Identity()
    return model


def adco(encoder, prefix="module.", momentum=True):
    """A checkpoint of HistCode's AdCo training with this query encoder."""
    state = {}
    for tower in ("encoder_q", "encoder_k")[: 1 + momentum]:
        for key, value in encoder.state_dict().items():
            state[f"{prefix}{tower}.{key}"] = value
        for index, rows in ((0, 1024), (2, 128)):
            state[f"{prefix}{tower}.fc.{index}.weight"] = torch.randn(rows, 1024) / 32
            state[f"{prefix}{tower}.fc.{index}.bias"] = torch.zeros(rows)
    return {"arch": "resnet50", "best_acc": 0.5, "state_dict": state}
