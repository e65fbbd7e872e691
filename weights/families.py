"""families.py: the encoder and segmentation families as PyTorch modules, by histokern's names.

Needs torch and torchvision (PyPI); segmentation_models_pytorch (PyPI) for the families called smp-*.
Every module takes normalised NCHW pictures; encoders return features, segmenters logits NCHW.
"""
import torch
import torchvision
from torch import nn

# Keras's Inception V3 numbers its convolutions in the order in which torchvision defines them.
SMP = {"unet": "Unet", "unetplusplus": "UnetPlusPlus", "deeplabv3": "DeepLabV3"}


class Raw(nn.Module):
    """What `net.features` puts out, flattened: the cut BALNMP makes in a DenseNet."""

    def __init__(self, net):
        super().__init__()
        self.features = net.features

    def forward(self, x):
        return self.features(x).flatten(1)


def encoder_of(name, stage=None, transform_input=False, weights=None):
    """The network without its classifier, cut at `stage`."""
    if name.startswith(("inception", "googlenet")):
        model = getattr(torchvision.models, name.removesuffix("_keras"))(
            weights=weights, init_weights=False, **({} if weights else {"aux_logits": False}))
        # Weights from torchvision switch both on.
        model.transform_input, model.aux_logits = transform_input, False
        for aux in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, aux):
                setattr(model, aux, None)
        model.fc = nn.Identity()
        model.dropout = nn.Identity()
        if name.endswith("_keras"):
            model = keras_version(model)
        return model
    model = getattr(torchvision.models, name)(weights=weights)
    if name.startswith("resnet"):
        model.fc = nn.Identity()
        if stage:
            for i in range(int(stage.removeprefix("layer")) + 1, 5):
                setattr(model, f"layer{i}", nn.Identity())
    elif name.startswith("densenet"):
        model.classifier = nn.Identity()
        if stage == "features":
            model = Raw(model)
    else:
        model.classifier = nn.Identity()
    return model


def keras_version(model):
    """Padding is left out of the means of its average pools; batch norms have no scale."""
    average = nn.functional.avg_pool2d

    def without_padding(x, kernel_size, stride, padding):
        return average(x, kernel_size, stride, padding, count_include_pad=False)

    def forward(x, inner=model.forward):
        nn.functional.avg_pool2d = without_padding
        try:
            return inner(x)
        finally:
            nn.functional.avg_pool2d = average

    model.forward = forward
    for m in norms(model):
        nn.init.ones_(m.weight)
    return model


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def double(c, k, norm=True):
    """Two 3 x 3 convolutions with norms (indices 1 and 4) and ReLUs."""
    return nn.Sequential(
        nn.Conv2d(c, k, 3, padding=1, bias=False), nn.BatchNorm2d(k), nn.ReLU(),
        nn.Conv2d(k, k, 3, padding=1, bias=False), nn.BatchNorm2d(k), nn.ReLU())


def holding(**modules):
    """A module that only gives others their names."""
    holder = nn.Module()
    for name, module in modules.items():
        holder.add_module(name, module)
    return holder


class Unet(nn.Module):
    """U-Net of Ronneberger et al. 2015 with padding and batch norm, under the keys of
    github.com/milesial/Pytorch-UNet."""

    def __init__(self, classes=1, base=64, bilinear=False):
        super().__init__()
        widths = [base << i for i in range(5)]
        if bilinear:
            widths[4] //= 2
        self.inc = holding(double_conv=double(3, widths[0]))
        x = widths[4]
        for i in range(1, 5):
            step = nn.Sequential(nn.MaxPool2d(2), holding(double_conv=double(widths[i - 1], widths[i])))
            self.add_module(f"down{i}", holding(maxpool_conv=step))
        for i in range(1, 5):
            skip = widths[4 - i]
            if bilinear:
                up, out = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), \
                    max(skip // 2, widths[0])
                inside = x
            else:
                up, out = nn.ConvTranspose2d(x, skip, 2, stride=2), skip
                inside = skip
            self.add_module(f"up{i}", holding(up=up, conv=holding(double_conv=double(skip + inside, out))))
            x = out
        self.outc = holding(conv=nn.Conv2d(x, classes, 1))

    def forward(self, x):
        x, skips = self.inc.double_conv(x), []
        for down in (self.down1, self.down2, self.down3, self.down4):
            skips.append(x)
            pool, conv = down.maxpool_conv
            x = conv.double_conv(pool(x))
        for up, skip in zip((self.up1, self.up2, self.up3, self.up4), reversed(skips)):
            x = up.conv.double_conv(torch.cat([skip, up.up(x)], 1))
        return self.outc.conv(x)


class NestedUnet(nn.Module):
    """U-Net++ of Zhou et al. 2018 with deep supervision, under the layer names of
    github.com/MrGiovanni/UNetPlusPlus. Returns the four outputs."""

    def __init__(self, classes=1, base=32):
        super().__init__()
        widths, c = [base << i for i in range(5)], 3
        for i in range(1, 6):
            for j in range(1, 7 - i):
                k = widths[i - 1]
                if j > 1:
                    self.add_module(f"up{i}{j}", nn.ConvTranspose2d(2 * k, k, 2, stride=2))
                    c = j * k
                elif i > 1:
                    c = k // 2
                self.add_module(f"conv{i}{j}_1", nn.Conv2d(c, k, 3, padding=1))
                self.add_module(f"conv{i}{j}_2", nn.Conv2d(k, k, 3, padding=1))
        for k in range(1, 5):
            self.add_module(f"output_{k}", nn.Conv2d(widths[0], classes, 1))
        self.relu = nn.ReLU()

    def forward(self, x):
        nodes = {}
        for j in range(1, 6):
            for i in range(1, 7 - j):
                if j > 1:
                    up = self.get_submodule(f"up{i}{j}")(nodes[i + 1, j - 1])
                    y = torch.cat([up] + [nodes[i, before] for before in range(1, j)], 1)
                else:
                    y = x if i == 1 else nn.functional.max_pool2d(nodes[i - 1, 1], 2)
                for part in (1, 2):
                    y = self.relu(self.get_submodule(f"conv{i}{j}_{part}")(y))
                nodes[i, j] = y
        return [self.get_submodule(f"output_{k}")(nodes[1, k + 1]) for k in range(1, 5)]


class Supervised(nn.Module):
    """One output of a NestedUnet, or the mean of the probabilities of several as a logit."""

    def __init__(self, net, heads):
        super().__init__()
        self.net, self.heads = net, heads

    def forward(self, x):
        outputs = self.net(x)
        if len(self.heads) == 1:
            return outputs[self.heads[0] - 1]
        mean = torch.stack([torch.sigmoid(outputs[k - 1]).double() for k in self.heads]).mean(0)
        return torch.logit(mean)


class Out(nn.Module):
    """torchvision's segmenters return a dictionary."""

    def __init__(self, net):
        super().__init__()
        self.backbone, self.classifier, self.net = net.backbone, net.classifier, [net]

    def forward(self, x):
        return self.net[0](x)["out"]


def is_segmenter(name):
    return name in ("unet", "nested-unet") or name.startswith(("smp-", "deeplabv3_"))


def segmenter_of(name, classes=1, bilinear=False, heads=(4,)):
    """Pictures to logits."""
    if name == "unet":
        return Unet(classes, bilinear=bilinear)
    if name == "nested-unet":
        return Supervised(NestedUnet(classes), heads)
    if name.startswith("smp-"):
        import segmentation_models_pytorch as smp
        _, decoder, encoder = name.split("-")
        return getattr(smp, SMP[decoder])(encoder, encoder_weights=None, classes=classes)
    build = getattr(torchvision.models.segmentation, name)
    return Out(build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False))


def state_of(model):
    """The state dict under the names that checkpoints have, without counters."""
    return {k.removeprefix("net."): v for k, v in model.state_dict().items()
            if not k.endswith("num_batches_tracked")}


def narrow(model, factor):
    """The same network with a fraction of its channels; pictures and outputs keep theirs."""
    outputs = ("segmentation_head.0", "classifier.4", "outc.conv", "output_")
    for path, m in list(model.named_modules()):
        keep = any(word in path for word in outputs)
        if isinstance(m, nn.BatchNorm2d):
            new = nn.BatchNorm2d(m.num_features // factor, eps=m.eps)
        elif isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            c = m.in_channels if m.in_channels == 3 else m.in_channels // factor
            k = m.out_channels if keep else m.out_channels // factor
            new = type(m)(c, k, m.kernel_size, m.stride, m.padding, dilation=m.dilation,
                          bias=m.bias is not None)
        else:
            continue
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model
