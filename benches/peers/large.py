"""large.py BINARY [PACKAGE]: time and memory of a slide of 11 gigapixels: finding its tissue and tiles and,
with a package, encoding them. Needs tifffile.

The slide is made of one of 8192 x 8192 px: a BigTIFF whose tables of tiles name the same bytes 13 x 13
times, so that it takes no room on the disk and everything is decoded as of any other slide.
"""
import os
import struct
import subprocess
import sys
import tempfile
import time

import tifffile

SIDE, TIMES = 8192, 13
SHORT, LONG, UNDEFINED, ASCII, LONG8 = 3, 4, 7, 2, 16
FORMATS = {SHORT: "<H", LONG: "<I", LONG8: "<Q"}


def tags_of(page, base, shift):
    """The tags of a level, its tiles repeated; `shift` is where the bytes of the small file begin."""
    across, down = page.imagewidth // page.tilewidth, page.imagelength // page.tilelength
    order = [(row % down) * across + column % across
             for row in range(down * TIMES) for column in range(across * TIMES)]
    width, height = across * page.tilewidth * TIMES, down * page.tilelength * TIMES
    tags = {256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [8, 8, 8]),
            259: (SHORT, [int(page.compression)]), 262: (SHORT, [int(page.photometric)]),
            277: (SHORT, [3]), 284: (SHORT, [1]), 322: (SHORT, [page.tilewidth]),
            323: (SHORT, [page.tilelength]),
            324: (LONG8, [shift + page.dataoffsets[i] for i in order]),
            325: (LONG, [page.databytecounts[i] for i in order]),
            347: (UNDEFINED, page.tags["JPEGTables"].value),
            530: (SHORT, list(page.tags["YCbCrSubSampling"].value))}
    if base:
        size = f"{page.imagewidth}x{page.imagelength}"
        text = page.description.replace(size, f"{width}x{height}")
        tags[270] = (ASCII, text.encode() + b"\0")
    return tags


def enlarge(small, large):
    with tifffile.TiffFile(small) as tiff, open(small, "rb") as data, open(large, "wb") as out:
        out.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        shift, link = out.tell(), 8
        out.write(data.read())

        def put(raw):
            out.write(b"\0" * (-out.tell() % 8))
            at = out.tell()
            out.write(raw)
            return at

        for i, page in enumerate(page for page in tiff.pages if page.is_tiled):
            entries = b""
            for tag, (kind, values) in sorted(tags_of(page, i == 0, shift).items()):
                raw = (bytes(values) if kind in (UNDEFINED, ASCII) else
                       b"".join(struct.pack(FORMATS[kind], value) for value in values))
                place = raw.ljust(8, b"\0") if len(raw) <= 8 else struct.pack("<Q", put(raw))
                entries += struct.pack("<HHQ", tag, kind, len(values)) + place
            at = put(struct.pack("<Q", len(entries) // 20) + entries + struct.pack("<Q", 0))
            out.seek(link)
            out.write(struct.pack("<Q", at))
            link = at + 8 + len(entries)
            out.seek(0, os.SEEK_END)


def timed(*command):
    """Seconds and peak resident megabytes of a command."""
    start = time.monotonic()
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)}: {said}")
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e6


def main(binary, *package):
    with tempfile.TemporaryDirectory() as folder:
        small, large = os.path.join(folder, "small.svs"), os.path.join(folder, "large.svs")
        timed(binary, "synth", "-o", small, "--width", str(SIDE), "--height", str(SIDE),
              "--codec", "jpeg420", "--quality", "60", "--bigtiff")
        enlarge(small, large)
        side = SIDE * TIMES
        print(f"{side} x {side} px, {side * side / 1e9:.1f} gigapixels")
        seconds, most = timed(binary, "tiles", large, "--out", os.path.join(folder, "tiles"))
        print(f"tissue and tiles: {seconds:.2f} s, at most {most:.0f} MB")
        for name in package:
            seconds, most = timed(binary, "features", large, "--package", name, "--device", "cpu",
                                  "--out", os.path.join(folder, "features"))
            print(f"features of {os.path.basename(name)}: {seconds:.0f} s, at most {most:.0f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
