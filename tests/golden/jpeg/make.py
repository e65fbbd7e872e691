#!/usr/bin/env python3
"""Makes streams.bin, small JPEG streams one behind the other, and expected.json, what each decodes to.

Needs the PyPI packages numpy, pillow (whose decoder is libjpeg-turbo) and imagecodecs (an encoder
for 4:4:0).

expected.json lists for each stream its name, length, width, height and the SHA-256 of its RGB pixels
as libjpeg-turbo decodes them with its default settings. The streams named `wrap` have quantisation
steps that drive the inverse DCT out of its 16 bits; there the C and the vector form of libjpeg-turbo
differ, and the vector form, which nearly every build uses, is what counts: run this on x86-64.
"""
import hashlib
import io
import json
import os

import imagecodecs
import numpy as np
from PIL import Image, features

HERE = os.path.dirname(os.path.abspath(__file__))
RANDOM = np.random.default_rng(7)
SIZES = [(1, 1), (2, 3), (3, 2), (4, 5), (5, 17), (6, 8), (7, 7), (8, 9), (9, 16), (13, 40), (15, 15),
         (16, 1), (17, 9), (31, 33), (33, 18), (50, 49)]
STREAMS, EXPECTED = [], []


def picture(width, height, kind):
    y, x = np.mgrid[0:height, 0:width]
    if kind == "smooth":
        rgb = np.stack([200 + 40 * np.sin(x / 9), 120 + 70 * np.cos((x + y) / 11), 170 + 50 * np.sin(y / 7)], -1)
    elif kind == "noise":
        rgb = RANDOM.integers(0, 256, (height, width, 3))
    else:
        rgb = np.stack([128 + 120 * np.sign(np.sin(x * 1.3 + y)), (x * 37 + y * 11) % 256, 255 * ((x // 3 + y // 2) % 2)], -1)
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def put(name, stream):
    pixels = np.asarray(Image.open(io.BytesIO(stream)).convert("RGB"))
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    STREAMS.append(stream)
    EXPECTED.append({"name": name, "length": len(stream), "width": pixels.shape[1], "height": pixels.shape[0],
                     "sha256": digest})


def encode(image, **options):
    out = io.BytesIO()
    image.save(out, "jpeg", **options)
    return out.getvalue()


def samplings():
    """Every sampling in sizes around the edges of blocks and units."""
    for k, (width, height) in enumerate(SIZES):
        kind = ["smooth", "edges", "noise"][k % 3]
        quality = [75, 30, 90][k % 3] if width * height < 1000 else 40
        image = picture(width, height, kind)
        shape = f"{width}x{height} {kind}"
        for sampling in range(3):
            stream = encode(image, quality=quality, subsampling=sampling, optimize=True)
            put(f"{['444', '422', '420'][sampling]} {shape}", stream)
        array = np.asarray(image)
        put(f"440 {shape}", bytes(imagecodecs.jpeg8_encode(array, level=quality, subsampling="440", optimize=True)))
        put(f"grey {shape}", encode(image.convert("L"), quality=quality, optimize=True))
        put(f"rgb {shape}", encode(image, quality=quality, keep_rgb=True, subsampling=0, optimize=True))


def qualities():
    """Codes of all lengths, in tables made for the picture and in the usual ones."""
    for k, quality in enumerate([1, 2, 5, 10, 25, 50, 75, 85, 95, 98, 100]):
        image = picture(24, 20, ["noise", "edges"][k % 2])
        put(f"quality {quality}", encode(image, quality=quality, subsampling=2 * (k % 2)))
        put(f"quality {quality} optimised", encode(image, quality=quality, subsampling=2 - 2 * (k % 2), optimize=True))


def restarts():
    for k, (interval, sampling) in enumerate([(1, 0), (2, 2), (3, 1), (5, 2), (7, 0), (1, 2), (100, 2)]):
        image = picture(40 + k, 37, "edges")
        put(f"restart {interval}", encode(image, quality=20, subsampling=sampling, restart_marker_blocks=interval))
    stream = encode(picture(33, 20, "edges"), quality=20, subsampling=0, restart_marker_blocks=2)
    for code in range(0xd0, 0xd8):
        stream = stream.replace(bytes([0xff, code]), bytes([0xff, 0xff, 0xff, code]))
    put("fill bytes before restart markers", stream)
    put("bytes behind the end", encode(picture(9, 9, "noise"), quality=20) + b"\xff\xd8rest")


def steps(stream, value, wide=False):
    """`stream` with every quantisation step set to `value`."""
    at = stream.index(b"\xff\xdb")
    out = bytearray(stream)
    while out[at:at + 2] == b"\xff\xdb":
        size = int.from_bytes(out[at + 2:at + 4], "big")
        tables = range(at + 4, at + 2 + size, 65)
        if wide:
            numbers = [out[t] for t in tables]
            body = b"".join(bytes([16 | n]) + value.to_bytes(2, "big") * 64 for n in numbers)
            out[at:at + 2 + size] = b"\xff\xdb" + (len(body) + 2).to_bytes(2, "big") + body
            size = len(body) + 2
        else:
            for t in tables:
                out[t + 1:t + 65] = bytes([value]) * 64
        at += 2 + size
    return bytes(out)


def wraps():
    y, x = np.mgrid[0:16, 0:16]
    across = Image.fromarray(np.stack([255 * (x // 2 % 2)] * 3, -1).astype(np.uint8))
    flat = Image.fromarray(np.full((16, 16, 3), 250, np.uint8))
    for name, image in [("noise", picture(24, 16, "noise")), ("across", across), ("flat", flat)]:
        for sampling in [0, 2]:
            stream = encode(image, quality=95, subsampling=sampling, optimize=True)
            for value, wide in [(16, False), (255, False), (1000, True), (0x7fff, True), (0xfff1, True)]:
                put(f"wrap {name} {sampling} {value}", steps(stream, value, wide))


def main():
    assert features.check("libjpeg_turbo")
    samplings()
    qualities()
    restarts()
    wraps()
    data = b"".join(STREAMS)
    assert len(data) < 150_000, len(data)
    with open(os.path.join(HERE, "streams.bin"), "wb") as file:
        file.write(data)
    with open(os.path.join(HERE, "expected.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(e) for e in EXPECTED) + "\n]\n")


if __name__ == "__main__":
    main()
