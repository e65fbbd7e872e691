#!/usr/bin/env python3
"""Makes the slides of this folder and expected.json.

Needs the PyPI packages numpy, pillow, imagecodecs (OpenJPEG, libjpeg-turbo) and tifffile.

Every file is at most 3 KB. Pixels of the sound ones are decoded by the reference libraries here
(libjpeg-turbo, OpenJPEG) or known exactly, and stored as PNG. The broken ones each show one class
of defect; expected.json holds the words their error must have.
"""
import io
import json
import os
import struct
import sys
import zlib

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "benches", "peers"))
import openjpeg  # noqa: E402

T = 16
EXPECTED = {}
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8, 18: 8}
CODES = {3: "H", 4: "I", 5: "I", 16: "Q", 18: "Q"}
APERIO = b"Aperio Image Library v11.2.1 \r\n40x24 [0,0 40x24] (16x16) Q=90|AppMag = 40|MPP = 0,2500\0"


def picture(width, height):
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([200 + 40 * np.sin(x / 9), 120 + 70 * np.cos((x + y) / 11), 170 + 50 * np.sin(y / 7)], -1)
    return rgb.astype(np.uint8)


def tiles(image):
    for y in range(0, image.shape[0], T):
        for x in range(0, image.shape[1], T):
            part = image[y:y + T, x:x + T]
            pad = ((0, T - part.shape[0]), (0, T - part.shape[1]), (0, 0))
            yield np.ascontiguousarray(np.pad(part, pad, mode="edge"))


def untile(parts, width, height):
    cols = -(-width // T)
    rows = [np.concatenate(parts[k:k + cols], 1) for k in range(0, len(parts), cols)]
    return np.concatenate(rows)[:height, :width]


def directory(width, height, chunks, compression, photometric, samples=3, extra=(), strips=None, tile=(T, T)):
    """Tags of one picture; `extra` holds (tag, type, values or bytes)."""
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8] * samples), 259: (3, [compression]),
            262: (3, [photometric]), 277: (3, [samples])}
    if strips:
        tags.update({278: (4, [strips]), 273: (4, None), 279: (4, [len(c) for c in chunks])})
    else:
        tags.update({322: (3, [tile[0]]), 323: (3, [tile[1]]), 324: (4, None), 325: (4, [len(c) for c in chunks])})
    for tag, kind, values in extra:
        tags[tag] = (kind, values)
    return tags, chunks


def container(directories, order="<", big=False, shared=False):
    """A TIFF: header, then for each directory its pixels, its values and its entries. Equal tiles may
    be shared."""
    word, pointer = ("Q", 8) if big else ("I", 4)
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42))
    out += struct.pack(order + "HH", 8, 0) if big else b""
    link = len(out)
    out += bytes(pointer)
    for tags, chunks in directories:
        offsets, seen = [], {}
        for chunk in chunks:
            if shared and chunk and chunk in seen:
                offsets.append(seen[chunk])
                continue
            offsets.append(len(out) if chunk else 0)
            seen[chunk] = len(out)
            out += chunk
        entries = []
        for tag, (kind, values) in sorted(tags.items()):
            values = offsets if values is None else values
            data = bytes(values) if isinstance(values, bytes) else struct.pack(
                order + CODES[kind] * len(values), *values)
            count = len(data) // SIZES[kind]
            if len(data) > pointer:
                entries.append((tag, kind, count, struct.pack(order + word, len(out))))
                out += data
            else:
                entries.append((tag, kind, count, data.ljust(pointer, b"\0")))
        out[link:link + pointer] = struct.pack(order + word, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(entries))
        for tag, kind, count, value in entries:
            out += struct.pack(order + "HH" + word, tag, kind, count) + value
        link = len(out)
        out += bytes(pointer)
    return bytes(out)


def write(name, data, **expected):
    assert len(data) <= 3072, (name, len(data))
    with open(os.path.join(HERE, name), "wb") as file:
        file.write(data)
    EXPECTED[name] = expected


def truth(name, image):
    Image.fromarray(image).save(os.path.join(HERE, name), optimize=True)
    return name


def jpeg(image, **options):
    return bytes(imagecodecs.jpeg8_encode(image, **options))


def segments(stream):
    """[(marker, payload)] of a JPEG; the last is (0xda, header and entropy-coded data)."""
    out, at = [], 2
    while stream[at + 1] != 0xda:
        size = struct.unpack(">H", stream[at + 2:at + 4])[0]
        out.append((stream[at + 1], stream[at + 4:at + 2 + size]))
        at += 2 + size
    out.append((0xda, stream[at + 2:-2]))
    return out


def join(parts, end=b"\xff\xd9"):
    out = b"\xff\xd8"
    for marker, payload in parts:
        size = b"" if marker == 0xda else struct.pack(">H", len(payload) + 2)
        out += bytes([0xff, marker]) + size + payload
    return out + end


def split(stream, ids=None):
    """Tables and an abbreviated stream without markers of colour; `ids` renames the components."""
    parts = segments(stream)
    tables = join([p for p in parts if p[0] in (0xdb, 0xc4)])
    rest = [p for p in parts if p[0] not in (0xdb, 0xc4) and not 0xe0 <= p[0] <= 0xef]
    if ids:
        renamed = []
        for marker, payload in rest:
            payload = bytearray(payload)
            if marker == 0xc0:
                payload[6::3] = bytes(ids)
            if marker == 0xda:
                payload[3:9:2] = bytes(ids)
            renamed.append((marker, bytes(payload)))
        rest = renamed
    return tables, join(rest)


def sound():
    image = picture(40, 24)
    parts = list(tiles(image))
    aperio = (270, 2, APERIO)

    streams = [jpeg(p, level=85, colorspace="rgb", outcolorspace="ycbcr", subsampling="420") for p in parts]
    decoded = untile([imagecodecs.jpeg8_decode(s) for s in streams], 40, 24)
    bodies = [split(s)[1] for s in streams]
    tables = split(streams[0])[0]
    ycc = directory(40, 24, bodies, 7, 6, extra=[aperio, (347, 7, tables)])
    write("jpeg_420.svs", container([ycc]), format="aperio-svs", truth=truth("jpeg_420.png", decoded),
          most=0, mpp=0.25, objective=40)

    streams = [jpeg(p, level=85, colorspace="rgb", outcolorspace="rgb", subsampling="444") for p in parts]
    decoded = untile([imagecodecs.jpeg8_decode(s, colorspace="rgb", outcolorspace="rgb") for s in streams], 40, 24)
    bodies = [split(s, ids=[0, 1, 2])[1] for s in streams]
    rgb = directory(40, 24, bodies, 7, 2, extra=[aperio, (347, 7, split(streams[0])[0]), (530, 3, [2, 2])])
    write("jpeg_rgb_without_marker.svs", container([rgb]), format="aperio-svs",
          truth=truth("jpeg_rgb_without_marker.png", decoded), most=0, mpp=0.25, objective=40)

    one = picture(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(one).save(buffer, "JPEG", quality=85)
    jfif = buffer.getvalue()
    decoded = np.asarray(Image.open(io.BytesIO(jfif)).convert("RGB"))
    name = truth("jfif_ycbcr_tagged_rgb.png", decoded)
    write("jfif_ycbcr_tagged_rgb.tif", container([directory(16, 16, [jfif], 7, 2)]), format="generic-tiff",
          truth=name, most=0)
    buffer = io.BytesIO()
    Image.fromarray(one).save(buffer, "JPEG", quality=85, progressive=True)
    progressive = buffer.getvalue()
    write("progressive.jpg", progressive, format="jpeg", most=5, truth=truth(
        "progressive.png", np.asarray(Image.open(io.BytesIO(progressive)).convert("RGB"))))

    restarts = jpeg(parts[0], level=85, outcolorspace="ycbcr", subsampling="444")
    buffer = io.BytesIO()
    Image.fromarray(parts[0]).save(buffer, "JPEG", quality=85, subsampling=0, restart_marker_blocks=1)
    restarts = buffer.getvalue()
    write("jpeg_restarts.tif", container([directory(16, 16, [restarts], 7, 6)]), format="generic-tiff",
          truth=truth("jpeg_restarts.png", np.asarray(Image.open(io.BytesIO(restarts)))), most=0)

    small = picture(24, 20)
    truth("exact_24x20.png", small)
    exact = dict(truth="exact_24x20.png", most=0)
    differences = []
    for part in tiles(small):
        d = part.copy()
        d[:, 1:] -= part[:, :-1]
        differences.append(bytes(imagecodecs.lzw_encode(d.tobytes())))
    resolution = [(282, 5, [20000, 1]), (283, 5, [40000, 1]), (296, 3, [3])]
    lzw = directory(24, 20, differences, 5, 2, extra=[(317, 3, [2]), *resolution])
    write("lzw_predictor_big_endian_bigtiff.tif", container([lzw], ">", True), format="generic-tiff",
          mpp=0.5, mpp_y=0.25, **exact)
    alpha = [np.dstack([p, np.full((T, T), 7, np.uint8)]) for p in tiles(small)]
    rgba = directory(24, 20, [zlib.compress(p.tobytes(), 9) for p in alpha], 8, 2, 4, [(338, 3, [2])])
    write("deflate_rgba.tif", container([rgba]), format="generic-tiff", **exact)
    strips = [small[k:k + 8] for k in range(0, 20, 8)]
    lzw = directory(24, 20, [bytes(imagecodecs.lzw_encode(s.tobytes())) for s in strips], 5, 2, strips=8)
    write("lzw_strips.tif", container([lzw], ">"), format="tiff", **exact)
    grey = np.repeat(small[..., 1:2], 3, 2)
    truth("exact_grey.png", grey)
    packed = [bytes(imagecodecs.packbits_encode(np.ascontiguousarray(255 - p[..., 1]))) for p in tiles(small)]
    white = directory(24, 20, packed, 32773, 0, 1)
    write("packbits_min_is_white.tif", container([white]), format="generic-tiff", truth="exact_grey.png", most=0)

    # Samples of 33003 are YCbCr; OpenJPEG gives them back as they are.
    y = np.asarray(Image.fromarray(one).convert("YCbCr"))
    def j2k(a, **options):
        return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(a), codecformat="j2k", **options))
    stream = j2k(y, mct=False, reversible=True)
    back = imagecodecs.jpeg2k_decode(stream).astype(float)
    cb, cr = back[..., 1] - 128, back[..., 2] - 128
    converted = np.stack([back[..., 0] + 1.402 * cr, back[..., 0] - 0.344136 * cb - 0.714136 * cr,
                          back[..., 0] + 1.772 * cb], -1)
    converted = np.clip(np.floor(converted + 0.5), 0, 255).astype(np.uint8)
    write("j2k_33003.svs", container([directory(16, 16, [stream], 33003, 2, extra=[aperio])]),
          format="aperio-svs", truth=truth("j2k_33003.png", converted), most=0, mpp=0.25, objective=40)
    stream = j2k(one, mct=True, reversible=True)
    truth("exact_16x16.png", one)
    assert (imagecodecs.jpeg2k_decode(stream) == one).all()
    write("j2k_33005_without_eoc.svs", container([directory(16, 16, [stream[:-2]], 33005, 2, extra=[aperio])]),
          format="aperio-svs", truth="exact_16x16.png", most=0, mpp=0.25, objective=40)

    buffer = io.BytesIO()
    half = small[::2, ::2]
    with tifffile.TiffWriter(buffer, ome=True) as file:
        meta = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5,
                "PhysicalSizeYUnit": "µm"}
        options = dict(photometric="rgb", tile=(T, T), compression="zlib")
        file.write(small, subifds=1, metadata=meta, **options)
        file.write(np.ascontiguousarray(half), subfiletype=1, **options)
    truth("exact_half.png", np.ascontiguousarray(half))
    write("ome_subifds.ome.tif", buffer.getvalue(), format="ome-tiff", mpp=0.5, levels=[[24, 20], [12, 10]],
          truth1="exact_half.png", **exact)

    # The thumbnail was removed: the label is second in the file, where a thumbnail would be.
    strip = directory(24, 20, [bytes(imagecodecs.lzw_encode(small.tobytes()))], 5, 2, extra=[(254, 4, [1])], strips=20)
    level = directory(16, 16, [zlib.compress(one.tobytes(), 9)], 8, 2, extra=[aperio])
    write("label_second.svs", container([level, strip]), format="aperio-svs", mpp=0.25, objective=40, most=0,
          truth="exact_16x16.png", associated={"label": "exact_24x20.png"})

    # Level 1 is the exact mean of 2x2 pixels, so what replaces its missing tile is known.
    big = picture(32, 16)
    mean = ((big.reshape(8, 2, 16, 2, 3).astype(int).sum((1, 3)) + 2) // 4).astype(np.uint8)
    packed = [zlib.compress(p.tobytes(), 9) for p in tiles(big)]
    zero = [zlib.compress(p.tobytes(), 9) for p in tiles(mean)]
    truth("exact_mean.png", mean)
    truth("exact_32x16.png", big)
    level = directory(16, 8, [b""], 8, 2)
    write("missing_tile.svs", container([directory(32, 16, packed, 8, 2, extra=[aperio]), level]),
          format="aperio-svs", mpp=0.25, objective=40, truth="exact_32x16.png", truth1="exact_mean.png", most=0,
          missing1=[[0, 0]], levels=[[32, 16], [16, 8]])
    hole = big.copy()
    hole[:, 16:] = 255
    packed[1] = b""
    write("missing_tile_level_0.svs", container([directory(32, 16, packed, 8, 2, extra=[aperio]),
          directory(16, 8, zero, 8, 2)]), format="aperio-svs", mpp=0.25, objective=40, most=0,
          truth=truth("exact_hole.png", hole), truth1="exact_mean.png", missing=[[1, 0]])


def deep(image, decompositions, rate=None, mct=True):
    """A codestream of so many wavelet decompositions: 9-7 at a compression of `rate`, or 5-3 without loss."""
    how = dict(quality_mode="rates", quality_layers=[rate], irreversible=True) if rate else {}
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG2000", no_jp2=True, num_resolutions=decompositions + 1, mct=mct, **how)
    stream = out.getvalue()
    assert stream[stream.index(b"\xff\x52") + 9] == decompositions
    return stream


def ycbcr_to_rgb(ycc):
    y, cb, cr = (ycc[..., k].astype(float) for k in range(3))
    rgb = np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
                    y + 1.772 * (cb - 128)], -1)
    return np.clip(np.floor(rgb + 0.5), 0, 255).astype(np.uint8)


def grid(image, width, height):
    """The tiles of a picture in any size, padded at the right and bottom edge."""
    for y in range(0, image.shape[0], height):
        for x in range(0, image.shape[1], width):
            part = image[y:y + height, x:x + width]
            pad = ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0))
            yield np.pad(part, pad, mode="edge")


def reduced():
    """JPEG 2000 slides at a half and a quarter of their size."""
    aperio = (270, 2, APERIO)
    image = picture(39, 23)
    ycbcr = lambda p: np.array(Image.fromarray(p).convert("YCbCr"))
    cases = {
        # name: tile, compression, streams, largest difference, levels beside the first
        "j2k_reduced_rgb": ((T, T), 33005, lambda p: deep(p, 3, rate=4), 1, [[20, 12], [10, 6], [5, 3]]),
        "j2k_reduced_ycbcr": ((T, T), 33003, lambda p: deep(ycbcr(p), 2, mct=False), 0, [[20, 12], [10, 6]]),
        # Tiles of 20 x 12 can be halved twice; the streams could be more often.
        "j2k_reduced_20x12": ((20, 12), 33005, lambda p: deep(p, 3), 0, [[20, 12], [10, 6]]),
    }
    for name, (tile, code, encode, most, sizes) in cases.items():
        streams = [encode(part) for part in grid(image, *tile)]
        colour = ycbcr_to_rgb if code == 33003 else lambda rgb: rgb
        pictures = []
        for halvings, (width, height) in enumerate(sizes, 1):
            parts = [colour(openjpeg.decode(s, halvings)) for s in streams]
            cols = -(-39 // tile[0])
            rows = [np.concatenate(parts[k:k + cols], 1) for k in range(0, len(parts), cols)]
            pictures.append(np.concatenate(rows)[:height, :width])
        names = [truth(f"{name}_{2 ** n}.png", p) for n, p in enumerate(pictures, 1)]
        write(f"{name}.svs", container([directory(39, 23, streams, code, 2, extra=[aperio], tile=tile)]),
              reduced=names, reduced_most=most, sizes=sizes)
        if name == "j2k_reduced_ycbcr":
            # Tiles of 8 px at 2.4 level-0 pixels: 10 px of the half, made smaller by Pillow.
            half = Image.fromarray(pictures[0])
            corners = [(0, 0), (10, 0)]
            small = [half.crop((x, y, x + 10, y + 10)).resize((8, 8), Image.BILINEAR) for x, y in corners]
            truth("j2k_reduced_tiles.png", np.concatenate([np.asarray(s) for s in small]))
    # An odd size, which tiles of slides do not have.
    odd = deep(picture(37, 21), 3)
    with open(os.path.join(HERE, "odd_37x21.j2k"), "wb") as file:
        file.write(odd)
    for halvings in (1, 2, 3):
        truth(f"odd_37x21_{2 ** halvings}.png", openjpeg.decode(odd, halvings))
    # Levels of 1 and 4 leave a half between them; the last tile of each is missing, and one of level 0
    # that level 1 shows.
    flat = deep(np.full((T, T, 3), 120, np.uint8), 3)
    levels = [directory(96, 32, [flat, b""] + [flat] * 9 + [b""], 33005, 2, extra=[aperio]),
              directory(24, 8, [flat, b""], 33005, 2)]
    write("j2k_pyramid.svs", container(levels, shared=True),
          sizes=[[96, 32], [24, 8], [48, 16], [12, 4], [6, 2], [3, 1]])
    # All tiles but one of twenty can be halved twice.
    flat = np.full((T, T, 3), 90, np.uint8)
    two, one = deep(flat, 2), deep(flat, 1)
    streams = [one if k == 4 else two for k in range(20)]
    write("j2k_shallow_3.svs", container([directory(48, 32, [two, two, two, one, two, two], 33005, 2, extra=[aperio])],
                                         shared=True), sizes=[[24, 16]])
    write("j2k_shallow_tile.svs", container([directory(80, 64, streams, 33005, 2, extra=[aperio])], shared=True),
          sizes=[[40, 32], [20, 16]])


def broken():
    one = picture(16, 16)
    aperio = (270, 2, APERIO)
    noise = np.random.RandomState(3).randint(0, 255, (16, 16, 3)).astype(np.uint8)
    stream = jpeg(noise, level=40, colorspace="rgb", outcolorspace="ycbcr", subsampling="444")
    tables, body = split(stream)
    cases = {
        # The stream still ends with an end marker: a lenient decoder paints the rest grey.
        "jpeg_short_with_end.svs": body[:len(body) // 2] + b"\xff\xd9",
        "jpeg_last_bytes_lost.svs": body[:-6] + b"\xff\xd9",
        "jpeg_cut.svs": body[:-6],
        "jpeg_zeros.svs": bytes(len(body)),
    }
    for name, data in cases.items():
        tile = directory(16, 16, [data], 7, 6, extra=[aperio, (347, 7, tables)])
        write("bad_" + name, container([tile]), tile_error=["level 0", "tile (0, 0)", "JPEG"])
    frame = body.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65500, 65500), 1)
    tile = directory(16, 16, [frame], 7, 6, extra=[(347, 7, tables)])
    write("bad_jpeg_frame_size.tif", container([tile]), tile_error=["65500x65500", "expected 16x16"])
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=40, subsampling=0, restart_marker_blocks=1)
    full = buffer.getvalue()
    at = full.index(b"\xff\xd0")
    short = full[:at - 6] + full[at:]
    write("bad_jpeg_restart_short.tif", container([directory(16, 16, [short], 7, 6)]), tile_error=["JPEG"])
    gone = full[:at] + full[full.index(b"\xff\xd1"):]
    write("bad_jpeg_restart_gone.tif", container([directory(16, 16, [gone], 7, 6)]), tile_error=["restart"])

    last = full[:full.index(b"\xff\xd2")] + b"\xff\xd9"
    write("bad_jpeg_restart_last_gone.tif", container([directory(16, 16, [last], 7, 6)]),
          tile_error=["2 JPEG restart markers, expected 3"])

    code = bytes(imagecodecs.jpeg2k_encode(one, codecformat="j2k", mct=True, reversible=True))
    cut = code[:len(code) * 3 // 4]
    write("bad_j2k_cut.svs", container([directory(16, 16, [cut], 33005, 2, extra=[aperio])]),
          tile_error=["JPEG 2000", "cut off"])
    # The length of the tile-part is made to fit, so only its packets tell.
    sot = cut.index(b"\xff\x90")
    fitted = bytearray(cut)
    struct.pack_into(">I", fitted, sot + 6, len(cut) - sot)
    write("bad_j2k_packets.svs", container([directory(16, 16, [bytes(fitted)], 33005, 2, extra=[aperio])]),
          tile_error=["JPEG 2000"])
    size = bytearray(code)
    struct.pack_into(">I", size, code.index(b"\xff\x51") + 6, 0xffffffff)
    write("bad_j2k_size.svs", container([directory(16, 16, [bytes(size)], 33005, 2, extra=[aperio])]),
          tile_error=["JPEG 2000", "expected 16x16"])
    bomb = zlib.compress(bytes(1 << 20), 9)
    write("bad_deflate_bomb.tif", container([directory(16, 16, [bomb], 8, 2)]), tile_error=["expected 768"])
    raw = one.tobytes()
    write("bad_none_short.tif", container([directory(16, 16, [raw[:-1]], 1, 2)]), tile_error=["767 bytes"])
    good = container([directory(16, 16, [raw], 1, 2)])
    far = good.replace(struct.pack("<HHII", 324, 4, 1, 8), struct.pack("<HHII", 324, 4, 1, 0xfffffff0))
    assert far != good
    write("bad_tile_past_end.tif", far, tile_error=["tile (0, 0)", "do not lie inside the file"])

    first = struct.unpack("<I", good[4:8])[0]
    loop = good[:-4] + struct.pack("<I", first)
    write("bad_loop.tif", loop, open_error=["directory 1", "loop"])
    big = container([directory(16, 16, [raw], 1, 2)], big=True)
    at = big.index(struct.pack("<HHQ", 258, 3, 3))
    wrap = big[:at + 4] + struct.pack("<Q", (1 << 63) + 3) + big[at + 12:]
    write("bad_count_wraps.tif", wrap, open_error=["directory 0", "258 BitsPerSample", "count"])
    many = good.replace(struct.pack("<HHII", 256, 4, 1, 16), struct.pack("<HHII", 256, 4, 1, 1600))
    write("bad_too_few_tiles.tif", many, open_error=["324 TileOffsets", "1 values, expected 100"])
    zero = good.replace(struct.pack("<HHIHH", 322, 3, 1, 16, 0), struct.pack("<HHIHH", 322, 3, 1, 0, 0))
    assert zero != good
    write("bad_tile_width_zero.tif", zero, open_error=["322 TileWidth", "zero"])
    write("bad_planar.tif", container([directory(16, 16, [raw], 1, 2, extra=[(284, 3, [2])])]),
          open_error=["284 PlanarConfiguration", "2"])
    write("bad_jpeg_named.svs", stream, open_error=["named .svs"])
    write("bad_cut.png", open(os.path.join(HERE, "exact_16x16.png"), "rb").read()[:-40], open_error=["PNG"])


if __name__ == "__main__":
    sound()
    reduced()
    broken()
    with open(os.path.join(HERE, "expected.json"), "w") as file:
        json.dump(EXPECTED, file, indent=1, sort_keys=True)
        file.write("\n")
