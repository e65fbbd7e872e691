"""OpenJPEG as the PyPI wheel of Pillow or imagecodecs brings it along, by its C interface: neither
offers all of it. A call lets other threads run. Needs the PyPI packages numpy and imagecodecs.

    decode(stream, halvings)   [height, width, samples] u8, without so many wavelet decompositions
"""
import ctypes
import glob
import importlib.util
import os

import numpy as np

SIZE, POINTER = ctypes.c_size_t, ctypes.c_void_p
RAW, JP2 = 0, 2
# Larger than opj_dparameters_t of any version.
PARAMETERS = 1 << 14


class Component(ctypes.Structure):
    """opj_image_comp_t"""
    _fields_ = [(name, ctypes.c_uint32) for name in
                ("dx", "dy", "w", "h", "x0", "y0", "prec", "bpp", "sgnd", "resno_decoded", "factor")]
    _fields_ += [("data", POINTER), ("alpha", ctypes.c_uint16)]


class Image(ctypes.Structure):
    """opj_image_t"""
    _fields_ = [(name, ctypes.c_uint32) for name in ("x0", "y0", "x1", "y1", "numcomps")]
    _fields_ += [("color_space", ctypes.c_int), ("comps", ctypes.POINTER(Component)),
                 ("icc_profile_buf", POINTER), ("icc_profile_len", ctypes.c_uint32)]


READ = ctypes.CFUNCTYPE(SIZE, POINTER, SIZE, POINTER)
SKIP = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, POINTER)
SEEK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, POINTER)


def library():
    site = os.path.dirname(os.path.dirname(importlib.util.find_spec("imagecodecs").origin))
    (path,) = glob.glob(os.path.join(site, "imagecodecs.libs", "libopenjp2-*.so*"))
    lib = ctypes.CDLL(path)
    for name, result, arguments in [
            ("opj_version", ctypes.c_char_p, []),
            ("opj_create_decompress", POINTER, [ctypes.c_int]),
            ("opj_set_default_decoder_parameters", None, [POINTER]),
            ("opj_setup_decoder", ctypes.c_int, [POINTER, POINTER]),
            ("opj_stream_create", POINTER, [SIZE, ctypes.c_int]),
            ("opj_stream_set_read_function", None, [POINTER, READ]),
            ("opj_stream_set_skip_function", None, [POINTER, SKIP]),
            ("opj_stream_set_seek_function", None, [POINTER, SEEK]),
            ("opj_stream_set_user_data_length", None, [POINTER, ctypes.c_uint64]),
            ("opj_read_header", ctypes.c_int, [POINTER, POINTER, POINTER]),
            ("opj_decode", ctypes.c_int, [POINTER, POINTER, POINTER]),
            ("opj_end_decompress", ctypes.c_int, [POINTER, POINTER]),
            ("opj_image_destroy", None, [POINTER]),
            ("opj_stream_destroy", None, [POINTER]),
            ("opj_destroy_codec", None, [POINTER])]:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


LIB = library()


def version():
    return LIB.opj_version().decode()


def decode(stream, halvings):
    raw = stream[:4] == b"\xff\x4f\xff\x51"
    source, at = np.frombuffer(stream, np.uint8), 0

    def read(to, length, _):
        nonlocal at
        length = min(length, len(source) - at)
        if length <= 0:
            return ctypes.c_size_t(-1).value
        ctypes.memmove(to, source.ctypes.data + at, length)
        at += length
        return length

    def seek(to, _):
        nonlocal at
        at = to
        return int(to <= len(source))

    def skip(by, _):
        seek(at + by, None)
        return by

    # Kept until the stream is destroyed.
    functions = READ(read), SKIP(skip), SEEK(seek)
    codec = LIB.opj_create_decompress(RAW if raw else JP2)
    flow = LIB.opj_stream_create(max(len(source), 64), 1)
    image = ctypes.POINTER(Image)()
    try:
        LIB.opj_stream_set_read_function(flow, functions[0])
        LIB.opj_stream_set_skip_function(flow, functions[1])
        LIB.opj_stream_set_seek_function(flow, functions[2])
        LIB.opj_stream_set_user_data_length(flow, len(source))
        parameters = ctypes.create_string_buffer(PARAMETERS)
        LIB.opj_set_default_decoder_parameters(parameters)
        # Its first field is cp_reduce.
        ctypes.cast(parameters, ctypes.POINTER(ctypes.c_uint32))[0] = halvings
        done = (LIB.opj_setup_decoder(codec, parameters)
                and LIB.opj_read_header(flow, codec, ctypes.byref(image))
                and LIB.opj_decode(codec, flow, image) and LIB.opj_end_decompress(codec, flow))
        if not done:
            raise ValueError("OpenJPEG cannot decode this")
        planes = image.contents.comps[:image.contents.numcomps]
        shape = planes[0].h, planes[0].w
        out = np.empty((*shape, len(planes)), np.uint8)
        for k, plane in enumerate(planes):
            data = ctypes.cast(plane.data, ctypes.POINTER(ctypes.c_int32))
            samples = np.ctypeslib.as_array(data, (plane.h, plane.w))
            # Chroma of fewer samples is repeated.
            samples = samples.repeat(plane.dy, 0).repeat(plane.dx, 1) if plane.dx * plane.dy > 1 else samples
            out[..., k] = samples[:shape[0], :shape[1]]
        return out
    finally:
        if image:
            LIB.opj_image_destroy(image)
        LIB.opj_stream_destroy(flow)
        LIB.opj_destroy_codec(codec)
