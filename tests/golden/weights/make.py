#!/usr/bin/env python3
"""make.py: writes the checkpoints and hostile files of tests/weights.rs into its own folder.

Needs numpy and torch (PyPI). The checkpoints are written by torch.save with narrow networks whose
numbers are multiples of 1/64 (exact in FP16), counted over the state dict in its own order. Beside
each lies what torch itself reads back: <name>.txt has a line per tensor with its key, shape and sum. torch.save names the storages of the old format
by their addresses, so those two files differ from run to run.
The hostile files are written byte by byte; no forbidden call in them does more than print.
"""
import io
import json
import os
import struct
import zipfile
from collections import OrderedDict

import torch

HERE = os.path.dirname(os.path.abspath(__file__))


def fill(shapes, dtype=torch.float32):
    """name -> shape, numbered through as ((7 i) mod 127 - 63) / 64; variances positive."""
    state, i = OrderedDict(), 0
    for name, shape in shapes:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(5)
            continue
        n = int(torch.Size(shape).numel())
        values = (((torch.arange(i, i + n) * 7) % 127) - 63).to(torch.float64) / 64
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        state[name] = values.reshape(shape).to(dtype)
        i += n
    return state


def norm(name, c):
    return [(f"{name}.weight", [c]), (f"{name}.bias", [c]), (f"{name}.running_mean", [c]),
            (f"{name}.running_var", [c]), (f"{name}.num_batches_tracked", [])]


def vgg_features(prefix, widths):
    """The 13 convolutions of vgg16_bn in torchvision's numbering, `widths` per stage."""
    out, k, c = [], 0, 3
    for count, width in zip([2, 2, 3, 3, 3], widths):
        for _ in range(count):
            out += [(f"{prefix}{k}.weight", [width, c, 3, 3]), (f"{prefix}{k}.bias", [width])]
            out += norm(f"{prefix}{k + 1}", width)
            k, c = k + 3, width
        k += 1
    return out


def balnmp(prefix, second, clinical):
    head = "attention_aggregator."
    return fill(vgg_features(prefix, [2, 2, 2, 2, 3]) + [
        (head + "fc1.0.weight", [4, 3 * 49]), (head + "fc1.0.bias", [4]),
        (head + "attention.0.weight", [1, 4]), (head + "attention.0.bias", [1]),
        (head + f"attention.{second}.weight", [1, 1]), (head + f"attention.{second}.bias", [1]),
        ("classifier.0.weight", [3, 4 + clinical]), ("classifier.0.bias", [3]),
        ("classifier.2.weight", [2, 3]), ("classifier.2.bias", [2])])


def bottleneck_resnet(prefix, blocks, base):
    out = [(prefix + "conv1.weight", [base, 3, 7, 7])] + norm(prefix + "bn1", base)
    c = base
    for stage, count in enumerate(blocks):
        width = base << stage
        for j in range(count):
            p = f"{prefix}layer{stage + 1}.{j}."
            for i, (k, r) in enumerate([(width, 1), (width, 3), (4 * width, 1)]):
                out += [(f"{p}conv{i + 1}.weight", [k, c, r, r])] + norm(f"{p}bn{i + 1}", k)
                c = k
            if j == 0:
                before = base if stage == 0 else 2 * width
                out += [(p + "downsample.0.weight", [4 * width, before, 1, 1])]
                out += norm(p + "downsample.1", 4 * width)
    return out


def clam(gate, classifiers, d=5, h=4, a=3, branches=1):
    return [("attention_net.0.weight", [h, d]), ("attention_net.0.bias", [h]),
            (gate + "attention_a.0.weight", [a, h]), (gate + "attention_a.0.bias", [a]),
            (gate + "attention_b.0.weight", [a, h]), (gate + "attention_b.0.bias", [a]),
            (gate + "attention_c.weight", [branches, a]), (gate + "attention_c.bias", [branches]),
            ] + classifiers


def save(name, obj, legacy=False):
    torch.save(obj, os.path.join(HERE, name), _use_new_zipfile_serialization=not legacy)
    read_back(name)


def read_back(name):
    path = os.path.join(HERE, name)
    back = torch.load(path, weights_only=True)
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(back.get(key), dict):
            back = back[key]
    with open(path.split(".pth")[0] + ".txt", "w") as f:
        for key, tensor in back.items():
            if isinstance(tensor, torch.Tensor):
                shape = ",".join(map(str, tensor.shape))
                # A checksum that moves when two elements are swapped.
                flat = tensor.detach().to(torch.float64).reshape(-1)
                check = float((flat * torch.arange(1, flat.numel() + 1)).sum())
                f.write(f"{key}\t{shape}\t{check!r}\n")


def checkpoints():
    t = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8
    tied = torch.arange(6, dtype=torch.float32)
    kinds = OrderedDict(
        f32=t, f64=t.double(), f16=t.half(), bf16=t.bfloat16(), i64=torch.arange(3),
        i32=torch.arange(3, dtype=torch.int32), i16=torch.arange(3, dtype=torch.int16),
        i8=torch.arange(3, dtype=torch.int8), u8=torch.arange(3, dtype=torch.uint8),
        flag=torch.tensor([True, False]), scalar=torch.tensor(2.5), empty=torch.zeros(0, 3),
        transposed=t.permute(2, 0, 1), sliced=t[:, 1:, ::2], tied=tied, tied_tail=tied[2:],
        channels_last=torch.arange(36, dtype=torch.float32).reshape(1, 4, 3, 3).contiguous(
            memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(t[0] - 1))
    save("kinds-zip.pth", kinds)
    save("kinds-legacy.pth", kinds, legacy=True)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    save("wrapped.pth", {"epoch": 7, "arch": "net", "best_acc": 0.5, "optimizer": sgd.state_dict(),
                         "state_dict": OrderedDict([("module.w", t)])})
    save("balnmp-new.pth", balnmp("image_feature_extractor.extractor.0.", 3, 0))
    save("balnmp-original-c.pth", balnmp("image_feature_extractor.0.", 2, 10), legacy=True)
    q = bottleneck_resnet("module.encoder_q.", [3, 4, 6], 1) + [
        ("module.encoder_q.fc.0.weight", [16, 16]), ("module.encoder_q.fc.0.bias", [16]),
        ("module.encoder_q.fc.2.weight", [8, 16]), ("module.encoder_q.fc.2.bias", [8])]
    k = [(name.replace("encoder_q", "encoder_k"), shape) for name, shape in q[:7]]
    save("histcode-adco.pth.tar",
         {"arch": "resnet50", "best_acc": 0, "state_dict": fill(q + k, torch.float16)})
    instances = [(f"instance_classifiers.{c}.{p}", s) for c in range(2)
                 for p, s in (("weight", [2, 4]), ("bias", [2]))]
    linear = [("classifiers.weight", [2, 4]), ("classifiers.bias", [2])]
    save("clam-sb.pth", fill(clam("attention_net.2.", linear + instances)))
    save("clam-sb-dataparallel.pth", {"model": OrderedDict(
        ("attention_net.module." + k[14:] if k.startswith("attention_net.") else k, v)
        for k, v in fill(clam("attention_net.3.", linear + instances)).items())})
    regression = [("classifiers.0.weight", [1, 4]), ("classifiers.0.bias", [1])]
    save("clam-sb-reg.pth", fill(clam("attention_net.2.", regression)))
    per_class = [(f"classifiers.{c}.{p}", s) for c in range(3)
                 for p, s in (("weight", [1, 4]), ("bias", [1]))]
    save("clam-mb.pth", fill(clam("attention_net.3.", per_class, branches=3)))


def before_0_4():
    """A parameter as PyTorch 0.1 to 0.3 pickled it, and as the old torchvision files hold it:
    Parameter called with a tensor, then the state of autograd set by BUILD."""
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s
    tensor = (b"ctorch._utils\n_rebuild_tensor\n((" + text(b"storage") + b"ctorch\nFloatStorage\n"
              + text(b"4711") + text(b"cpu") + b"K\x06NtQK\0K\x02K\x03\x86K\x03K\x01\x86tR")
    state = b"(\x88\x89ccollections\nOrderedDict\n]\x85Rtb"
    entry = b"\x85".join([b"ctorch.nn.parameter\nParameter\n" + tensor, b"R"]) + state
    pickles = [pickled(b"M\xe9\x03"),
               pickled(b"}(" + text(b"little_endian") + b"\x88" + text(b"protocol_version")
                       + b"M\xe9\x03" + text(b"type_sizes") + b"}u"),
               pickled(b"ccollections\nOrderedDict\n]\x85R", text(b"fc.weight"), entry, b"s"),
               pickled(b"]", text(b"4711"), b"a")]
    with open(os.path.join(HERE, "before-0.4.pth"), "wb") as f:
        f.write(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"".join(pickles)
                + struct.pack("<q6f", 6, 1, 2, 3, 4, 5, 6.5))
    read_back("before-0.4.pth")


def zipped(files, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as z:
        for name, data in files:
            z.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, method)
    return buffer.getvalue()


def pickled(*ops):
    return b"\x80\x02" + b"".join(ops) + b"."


def one_tensor(offset=0, size=(4, 4), stride=(4, 1), storage=b"FloatStorage", key=b"0", count=16):
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s
    long = lambda i: b"\x8a\x08" + struct.pack("<q", i)
    tup = lambda v: b"(" + b"".join(map(long, v)) + b"t"
    return pickled(b"}", text(b"w"), b"ctorch._utils\n_rebuild_tensor_v2\n((", text(b"storage"),
                   b"ctorch\n" + storage + b"\n", text(key), text(b"cpu"), long(count), b"tQ",
                   long(offset), tup(size), tup(stride), b"\x89", b"ccollections\nOrderedDict\n)R",
                   b"tRs")


def hostile():
    data = bytes(range(64))
    print_call = b"cbuiltins\nprint\nX\x05\0\0\0pwned\x85R"
    pth = lambda pickle, *more: zipped([("archive/data.pkl", pickle), *more])
    tensor = lambda **how: pth(one_tensor(**how), ("archive/data/0", data))
    header = lambda h: struct.pack("<Q", len(h)) + h + data
    spec = lambda **t: json.dumps(t).encode()
    f32 = lambda shape, a, b: {"dtype": "F32", "shape": shape, "data_offsets": [a, b]}
    twice = b'{"w":' + spec(**f32([8], 0, 32)) + b',"w":' + spec(**f32([16], 0, 64)) + b"}"
    files = {
        # name: (bytes, words of the error)
        "call.pth": (pth(pickled(print_call)), "builtins.print is not on the list"),
        "call-legacy.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickled(print_call),
                            "builtins.print is not on the list"),
        "stack-global.pth": (pth(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "os.system"),
        "inst.pth": (pth(b"(X\x05\0\0\0pwnedibuiltins\nprint\n."), "opcode 0x69 'i'"),
        "extension.pth": (pth(b"\x80\x02\x82\x01."), "opcode 0x82"),
        "underflow.pth": (pth(b"\x80\x02\x86."), "stack is empty"),
        "under-mark.pth": (pth(b"\x80\x02}N(\x85t00."), "stack is empty"),
        "memo.pth": (pth(b"\x80\x02h\x09."), "memo 9"),
        "long-text.pth": (pth(b"\x80\x02X\xff\xff\xff\xff"), "4294967295 bytes"),
        "deep.pth": (pth(pickled(b")" + b"\x85" * 50000)), "not a dictionary"),
        "itself.pth": (pth(pickled(b"}q\0X\x0a\0\0\0state_dicth\0s")), "not a dictionary"),
        "two.pth": (zipped([("a/data.pkl", pickled(b"}")), ("b/data.pkl", pickled(b"}"))]),
                    "exactly one data.pkl"),
        "deflated.pth": (zipped([("archive/data.pkl", pickled(b"}"))], zipfile.ZIP_DEFLATED),
                         "compressed"),
        "big-endian.pth": (pth(pickled(b"}"), ("archive/byteorder", b"big")), "big-endian"),
        "outside.pth": (tensor(size=[1000], stride=[1]), "outside its storage"),
        "overflow.pth": (tensor(size=[2, 2], stride=[1 << 62, 1 << 62]), "outside its storage"),
        "expanded.pth": (tensor(size=[1 << 30], stride=[0]), "outside its storage"),
        "negative.pth": (tensor(offset=-4), "negative offset"),
        "short-storage.pth": (tensor(count=17), "16 elements, 17 announced"),
        "no-storage.pth": (tensor(key=b"../x"), "not in the archive"),
        "storage-class.pth": (tensor(storage=b"EvilStorage"), "torch.EvilStorage"),
        "legacy-cut.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "system"),
        "twice.safetensors": (header(twice), '"w" occurs twice'),
        "space.safetensors": (header(b" " + spec(w=f32([16], 0, 64))), "begin with '{'"),
        "hole.safetensors": (header(spec(a=f32([4], 0, 16), b=f32([8], 32, 64))), "safetensors"),
        "tail.safetensors": (header(spec(a=f32([8], 0, 32))), "safetensors"),
        "huge.safetensors": (header(spec(a=f32([1 << 32, 1 << 32, 16], 0, 64))), "safetensors"),
        "length.safetensors": (struct.pack("<Q", (1 << 64) - 8) + b"{}", "safetensors"),
    }
    # One storage shown by many tensors, 64 times the file.
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s
    views = b"}"
    body = one_tensor(size=[1024], stride=[1], count=1024)
    call = body[body.index(b"ctorch._utils"):-2]
    for i in range(512):
        views += text(b"%d" % i) + call + b"s"
    files["views.pth"] = (pth(pickled(views), ("archive/data/0", bytes(4096))), None)
    with zipfile.ZipFile(os.path.join(HERE, "hostile.zip"), "w", zipfile.ZIP_DEFLATED) as z:
        for name, (content, words) in files.items():
            z.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
            words = words or ""
            z.writestr(zipfile.ZipInfo(name + ".expect", (1980, 1, 1, 0, 0, 0)), words)


if __name__ == "__main__":
    checkpoints()
    before_0_4()
    hostile()
