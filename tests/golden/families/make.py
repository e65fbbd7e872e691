#!/usr/bin/env python3
"""make.py: writes what tests/families.rs compares with into its own folder.

Needs numpy, torch, torchvision, safetensors, segmentation_models_pytorch and keras (PyPI). The
networks have the depth and the keys of their families and a fraction of their channels. Weights and
batch-norm statistics come from the formula of weights/export.py; beside each network's outputs
(<name>.safetensors) lie only the names and shapes of its tensors (<name>.tsv.gz).
"""
import argparse
import gzip
import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "weights"))
import export  # noqa: E402
import families  # noqa: E402

ENCODERS = [
    # file, family, stage, transform_input, fraction of the channels, side, tiles, batch statistics
    ("alexnet", "alexnet", None, False, 4, 95, 2, False),
    ("densenet121", "densenet121", None, False, 4, 64, 2, False),
    ("densenet121_features", "densenet121", "features", False, 8, 96, 1, False),
    ("densenet121_batch", "densenet121", None, False, 8, 64, 4, True),
    ("densenet161", "densenet161", None, False, 8, 64, 1, False),
    ("googlenet", "googlenet", None, True, 4, 87, 2, False),
    ("googlenet_batch", "googlenet", None, False, 8, 96, 8, True),
    ("inception_v3", "inception_v3", None, False, 4, 107, 2, False),
    ("inception_v3_transform", "inception_v3", None, True, 8, 75, 1, False),
    ("inception_v3_batch", "inception_v3", None, False, 8, 139, 8, True),
    ("resnet18_batch", "resnet18", None, False, 4, 64, 4, True),
    ("resnet50_batch", "resnet50", None, False, 8, 64, 4, True),
]

SEGMENTERS = [
    # file, family, classes, output, fraction of the channels, side, more of segmenter_of
    ("unet", "unet", 1, "sigmoid", 8, 64, {}),
    ("unet_bilinear", "unet", 3, "logits", 8, 64, {"bilinear": True}),
    ("nested_unet", "nested-unet", 1, "logits", 4, 48, {}),
    ("nested_unet_head2", "nested-unet", 2, "softmax", 4, 48, {"heads": (2,)}),
    ("nested_unet_mean", "nested-unet", 2, "sigmoid", 4, 48, {"heads": (1, 2, 3, 4)}),
    ("smp_unet_resnet34", "smp-unet-resnet34", 1, "logits", 8, 64, {}),
    ("smp_unet_resnet50", "smp-unet-resnet50", 1, "sigmoid", 8, 64, {}),
    ("smp_unet_densenet121", "smp-unet-densenet121", 1, "logits", 8, 64, {}),
    ("smp_unetplusplus_resnet18", "smp-unetplusplus-resnet18", 2, "softmax", 8, 64, {}),
    ("smp_unetplusplus_densenet121", "smp-unetplusplus-densenet121", 1, "logits", 8, 64, {}),
    ("smp_deeplabv3_resnet18", "smp-deeplabv3-resnet18", 1, "logits", 8, 160, {}),
    ("smp_deeplabv3_resnet50", "smp-deeplabv3-resnet50", 1, "logits", 8, 160, {}),
    ("deeplabv3_resnet50", "deeplabv3_resnet50", 3, "softmax", 8, 160, {}),
    ("deeplabv3_resnet101", "deeplabv3_resnet101", 2, "logits", 8, 160, {}),
]


def filled(model):
    """The model with weights from the formula; its state dict under package names."""
    own, state = model.state_dict(), families.state_of(model)
    for key, tensor in state.items():
        tensor.copy_(torch.from_numpy(export.formula(key, tuple(tensor.shape))))
    model.load_state_dict(own)
    return model


def record(file, build, run, shapes, kept, want=None):
    """Outputs in f32 (`want`, where something else than `run` made them) and the error of rounding
    to FP16."""
    want = run(build()) if want is None else want
    # Coprime with the width, so that every channel is among those kept.
    step = -(-want.shape[1] // kept)
    while np.gcd(step, want.shape[1]) > 1:
        step += 1
    emulated = run(export.emulate(build()))[:, ::step]
    want = want[:, ::step]
    norm = np.linalg.norm
    error = norm(emulated - want) / norm(want)
    cosine = float((emulated * want).sum() / norm(emulated) / norm(want))
    print(f"{file}: {want.shape} rms {np.sqrt((want**2).mean()):.3g} spread {want.std():.3g} "
          f"FP16 error {error:.2e} cosine {cosine:.7f}", flush=True)
    export.save({"features": np.ascontiguousarray(want.astype(np.float32)),
                 "step": np.array([step], np.float32),
                 "emulation_error": np.array([error], np.float32),
                 "emulation_cosine": np.array([cosine], np.float64)},
                os.path.join(HERE, f"{file}.safetensors"))
    lines = "".join(f"{key}\t{','.join(map(str, shape))}\n" for key, shape in shapes)
    with open(os.path.join(HERE, f"{file}.tsv.gz"), "wb") as f:
        f.write(gzip.compress(lines.encode(), 9, mtime=0))


def shapes_of(model):
    return [(key, tuple(v.shape)) for key, v in families.state_of(model).items()]


def encoder(file, name, stage, transform_input, factor, side, tiles, batch):
    def build():
        net = families.encoder_of(name, stage, transform_input)
        return filled(families.narrow(net, factor)).train(batch)

    u8 = export.pictures(f"{file} tiles", tiles, side)

    def run(model):
        with torch.no_grad():
            return model(export.normalise(u8)).double().flatten(1).numpy()

    shapes = [(k, s) for k, s in shapes_of(build()) if not (batch and "running_" in k)]
    record(file, build, run, shapes, 512)


def segmenter(file, name, classes, output, factor, side, more):
    def build():
        return filled(families.narrow(families.segmenter_of(name, classes, **more), factor)).eval()

    u8 = export.pictures(f"{file} pictures", 1, side)

    def run(model):
        with torch.no_grad():
            y = model(export.normalise(u8)).double()
            if output != "logits":
                y = torch.sigmoid(y) if output == "sigmoid" else torch.softmax(y, 1)
            return y.permute(0, 2, 3, 1).flatten(1).numpy()

    record(file, build, run, shapes_of(build()), 1024)


def keras_inception(file="inception_v3_keras", side=75):
    """Keras's own network; its arithmetic is that of families.keras_version, whose rounding error is
    recorded."""
    import keras
    net = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg",
                                         input_shape=(side, side, 3))
    twin = filled(families.encoder_of("inception_v3_keras"))
    for m in families.norms(twin):
        torch.nn.init.ones_(m.weight)
    twin.eval()
    state = families.state_of(twin)
    rank = lambda layer: int(layer.name.rpartition("_")[2]) if layer.name[-1].isdigit() else 0
    of_class = lambda kind: sorted((x for x in net.layers if type(x).__name__ == kind), key=rank)
    convs = [k.removesuffix(".conv.weight") for k in state if k.endswith(".conv.weight")]
    pairs = zip(convs, of_class("Conv2D"), of_class("BatchNormalization"), strict=True)
    for name, conv, norm in pairs:
        conv.set_weights([state[f"{name}.conv.weight"].numpy().transpose(2, 3, 1, 0)])
        norm.set_weights([state[f"{name}.bn.{part}"].numpy()
                          for part in ("bias", "running_mean", "running_var")])
    u8 = export.pictures(f"{file} tiles", 1, side)
    pixels = u8.astype(np.float32) / np.float32(127.5) - np.float32(1)
    want = np.asarray(net.predict(pixels, verbose=0), np.float64)
    nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def run(model):
        with torch.no_grad():
            return model(nchw).double().numpy()

    apart = np.linalg.norm(run(twin) - want) / np.linalg.norm(want)
    print(f"{file}: Keras and its twin in PyTorch differ by {apart:.1e}")
    if apart > 1e-5:
        sys.exit("the twin is none")

    def build():
        model = filled(families.encoder_of("inception_v3_keras")).eval()
        for m in families.norms(model):
            torch.nn.init.ones_(m.weight)
        return model

    shapes = [(k, s) for k, s in shapes_of(twin) if not k.endswith("bn.weight")]
    record(file, build, run, shapes, 512, want)


def keras_file():
    """keras.h5, a saved model of the kinds of layers a package can have, and keras.txt, its tensors
    under PyTorch's names with shape and sum of elements times places, as Keras itself holds them."""
    import keras
    from keras import layers
    keras.utils.set_random_seed(1)
    norm = {"beta_initializer": "normal", "moving_mean_initializer": "normal",
            "moving_variance_initializer": "uniform"}
    net = keras.Sequential([
        keras.Input((8, 8, 3)), layers.Conv2D(4, (1, 3), use_bias=False, name="conv2d_7"),
        layers.BatchNormalization(scale=False, name="batch_normalization_3", **norm),
        layers.Conv2D(5, (3, 1), bias_initializer="normal", name="conv2d_10"),
        layers.BatchNormalization(gamma_initializer="normal", name="batch_normalization_12", **norm),
        layers.Conv2DTranspose(2, (2, 2), strides=2, name="up12"),
        layers.Conv2D(2, 1, name="output_1"), layers.GlobalAveragePooling2D(),
        layers.Dense(3, name="predictions")])
    net.compile("adam", "mse")
    path = os.path.join(HERE, "keras.h5")
    net.save(path)
    os.chmod(path, 0o644)
    parts = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias",
             "moving_mean": "running_mean", "moving_variance": "running_var"}
    ranks = {"conv2d_7": "conv2d_0", "conv2d_10": "conv2d_1",
             "batch_normalization_3": "batch_normalization_0",
             "batch_normalization_12": "batch_normalization_1"}
    with open(os.path.join(HERE, "keras.txt"), "w") as f:
        for layer in net.layers:
            for weight in layer.weights:
                value = np.asarray(weight.numpy(), np.float64)
                if value.ndim == 4:
                    value = value.transpose(3, 2, 0, 1)
                elif value.ndim == 2:
                    value = value.T
                check = float((value.reshape(-1) * np.arange(1, value.size + 1)).sum())
                name = f"{ranks.get(layer.name, layer.name)}.{parts[weight.name]}"
                f.write(f"{name}\t{','.join(map(str, value.shape))}\t{check!r}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", help="names of networks")
    only = parser.parse_args().only
    torch.set_num_threads(2)
    for row in ENCODERS:
        if not only or row[0] in only:
            encoder(*row)
    for row in SEGMENTERS:
        if not only or row[0] in only:
            segmenter(*row)
    if not only or "inception_v3_keras" in only:
        keras_inception()
    if not only or "keras" in only:
        keras_file()


if __name__ == "__main__":
    main()
