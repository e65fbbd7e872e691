"""Reads our feature files with h5py and torch as TRIDENT, CLAM and STAMP do, and has our reader
read files written in each of their ways.

    python tests/oracles/h5.py               all checks
    python tests/oracles/h5.py --fixtures    only writes tests/golden/report/peers

Runs `cargo test --test report` itself, first with HISTOKERN_H5_OUT, then with HISTOKERN_H5_IN,
where our reader also gets damaged copies of every file.
Needs: h5py numpy; torch for the .pt files, which are left out without it
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import h5py
import numpy as np

try:
    import torch
except ImportError:
    torch = None

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "tests/golden/report/peers"
# What is committed of the files write_theirs makes: one of each kind.
FIXTURES = ("clam_earliest clam_latest clam_rows clam_lzf clam_gzip_shuffle half big_endian "
            "three_axes trident_earliest trident_latest stamp_latest stamp_historic bad_nan "
            "bad_names bad_count bad_huge_gzip bad_stamp_unit").split()
RECIPE = "resnet50-layer3@0123abcd"
# name: n, d, level-0 side, micrometres per pixel
CASES = {
    "small": (10, 8, 512.0, 0.25),
    "empty": (0, 1024, 512.0, 0.25),
    "one": (1, 1, 512.0, 0.25),
    "big": (9001, 24, 512.0, 0.25),
    "odd_mpp": (5, 3, 483.0188679245283, 0.265),
    "no_mpp": (5, 3, 256.0, None),
}


def values(n, d):
    return (((np.arange(n * d) * 37) % 2048) * 0.5 - 300).astype(np.float32).reshape(n, d)


def grid(n, step=512):
    i = np.arange(n)
    return np.stack([(i % 100) * step, (i // 100) * step + 7], 1).astype(np.int64)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def same(got, expected, what):
    got, expected = np.asarray(got), np.asarray(expected)
    check(got.dtype == expected.dtype, f"{what}: dtype {got.dtype}, expected {expected.dtype}")
    check(got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}")
    check(np.array_equal(got, expected), f"{what}: values differ")


def dataset(file, name, expected, chunk_rows, what):
    data = file[name]
    same(data[:], expected, f"{what}/{name}")
    check(data.maxshape == (None, expected.shape[1]), f"{what}/{name}: maxshape {data.maxshape}")
    rows = max(1, min(len(expected), chunk_rows))
    check(data.chunks == (rows, expected.shape[1]), f"{what}/{name}: chunks {data.chunks}")
    check(data.compression is None, f"{what}/{name}: {data.compression}")


def trident_patcher(file):
    """The values TRIDENT's loaders take: downsample of the patch against level 0, and its size."""
    attrs = file["coords"].attrs
    patch_size = attrs.get("patch_size")
    level0, target = attrs.get("level0_magnification"), attrs.get("target_magnification")
    if None in (patch_size, level0, target):
        check(attrs["patch_level"] == 0, "CLAM fall-back needs a level")
        return patch_size, attrs["custom_downsample"]
    return patch_size, level0 / target


def read_trident(path, n, d, side, mpp):
    with h5py.File(path, "r") as file:
        check(sorted(file) == ["coords", "features"], f"{path}: {sorted(file)}")
        dataset(file, "features", values(n, d), 4096, path)
        dataset(file, "coords", grid(n), 4096, path)
        a, b = dict(file["features"].attrs), dict(file["coords"].attrs)
        check(a == b, f"{path}: attributes differ: {a} {b}")
        expected = {
            "name": path.stem, "savetodir": "", "encoder": "resnet50",
            "histokern_recipe_id": RECIPE, "patch_size": 256, "overlap": 0,
            "patch_size_level0": side, "level0_width": 60000, "level0_height": 40000,
        }
        if mpp is None:
            expected |= {"patch_level": 0, "custom_downsample": side / 256}
        else:
            expected |= {"level0_magnification": 10 / mpp,
                         "target_magnification": 10 / (mpp * (side / 256))}
        check(a == expected, f"{path}: {a}\nexpected {expected}")
        for key, value in a.items():
            kind = str if isinstance(expected[key], str) else (np.int64, np.float64)
            check(isinstance(value, kind), f"{path}: {key} is {type(value)}")
        check(isinstance(a["patch_size"], np.int64), f"{path}: patch_size")
        patch_size, downsample = trident_patcher(file)
        check(abs(patch_size * downsample - side) < 1e-9 * side, f"{path}: cuts another square")


def read_clam(path, n, d):
    # CLAM's dataset: features and coords to tensors, and the coordinate count for its sampler.
    with h5py.File(path, "r") as file:
        check(sorted(file) == ["coords", "features"], f"{path}: {sorted(file)}")
        dataset(file, "features", values(n, d), 4096, path)
        dataset(file, "coords", grid(n).astype(np.int32), 4096, path)
        check(file["features"].dtype == np.float32, f"{path}: {file['features'].dtype}")
    # CLAM's heatmap script opens the same file to append to it.
    with h5py.File(path, "r+") as file:
        file["features"].resize(n + 3, axis=0)
        file["features"][n:] = 5
        check((file["features"][-3:] == 5).all(), f"{path}: not resizable")
        same(file["features"][:n], values(n, d), f"{path} after growing")


def read_clam_patches(path, n):
    with h5py.File(path, "r") as file:
        check(list(file) == ["coords"], f"{path}: {list(file)}")
        dataset(file, "coords", grid(n), 4096, path)
        attrs = file["coords"].attrs
        check(attrs["patch_level"] == 1 and attrs["patch_size"] == 256, f"{path}: {dict(attrs)}")
        same(attrs["downsample"], np.array([4.0, 4.0001]), path)
        for key in ("level_dim", "downsampled_level_dim"):
            same(attrs[key], np.array([15000, 10000]), path)
        check(attrs["name"] == path.stem and attrs["save_path"] == "", f"{path}: {dict(attrs)}")
        check(len(attrs) == 7, f"{path}: {dict(attrs)}")


def stamp_coords(file):
    """STAMP's rule for what a coordinate means."""
    attrs, coords = file.attrs, file["coords"][:]
    if (size := attrs.get("tile_size")) and attrs.get("unit") == "um":
        return coords, float(size)
    if size := attrs.get("tile_size_um"):
        return coords, float(size)
    raise RuntimeError("unable to infer coordinates")


def read_stamp(path, n, d, side, mpp):
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        check(sorted(file) == ["coords", "feats"], f"{path}: {sorted(file)}")
        dataset(file, "feats", values(n, d).astype(np.float16), 4096, path)
        um = (grid(n) * mpp).astype(np.float32)
        dataset(file, "coords", um, 4096, path)
        coords, size = stamp_coords(file)
        same(coords, um, path)
        check(size == side * mpp, f"{path}: {size}")
        attrs = dict(file.attrs)
        check(re.fullmatch("[0-9a-f]{8}", attrs.pop("code_hash")), f"{path}: code_hash")
        expected = {"extractor": "resnet50", "unit": "um", "tile_size_um": side * mpp,
                    "tile_size_px": 256, "feat_type": "tile", "histokern_recipe_id": RECIPE}
        check(attrs == expected, f"{path}: {attrs}")


def read_ours(folder):
    for name, (n, d, side, mpp) in CASES.items():
        read_trident(folder / f"trident/{name}.h5", n, d, side, mpp)
        read_clam(folder / f"clam/{name}.h5", n, d)
        read_clam_patches(folder / f"clam_patches/{name}.h5", n)
        if torch is not None:
            tensor = torch.load(folder / f"pt/{name}.pt", weights_only=True)
            check(tensor.is_contiguous() and not tensor.requires_grad, f"{name}.pt: {tensor}")
            same(tensor.numpy(), values(n, d), f"{name}.pt")
        stamp = folder / f"stamp/{name}.h5"
        if n > 0 and mpp is not None:
            read_stamp(stamp, n, d, side, mpp)
        else:
            check(not stamp.exists(), f"{stamp} should not exist")


def read_geojson(path):
    document = json.loads(path.read_text())
    check(document["type"] == "FeatureCollection", path)
    ids, kinds = set(), {}
    for feature in document["features"]:
        check(feature["type"] == "Feature", path)
        check(str(uuid.UUID(feature["id"])) == feature["id"], f"{path}: id {feature['id']}")
        check(feature["id"] not in ids, f"{path}: id {feature['id']} twice")
        ids.add(feature["id"])
        properties, geometry = feature["properties"], feature["geometry"]
        kind = properties["objectType"]
        kinds[kind] = kinds.get(kind, 0) + 1
        check(kind in ("tile", "detection", "annotation"), f"{path}: {kind}")
        check(geometry["type"] == "Polygon", path)
        for index, ring in enumerate(geometry["coordinates"]):
            check(len(ring) >= 4 and ring[0] == ring[-1], f"{path}: ring not closed: {ring}")
            points = np.array(ring, float)
            x, y = points[:-1].T
            area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum()
            check((area > 0) == (index == 0), f"{path}: ring {index} turns the wrong way")
        for value in properties.get("measurements", {}).values():
            check(isinstance(value, (int, float)) or value == "NaN", f"{path}: {value}")
        if kind != "annotation":
            check(set(properties["measurements"]) == {"score", "percent rank", "kept"}, path)
    return kinds


def write_theirs(folder, only=None):
    """One file for each way of writing the peers have, and what our reader must find in it."""
    expected = {}
    n, d = 20, 6
    features, coords = values(n, d), grid(n, 448)

    def add(name, fill, *, layout="clam", libver="earliest", unit="px", side=None, encoder=None,
            xy=coords):
        if only and name not in only:
            return
        with h5py.File(folder / f"{name}.h5", "w", libver=libver) as file:
            fill(file)
        expected[name] = {"layout": layout, "n": n, "d": d, "features": features.ravel().tolist(),
                          "coords": None if xy is None else np.asarray(xy, float).tolist(),
                          "unit": unit, "side": side, "encoder": encoder}

    def clam(file, chunk=8, **options):
        # save_hdf5 of CLAM: created with the first batch, then grown
        for key, data in (("features", features), ("coords", coords.astype(np.int32))):
            made = file.create_dataset(key, shape=(chunk, data.shape[1]), dtype=data.dtype,
                                       maxshape=(None, data.shape[1]),
                                       chunks=(chunk, data.shape[1]), **options)
            made[:] = data[:chunk]
            made.resize(len(data), axis=0)
            made[chunk:] = data[chunk:]

    for libver in ("earliest", "v108", "v110", "v114", "latest"):
        add(f"clam_{libver}", clam, libver=libver)
    add("clam_rows", lambda f: clam(f, 1))
    for options in ({"compression": "gzip"}, {"compression": "lzf"},
                    {"compression": "gzip", "shuffle": True}, {"fletcher32": True},
                    {"compression": "lzf", "shuffle": True}):
        add("clam_" + "_".join(v if isinstance(v, str) else k for k, v in options.items()), lambda f: clam(f, 7, **options))

    def plain(file, dtype="<f4", feature_shape=(n, d), coord_shape=(n, 2)):
        file["features"] = features.astype(dtype).reshape(feature_shape)
        file["coords"] = coords.reshape(coord_shape)

    add("contiguous", plain)
    add("contiguous_latest", plain, libver="latest")
    add("half", lambda f: plain(f, "<f2"))
    add("double", lambda f: plain(f, "<f8"))
    add("big_endian", lambda f: plain(f, ">f4"))
    add("three_axes", lambda f: plain(f, "<f4", (1, n, d), (1, n, 2)))
    add("no_coords", lambda f: f.create_dataset("features", data=features), xy=None)

    def trident(file, **over):
        attributes = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40,
                      "target_magnification": 20, "overlap": 0, "name": "s", "savetodir": "/x",
                      "level0_width": 9000, "level0_height": 8000} | over
        for key, data in (("features", features), ("coords", coords)):
            made = file.create_dataset(key, data=data, maxshape=(None, data.shape[1]),
                                       chunks=(1, data.shape[1]))
            for name, value in attributes.items():
                if value is not None:
                    made.attrs[name] = value
        file["features"].attrs["encoder"] = "uni_v1"

    known = {"layout": "trident", "encoder": "uni_v1"}
    for libver in ("earliest", "latest"):
        add(f"trident_{libver}", trident, libver=libver, side=512.0, **known)
    add("trident_float", lambda f: trident(f, patch_size_level0=483.5), side=483.5, **known)
    add("trident_no_side", lambda f: trident(f, patch_size_level0=None), side=512.0, **known)
    add("trident_from_clam", lambda f: trident(
        f, patch_size_level0=None, level0_magnification=None, target_magnification=None,
        patch_level=0, custom_downsample=4), side=1024.0, **known)

    um = (coords * 0.25).astype(np.float32)

    def stamp(file, name="feats", xy=um, **attributes):
        file[name] = features.astype(np.float16)
        file["coords"] = xy
        for key, value in attributes.items():
            file.attrs[key] = value

    current = {"stamp_version": "2.3.0", "extractor": "virchow2-1a2b3c4d", "unit": "um",
               "tile_size_um": 256.0, "tile_size_px": 224, "code_hash": "1a2b3c4d",
               "feat_type": "tile"}
    known = {"layout": "stamp", "unit": "um", "side": 256.0, "xy": um}
    for libver in ("earliest", "latest"):
        add(f"stamp_{libver}", lambda f: stamp(f, **current), libver=libver,
            encoder="virchow2-1a2b3c4d", **known)
    add("stamp_older", lambda f: stamp(f, tile_size=256.0, unit="um"), **known)
    add("stamp_patch_embeddings", lambda f: stamp(f, "patch_embeddings", **current),
        encoder="virchow2-1a2b3c4d", **known)
    historic = grid(n, 224)
    add("stamp_historic", lambda f: stamp(f, xy=historic),
        **known | {"xy": historic * (256 / 224)})

    def bad(name, message, fill):
        if only and name not in only:
            return
        with h5py.File(folder / f"{name}.h5", "w") as file:
            fill(file)
        expected[name] = {"error": message}

    def nan(file):
        broken = features.copy()
        broken[17, 3] = np.nan
        file["features"] = broken

    bad("bad_nan", "features: row 17, column 3 is NaN", nan)
    bad("bad_names", "no dataset features, feats or patch_embeddings, only [coords, imgs]",
        lambda f: (f.create_dataset("imgs", data=features), f.create_dataset("coords", data=coords)))
    bad("bad_count", "coords: shape [19, 2], but features has 20 rows",
        lambda f: (f.create_dataset("features", data=features),
                   f.create_dataset("coords", data=coords[:19])))
    bad("bad_rank", "features: shape [120], expected [N, width]",
        lambda f: f.create_dataset("features", data=features.ravel()))
    bad("bad_type", "features: values of type", lambda f: f.create_dataset(
        "features", data=np.full((20, 6), b"x")))
    bad("bad_integer", "features: values of type i32",
        lambda f: f.create_dataset("features", data=features.astype(np.int32)))
    bad("bad_huge", "features: shape [1099511627776, 6] of 4-byte values",
        lambda f: f.create_dataset("features", shape=(1 << 40, 6), chunks=(1, 6), dtype="f4"))
    bad("bad_huge_gzip", "features: shape [1099511627776, 6] of 4-byte values",
        lambda f: f.create_dataset("features", shape=(1 << 40, 6), chunks=(1, 6), dtype="f4",
                                   compression="gzip"))
    bad("bad_stamp_unit", "no attribute tile_size_um, and a tile step of 100",
        lambda f: stamp(f, xy=grid(n, 100)))
    (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    return len(expected)


def run(test, **environment):
    command = ["cargo", "test", "--quiet", "--test", "report", "--", "--exact", test]
    outcome = subprocess.run(command, cwd=ROOT, env=os.environ | environment)
    check(outcome.returncode == 0, f"{test} with {environment}")


def main():
    if sys.argv[1:] == ["--fixtures"]:
        PEERS.mkdir(exist_ok=True)
        check(write_theirs(PEERS, FIXTURES) == len(FIXTURES), "a fixture has no such name")
        return
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Path(scratch, "ours"), Path(scratch, "theirs")
        ours.mkdir()
        theirs.mkdir()
        run("feature_files_read_back", HISTOKERN_H5_OUT=str(ours))
        read_ours(ours)
        run("geojson_for_qupath", HISTOKERN_H5_OUT=str(ours))
        kinds = read_geojson(ours / "tiles.geojson")
        check(kinds == {"annotation": 2, "tile": 200}, f"tiles.geojson: {kinds}")
        count = write_theirs(theirs)
        run("feature_files_of_the_peers", HISTOKERN_H5_IN=str(theirs))
        run("damaged_feature_files_are_errors", HISTOKERN_H5_IN=str(theirs))
    print(f"h5.py: {len(CASES)} of our slides in 5 layouts, tiles.geojson, {count} files of theirs")


if __name__ == "__main__":
    main()
