#!/usr/bin/env python3
"""imports.py BINARY: `histokern import` of every checkpoint layout of the published systems.

Needs what requirements-systems.txt lists (PyPI); with segmentation_models_pytorch and transformers (PyPI)
their layouts too. A checkpoint has the exact keys and shapes its authors' code writes and random numbers
of FP16. Each of its tensors must be found again in the package, but those that inference does not need.
A tensor that is missing, of another shape or of another head must be named by the error. Exit code 1
when a check fails.
"""
import argparse
import glob
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import timm
    import torch
    import torchvision
    from safetensors.numpy import load_file
    from safetensors.torch import save_file
except ImportError as missing:
    sys.exit(f"{missing}: pip install -r tests/oracles/requirements-systems.txt")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "weights"))
import families  # noqa: E402
import networks  # noqa: E402

CHECKS = []


def check(name, good, detail=""):
    CHECKS.append(bool(good))
    print(f"{'ok  ' if good else 'FAIL'} {name}: {detail}", flush=True)


def state(build):
    """A state dict of random numbers under the keys of the module that `build` makes."""
    with torch.device("meta"):
        meta = build().state_dict()
    return {key: torch.tensor(5) if key.endswith("num_batches_tracked")
            else torch.rand(value.shape).half() for key, value in meta.items()}


def inception():
    return torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=1)


def adco(prefix):
    def build():
        holder, encoder = torch.nn.Module(), networks.resnet50_layer3()
        encoder.fc = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.ReLU(),
                                         torch.nn.Linear(1024, 128))
        holder.encoder_q = holder.encoder_k = encoder
        return holder
    return {"arch": "resnet50", "best_acc": 0.5,
            "state_dict": {prefix + key: value for key, value in state(build).items()}}


def balnmp(original=False, **more):
    def build():
        holder = networks.BalnmpHead(**more)
        extractor = torch.nn.Sequential(torchvision.models.vgg16_bn(weights=None).features)
        holder.image_feature_extractor = extractor if original \
            else families.holding(extractor=extractor)
        return holder
    return state(build)


def renamed(value, *pairs):
    for old, new in pairs:
        value = {key.replace(old, new): tensor for key, tensor in value.items()}
    return value


def clam(**more):
    return state(lambda: networks.Clam(**{"classes": 2, **more}))


def template(folder, name, head):
    """A package of an encoder whose recipe has a head of another family."""
    path = os.path.join(folder, "template-" + name)
    os.mkdir(path)
    with open(os.path.join(path, "recipe.toml"), "w") as f:
        f.write('schema = 1\nname = "t"\ntitle = "t"\nlicence = "CC0-1.0"\nsource = "t"\n'
                "[tiles]\nsize_px = 224\n[preprocess]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
                f'[encoder]\nfamily = "none"\n[[head]]\nname = "h"\nfamily = "{name}"\n{head}')
    return ["--package", path]


def layouts(folder):
    """Name, arguments, checkpoint, and prefixes of what inference does not need."""
    three = 'classes = ["a", "b", "c"]\n'
    yield "inception_v3", ["--recipe", "ekholm-proliferation"], state(inception), \
        ["AuxLogits.", "fc."]
    yield "tile-linear", template(folder, "tile-linear", 'aggregate = "mean"\n'), state(inception), \
        ["AuxLogits.", "Conv2d_", "Mixed_"]
    for prefix in ("module.", ""):
        yield "histcode-encoder", ["--recipe", "histcode-gene"], adco(prefix), \
            [prefix + "encoder_k.", prefix + "encoder_q.fc."]
    training, tumour = ["instance_classifiers."], ["--recipe", "histcode-diagnosis"]
    yield "clam-sb", tumour, clam(), training
    yield "clam-sb", tumour, clam(dropout=True, size=(1024, 512, 384)), training
    yield "clam-sb", tumour, renamed(clam(dropout=True), ("attention_net.", "attention_net.module.")), \
        training
    yield "clam-sb", ["--recipe", "histcode-gene", "--head", "MKI67"], clam(classes=1, instances=False), []
    yield "clam-sb", tumour, {"model": renamed(clam(), ("classifiers.", "classifiers.0."),
                                               ("instance_classifiers.0.", "instance_classifiers."))}, \
        training
    yield "clam-sb-pool", template(folder, "clam-sb-pool", ""), clam(classes=1, pooled=True), training
    yield "clam-mb", template(folder, "clam-mb", three), clam(classes=3, multiple=True), training
    yield "abmil", template(folder, "abmil", ""), state(lambda: networks.Abmil(1024, 128)), []
    for experiment, classes in (("", 2), ("-2", 3)):
        yield "balnmp", ["--recipe", "balnmp-dl-cnb" + experiment], balnmp(classes=classes), []
    yield "balnmp", ["--recipe", "balnmp-dl-cnb-c"], balnmp(original=True, clinical=5), []
    yield "balnmp", ["--recipe", "balnmp-dl-cnb"], balnmp(original=True, dropout=False), []
    for name, classifier in (("resnet50", "fc."), ("resnet101", "fc."), ("densenet121", "classifier.")):
        value = state(lambda: getattr(torchvision.models, name)(num_classes=2))
        wrapped = {"module." + key: tensor for key, tensor in value.items()}
        yield name, [], {"model_state_dict": wrapped}, ["module." + classifier]
    yield "unet", [], state(families.Unet), []
    yield "nested-unet", [], state(families.NestedUnet), []
    deeplab = torchvision.models.segmentation.deeplabv3_resnet50
    yield "deeplabv3_resnet50", [], \
        state(lambda: deeplab(weights=None, weights_backbone=None, num_classes=2, aux_loss=True)), \
        ["aux_classifier."]
    yield from smp_layouts()


def smp_layouts():
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        print("no segmentation_models_pytorch: its layouts are left out")
        return
    for decoder, encoder in (("Unet", "resnet34"), ("UnetPlusPlus", "resnet50"),
                             ("Unet", "densenet121"), ("DeepLabV3", "resnet50")):
        value = state(lambda: getattr(smp, decoder)(encoder, encoder_weights=None, classes=1))
        yield f"smp-{decoder.lower()}-{encoder}", [], value, []
        if decoder == "DeepLabV3":
            old = renamed(value, ("decoder.aspp.", "decoder.0."), ("decoder.conv.", "decoder.1."),
                          ("decoder.bn.", "decoder.2."))
            yield f"smp-{decoder.lower()}-{encoder}", [], old, []


def randomised(net):
    """The network with random numbers of FP16 for the start's, many of which are alike."""
    for parameter in net.parameters():
        parameter.data = torch.rand(parameter.shape).half()
    return net


def snapshots(importer):
    """Folders as a download from Hugging Face leaves them, written by the publishers' own libraries."""
    from timm.models._hub import save_config_for_hf
    folder = os.path.join(importer.folder, "timm")
    weights = os.path.join(folder, "model.safetensors")
    net = randomised(timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=0, depth=2))
    os.mkdir(folder)
    save_config_for_hf(net, os.path.join(folder, "config.json"))
    save_file(net.state_dict(), weights)
    snapshot(importer, folder, [])
    key = "blocks.1.attn.qkv.weight"
    without = {k: v for k, v in net.state_dict().items() if k != key}
    cut = {**without, key: net.state_dict()[key][:, :-1].contiguous()}
    for how, damage in (("without", without), ("cut", cut)):
        save_file(damage, weights)
        importer.refused(f"snapshot, {key} {how}", folder, [], key)
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError:
        return print("no transformers: its snapshot is left out")
    folder = os.path.join(importer.folder, "transformers")
    randomised(Dinov2Model(Dinov2Config(hidden_size=96, num_hidden_layers=2, num_attention_heads=2,
                                        image_size=48, patch_size=16))).save_pretrained(folder)
    snapshot(importer, folder, ["embeddings.mask_token"])


def snapshot(importer, folder, dropped):
    what = f"snapshot of {os.path.basename(folder)}"
    code, message, package = importer.run(folder)
    if code != 0:
        return check(what, False, message)
    file = load_file(os.path.join(folder, "model.safetensors"))
    found_again(what, {key: torch.from_numpy(value) for key, value in file.items()}, package, dropped)


def tensors(checkpoint):
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(checkpoint.get(wrapper), dict):
            return checkpoint[wrapper]
    return checkpoint


class Importer:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.count = binary, folder, 0

    def run(self, checkpoint, *args):
        """Exit code and message, and the package."""
        self.count += 1
        path = checkpoint
        if not isinstance(checkpoint, str):
            path = os.path.join(self.folder, f"{self.count}.pth")
            torch.save(checkpoint, path)
        package = os.path.join(self.folder, f"package-{self.count}")
        done = subprocess.run([self.binary, "import", path, *args, "-o", package, "--quiet"],
                              capture_output=True, text=True)
        if path != checkpoint:
            os.remove(path)
        return done.returncode, done.stderr.strip(), package

    def refused(self, what, checkpoint, args, word):
        code, message, package = self.run(checkpoint, *args)
        good = code == 1 and word in message and not os.path.exists(package)
        check(what, good, message if good else f"exit code {code}, no {word!r} in: {message}")


def found_again(name, checkpoint, package, dropped):
    """Every number of the checkpoint is in the package under one name, but what is dropped."""
    there = [value for file in glob.glob(os.path.join(package, "*.safetensors"))
             for value in load_file(file).values()]
    stored = {value.astype(np.float16).tobytes() for value in there}
    lost = {key for key, value in tensors(checkpoint).items() if value.numpy().tobytes() not in stored}
    needless = {key for key in tensors(checkpoint)
                if key.startswith(tuple(dropped)) or key.endswith("num_batches_tracked")}
    good = len(there) == len(tensors(checkpoint)) - len(needless) and lost == needless
    wrong = sorted(lost ^ needless)[:4]
    check(name, good, f"{len(there)} tensors, {len(lost)} dropped" + (f"; not {wrong}" if wrong else ""))


def damaged(importer, name, args, checkpoint, dropped):
    """One matrix of the encoder or head is missing, then cut, then there is one too many."""
    inner = tensors(checkpoint)
    needed = [key for key, value in inner.items()
              if value.ndim > 1 and not key.startswith(tuple(dropped))]
    key = needed[len(needed) // 2]
    # The package's own name of the layer ends like the checkpoint's; DataParallel's part is no part
    # of it.
    word = ".".join(key.replace("module.", "").split(".")[-3:-1]).removeprefix("0.")
    wrap = lambda value: {k: value if v is inner else v for k, v in checkpoint.items()} \
        if inner is not checkpoint else value
    without = {k: v for k, v in inner.items() if k != key}
    importer.refused(f"{name} without {key}", wrap(without), args, word)
    if name == "tile-linear":
        # The package has no encoder to fit, and all but the last layer is dropped.
        return
    importer.refused(f"{name}, {key} cut", wrap({**inner, key: inner[key][:, :-1].contiguous()}), args, word)
    importer.refused(f"{name}, another tensor", wrap({**inner, "spare.weight": torch.zeros(2, 2).half()}),
                     args, "spare.weight")


def swapped(importer):
    """Heads that belong to another model than the recipe says."""
    diagnosis, gene = ["--recipe", "histcode-diagnosis"], ["--recipe", "histcode-gene"]
    image, clinical = ["--recipe", "balnmp-dl-cnb"], ["--recipe", "balnmp-dl-cnb-c"]
    sb, bal = ["--family", "clam-sb"], ["--family", "balnmp"]
    for what, checkpoint, args, word in [
        ("a gene's head for the diagnosis", clam(classes=1), sb + diagnosis, "classifiers.weight"),
        ("a diagnosis for a gene", clam(), sb + gene, "classifiers.weight"),
        ("CLAM_MB for CLAM_SB", clam(multiple=True), sb + diagnosis, "classifiers.1.weight"),
        ("the pooling of NN_Pool", {**clam(classes=1), "classifiers.weight": torch.rand(1, 1024).half()},
         sb + gene, "classifiers.weight"),
        ("three classes of BALNMP for two", balnmp(classes=3), bal + image, "classifier.2.weight"),
        ("DL-CNB+C for DL-CNB", balnmp(clinical=5), bal + image, "classifier.0.weight"),
        ("DL-CNB for DL-CNB+C", balnmp(), bal + clinical, "classifier.0.weight"),
        ("CLAM for BALNMP", clam(), bal + image, "attention_net.0"),
        ("BALNMP for CLAM", balnmp(), sb + diagnosis, "attention_aggregator."),
    ]:
        importer.refused(what, checkpoint, args, word)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the histokern command")
    args = parser.parse_args()
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        importer, seen = Importer(args.binary, folder), set()
        for family, more, checkpoint, dropped in layouts(folder):
            options = ["--family", family, *more]
            name = f"{family} {list(tensors(checkpoint))[0]}"
            code, message, package = importer.run(checkpoint, *options)
            if code != 0:
                check(name, False, message)
                continue
            found_again(name, checkpoint, package, dropped)
            if family not in seen:
                damaged(importer, family, options, checkpoint, dropped)
            seen.add(family)
        swapped(importer)
        snapshots(importer)
    print(f"{len(CHECKS)} checks, {CHECKS.count(False)} failed")
    sys.exit(CHECKS.count(False) > 0)


if __name__ == "__main__":
    main()
