"""Trains the demonstration package on synthetic slides: encoder.safetensors, head.safetensors.
judge.py says afterwards how good they are.

    nice -n 10 python weights/demo/train.py target/release/histokern --work /tmp/demo

Needs numpy, pillow, safetensors, tifffile, imagecodecs and torch from PyPI. The slides come
from `histokern synth`, so nothing is downloaded.

1. Slides of many seeds; the planted share of proliferating nuclei is drawn from each seed.
2. The encoder, a narrow ResNet-18 cut after layer3, learns per tile how many tumour nuclei there
   are and which share of them proliferates (nucleus positions are in the truth files).
3. The head, gated attention over all tiles of a slide in the layout of CLAM_SB, learns the planted
   share of the slide from frozen features.
4. Weights are written in FP16.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

SIDE = 3072  # level-0 pixels of a slide
MPP = 0.5
CUT = 256  # level-0 pixels of a tile
TILE = 128  # pixels of a tile at 1 um
TRAIN_SEEDS = range(10_000, 10_160)
MEAN, STD = 0.5, 0.5


class Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Encoder(nn.Module):
    """ResNet-18 with a quarter of the channels, up to layer3: [B, 3, 128, 128] -> [B, 64]."""

    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(
            Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1)
        )

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))


class Gate(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(hidden, inner), nn.Tanh())
        self.attention_b = nn.Sequential(nn.Linear(hidden, inner), nn.Sigmoid())
        self.attention_c = nn.Linear(inner, 1)

    def forward(self, h):
        return self.attention_c(self.attention_a(h) * self.attention_b(h)), h


class Head(nn.Module):
    """CLAM_SB's layout with one output: [N, 64] -> a logit."""

    def __init__(self, features=64, hidden=32, inner=16):
        super().__init__()
        self.attention_net = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), Gate(hidden, inner)
        )
        self.classifiers = nn.Linear(hidden, 1)

    def forward(self, features):
        scores, h = self.attention_net(features)
        return self.classifiers((torch.softmax(scores, 0) * h).sum(0)).squeeze()


def synthesise(binary, folder, seed):
    slide, truth = folder / f"{seed}.svs", folder / f"{seed}.json"
    if not truth.exists():
        subprocess.run(
            [binary, "synth", "-o", slide, "--truth", truth, "--seed", str(seed), "--quiet",
             "--width", str(SIDE), "--height", str(SIDE), "--mpp", str(MPP), "--threads", "2"],
            check=True,
        )
    return slide, json.loads(truth.read_text())


def cut(slide, offset=0, least=0.5):
    """Tissue tiles [N, 128, 128, 3] and their level-0 corners, on a grid from `offset`."""
    pixels = tifffile.imread(slide, key=0)
    tiles, corners = [], []
    for y in range(offset, pixels.shape[0] - CUT + 1, CUT):
        for x in range(offset, pixels.shape[1] - CUT + 1, CUT):
            tile = pixels[y : y + CUT, x : x + CUT]
            if (np.ptp(tile, axis=2) > 20).mean() >= least:
                small = Image.fromarray(tile).resize((TILE, TILE), Image.BILINEAR)
                tiles.append(np.asarray(small))
                corners.append((x, y))
    return np.stack(tiles), np.array(corners)


def count(truth, corners):
    """[N, 2]: resting and proliferating tumour nuclei in each tile."""
    cells = []
    for kind in ("tumour", "proliferating"):
        points = np.array(truth["centers"].get(kind, np.zeros((0, 2)))).reshape(-1, 2)
        grid = np.zeros((SIDE // CUT + 1, SIDE // CUT + 1))
        np.add.at(grid, tuple((points // CUT).astype(int).T[::-1]), 1)
        cells.append(grid[corners[:, 1] // CUT, corners[:, 0] // CUT])
    return np.stack(cells, 1)


def prepare(binary, folder, seeds):
    """Tiles and counts of all slides, kept as .npy so that a second run starts at once."""
    folder.mkdir(parents=True, exist_ok=True)
    slides = []
    for seed in seeds:
        store = folder / f"{seed}.npz"
        if not store.exists():
            slide, truth = synthesise(binary, folder, seed)
            tiles, corners = cut(slide)
            np.savez(store, tiles=tiles, counts=count(truth, corners),
                     fraction=truth["planted_fraction"])
            slide.unlink()
        with np.load(store) as data:
            slides.append((data["tiles"], data["counts"], float(data["fraction"])))
    return slides


def augment(tiles, generator):
    """u8 [B, H, W, 3] -> normalised [B, 3, H, W], mirrored, turned and restained at random."""
    x = tiles.permute(0, 3, 1, 2).float()
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(3)
    x = torch.rot90(x, int(torch.randint(4, (), generator=generator)), (2, 3))
    size = (len(x), 3, 1, 1)
    density = -torch.log((x + 1) / 256)
    density = density * (0.8 + 0.4 * torch.rand(size, generator=generator))
    density = density * (0.75 + 0.5 * torch.rand((len(x), 1, 1, 1), generator=generator))
    x = 256 * torch.exp(-density) - 1
    return (x / 255 - MEAN) / STD


def normalise(tiles):
    return (torch.as_tensor(tiles).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def train_encoder(slides, epochs, seed):
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.as_tensor(np.concatenate([s[0] for s in slides]))
    counts = torch.as_tensor(np.concatenate([s[1] for s in slides])).float()
    total = counts.sum(1)
    share = counts[:, 1] / total.clamp(min=1)
    encoder = Encoder().to(memory_format=torch.channels_last)
    probe = nn.Linear(64, 2)
    parameters = [*encoder.parameters(), *probe.parameters()]
    batch = 64
    steps = epochs * (len(tiles) // batch)
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.15)
    encoder.train()
    step, started = 0, time.time()
    for epoch in range(epochs):
        order = torch.randperm(len(tiles), generator=generator)
        sums = torch.zeros(2)
        for k in range(len(tiles) // batch):
            rows = order[k * batch : (k + 1) * batch]
            batch_pixels = augment(tiles[rows], generator).to(memory_format=torch.channels_last)
            # bfloat16 halves the time on the CPU; what is exported is trained in f32 master weights.
            with torch.autocast("cpu", torch.bfloat16):
                features = encoder(batch_pixels)
            out = probe(features.float())
            weight = (total[rows] / 10).clamp(max=1)
            error = (torch.sigmoid(out[:, 0]) - share[rows]) ** 2
            many = F.mse_loss(out[:, 1], torch.log1p(total[rows]))
            loss = (weight * error).sum() / weight.sum().clamp(min=1) * 4 + 0.1 * many
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            sums += torch.stack([(weight * error).sum() / weight.sum(), many]).detach()
        print(f"epoch {epoch}: share mse {sums[0] / (k + 1):.4f}, count mse {sums[1] / (k + 1):.4f},"
              f" {time.time() - started:.0f} s", flush=True)
    return encoder.eval()


@torch.no_grad()
def encode(encoder, tiles):
    return torch.cat([encoder(normalise(tiles[i : i + 128])) for i in range(0, len(tiles), 128)])


@torch.no_grad()
def encode_restained(encoder, tiles, generator):
    parts = torch.as_tensor(tiles)
    return torch.cat([encoder(augment(parts[i : i + 128], generator)) for i in range(0, len(parts), 128)])


def train_head(encoder, slides, epochs, seed):
    """On frozen features of every slide as it is and restained, with tiles left out at random."""
    generator = torch.Generator().manual_seed(seed + 1)
    bags = [[encode(encoder, tiles), encode_restained(encoder, tiles, generator)]
            for tiles, _, _ in slides]
    targets = torch.tensor([fraction for _, _, fraction in slides])
    head = Head()
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    head.train()
    for epoch in range(epochs):
        total = 0.0
        for group in torch.randperm(len(bags), generator=generator).split(8):
            outputs = []
            for i in group:
                bag = bags[i][int(torch.rand((), generator=generator) < 0.5)]
                keep = torch.rand(len(bag), generator=generator) < 0.7
                outputs.append(head(bag[keep] if keep.any() else bag))
            loss = F.mse_loss(torch.sigmoid(torch.stack(outputs)), targets[group])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(group)
        schedule.step()
        if epoch % 20 == 19:
            print(f"head epoch {epoch}: mse {total / len(bags):.5f}", flush=True)
    return head.eval()


def export(module, path, metadata):
    """Convolution and linear weights in FP16; biases and batch-norm tensors stay F32."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        half = name.endswith("weight") and tensor.dim() > 1
        tensors[name] = (tensor.half() if half else tensor.float()).contiguous()
    save_file(tensors, path, metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--head-epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.time()

    slides = prepare(args.binary.resolve(), args.work / "train", TRAIN_SEEDS)
    print(f"{sum(len(s[0]) for s in slides)} tiles, {time.time() - started:.0f} s", flush=True)
    encoder = train_encoder(slides, args.epochs, args.seed)
    head = train_head(encoder, slides, args.head_epochs, args.seed)
    about = {"source": "histokern weights/demo/train.py", "licence": "MIT OR Apache-2.0"}
    export(encoder, args.out / "encoder.safetensors", about)
    export(head, args.out / "head.safetensors", about)

    print(f"{time.time() - started:.0f} s in all")


if __name__ == "__main__":
    main()
