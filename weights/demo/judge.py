"""Judges the demonstration package on slides of seeds it never saw and writes heldout.json.

    nice -n 10 python weights/demo/judge.py target/release/histokern --work /tmp/demo

Needs what train.py needs, and opencv-python-headless. The package's own tile rule (the CLAM
segmentation of recipe.toml) is done here with OpenCV, apart from histokern's own code, so that
heldout.json can be compared with what histokern predicts. Two other choices of tiles show how
little they matter, and a fit on mean colour shows how far colour alone would get.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import scipy.stats
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

import train

HELD_OUT_SEEDS = range(20_000, 20_064)
# recipe.toml, [tissue].
MEDIAN, CLOSE, MIN_AREA, MIN_HOLE, MAX_HOLES = 7, 4, 1.0, 0.1, 2048


def load(module, path):
    tensors = {k: v.float() for k, v in load_file(path).items()}
    missing = module.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert all(k.endswith("num_batches_tracked") for k in missing.missing_keys)
    return module.eval()


@torch.no_grad()
def predict(encoder, head, tiles):
    return float(torch.sigmoid(head(train.encode(encoder, tiles))))


def contours(level, downsample):
    """Outer contours and their holes on the smallest level, by area as CLAM does."""
    saturation = cv2.medianBlur(cv2.cvtColor(level, cv2.COLOR_RGB2HSV)[..., 1], MEDIAN)
    _, mask = cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU + cv2.THRESH_BINARY)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((CLOSE, CLOSE), np.uint8))
    found, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    unit = 512 * 512 / downsample**2
    for i in np.flatnonzero(tree[0, :, 3] == -1):
        holes = [found[j] for j in np.flatnonzero(tree[0, :, 3] == i)]
        area = cv2.contourArea(found[i]) - sum(cv2.contourArea(h) for h in holes)
        if area > MIN_AREA * unit:
            holes = sorted(holes, key=cv2.contourArea, reverse=True)[:MAX_HOLES]
            holes = [h for h in holes if cv2.contourArea(h) > MIN_HOLE * unit]
            yield tuple((c * downsample).astype(np.int32) for c in (found[i], *holes))


def cut_clam(slide):
    """Tiles of the grids of CLAM's contours: four-point rule, centre not in a hole."""
    with tifffile.TiffFile(slide) as tiff:
        base = tiff.pages[0].asarray()
        level = [p for p in tiff.pages if p.is_tiled][-1].asarray()
    downsample = base.shape[0] / level.shape[0]
    cut, tiles = train.CUT, []
    white = np.full((base.shape[0] + cut, base.shape[1] + cut, 3), 255, np.uint8)
    white[: base.shape[0], : base.shape[1]] = base
    for outer, *holes in contours(level, downsample):
        x0, y0, w, h = cv2.boundingRect(outer)
        kept = []
        for x in range(x0, x0 + w, cut):
            for y in range(y0, y0 + h, cut):
                cx, cy, s = x + cut // 2, y + cut // 2, cut // 4
                four = [(cx - s, cy - s), (cx + s, cy + s), (cx + s, cy - s), (cx - s, cy + s)]
                inside = any(cv2.pointPolygonTest(outer, (float(a), float(b)), False) >= 0
                             for a, b in four)
                hole = any(cv2.pointPolygonTest(k, (float(cx), float(cy)), False) > 0
                           for k in holes)
                if inside and not hole:
                    kept.append(white[y : y + cut, x : x + cut])
        tiles += kept if len(kept) > 1 else []
    small = [np.asarray(Image.fromarray(t).resize((train.TILE,) * 2, Image.BILINEAR)) for t in tiles]
    return np.stack(small)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    out = Path(__file__).parent
    encoder = load(train.Encoder(), out / "encoder.safetensors")
    head = load(train.Head(), out / "head.safetensors")
    folder = args.work / "heldout"
    folder.mkdir(parents=True, exist_ok=True)

    rows, colors = [], []
    for seed in HELD_OUT_SEEDS:
        slide, truth = train.synthesise(args.binary.resolve(), folder, seed)
        sets = {
            "clam": cut_clam(slide),
            "grid": train.cut(slide)[0],
            "lenient": train.cut(slide, least=0.1)[0],
            "shifted": train.cut(slide, offset=train.CUT // 2)[0],
        }
        row = {"seed": seed, "planted": truth["planted_fraction"],
               "counted": truth["counted_fraction"]}
        for name, tiles in sets.items():
            row[f"{name}_tiles"] = len(tiles)
            row[name] = predict(encoder, head, tiles)
        rows.append(row)
        colors.append(sets["grid"].reshape(-1, 3).mean(0).tolist() + [1])
    planted = np.array([r["planted"] for r in rows])
    for name in ("clam", "grid", "lenient", "shifted"):
        values = np.array([r[name] for r in rows])
        print(f"{name}: Spearman {scipy.stats.spearmanr(values, planted)[0]:.3f},"
              f" mean error {np.abs(values - planted).mean():.3f},"
              f" largest {np.abs(values - planted).max():.3f}, {len(rows)} slides")
    slides = train.prepare(args.binary.resolve(), args.work / "train", train.TRAIN_SEEDS)
    seen = np.array([s[0].reshape(-1, 3).mean(0).tolist() + [1] for s in slides])
    fit = np.linalg.lstsq(seen, np.array([s[2] for s in slides]), rcond=None)[0]
    guess = np.array(colors) @ fit
    print(f"mean colour alone: Spearman {scipy.stats.spearmanr(guess, planted)[0]:.3f}")

    keep = ("seed", "planted", "counted", "clam_tiles", "clam", "grid_tiles", "grid")
    held_out = {
        "synth": f"histokern synth --seed SEED --width {train.SIDE} --height {train.SIDE}"
                 f" --mpp {train.MPP}",
        "clam": "prediction on the tiles of recipe.toml's rule",
        "grid": f"prediction on whole tiles of a grid from (0, 0) of {train.CUT} level-0 px, kept"
                " when at least half of the pixels have max - min > 20 over RGB",
        "slides": [{k: round(v, 6) if isinstance(v := r[k], float) else v for k in keep}
                   for r in rows[:32]],
    }
    (out / "heldout.json").write_text(json.dumps(held_out, indent=1) + "\n")


if __name__ == "__main__":
    main()
