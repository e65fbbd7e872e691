"""peers.py NETWORK BATCHES SECONDS [--compile]: what PyTorch makes of a network on a GPU.

One line of JSON: images per second by way and batch. Every way computes in half precision on random
pictures that are in the GPU's memory, channels last, with cuDNN's own choice of algorithms: `half`, its
batch norms folded and its launches in a CUDA graph; `eager` the same without the graph; `fused` with
convolution, bias, residual and ReLU in one call of cuDNN; `compiled` by torch.compile with max-autotune
and frozen weights. A way that lies too far from f32 (TF32 off) is not timed. Needs torch and torchvision;
timm for vision transformers.
"""
import argparse
import copy
import json
import operator
import os
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "benches", "peers"))
import nets  # noqa: E402

SUMS = operator.add, operator.iadd, torch.add
# Distance from f32 beyond which a way is not timed.
RIGHT = 3e-2


def folded(model):
    """The network with its batch norms inside the convolutions before them, where it can be traced."""
    from torch.fx.experimental.optimization import fuse
    try:
        return fuse(model)
    except Exception as why:
        print(f"not folded: {why}", file=sys.stderr)
        return model


def fused(model, relu=torch.cudnn_convolution_relu, add_relu=torch.cudnn_convolution_add_relu):
    """A folded network whose convolutions take residual and ReLU along; None where there are none."""
    if not isinstance(model, torch.fx.GraphModule):
        return None
    model = copy.deepcopy(model)
    modules, graph, found = dict(model.named_modules()), model.graph, 0

    def convolution(node):
        if not isinstance(node, torch.fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return None
        module = modules[node.target]
        return module if type(module) is nn.Conv2d and not isinstance(module.padding, str) else None

    for node in list(graph.nodes):
        is_module = node.op == "call_module" and isinstance(modules[node.target], nn.ReLU)
        if not is_module and node.target not in (functional.relu, torch.relu):
            continue
        conv, residual, gone = node.args[0], None, []
        if isinstance(conv, torch.fx.Node) and conv.target in SUMS and len(conv.users) == 1:
            gone, terms = [conv], conv.args[:2]
            conv, residual = terms if convolution(terms[0]) else reversed(terms)
        module = convolution(conv)
        if module is None:
            continue
        with graph.inserting_before(node):
            weight = graph.get_attr(f"{conv.target}.weight")
            bias = graph.get_attr(f"{conv.target}.bias") if module.bias is not None else None
            how = module.stride, module.padding, module.dilation, module.groups
            if residual is None:
                new = graph.call_function(relu, (conv.args[0], weight, bias, *how))
            else:
                new = graph.call_function(
                    add_relu, (conv.args[0], weight, residual, 1.0, bias, *how))
        node.replace_all_uses_with(new)
        for old in [node, *gone, conv]:
            graph.erase_node(old)
        found += 1
    graph.lint()
    model.recompile()
    return model if found else None


def graphed(model, x):
    """The launches of a run, to be repeated."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x)
    return graph.replay


def rate(run, images, seconds):
    """Images per second, the median of rounds of about a tenth of a second."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def lasts(times):
        begin.record()
        for _ in range(times):
            run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    lasts(3)
    times = max(2, int(0.1 / max(lasts(3) / 3, 1e-6)))
    rates, until = [], time.monotonic() + seconds
    while len(rates) < 5 or time.monotonic() < until:
        rates.append(images * times / lasts(times))
    return statistics.median(rates)


def distance(y, want):
    return float((y.float() - want).norm() / want.norm())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("batches")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, batches = torch.device("cuda"), [int(b) for b in args.batches.split(",")]
    model, side = nets.build(args.network).to(device), nets.SIDES[args.network]
    some = torch.randn(8, 3, side, side, device=device)
    want = model(some).float()
    if args.network not in nets.VITS:
        model = folded(model)
    half = model.half().to(memory_format=torch.channels_last)

    def pictures(batch):
        x = torch.randn(batch, 3, side, side, device=device, dtype=torch.half)
        return x.to(memory_format=torch.channels_last)

    ways = {"pytorch half": half, "pytorch fused": fused(half)}
    if args.compile:
        import torch._inductor.config
        torch._inductor.config.freezing = True
        ways["pytorch compiled"] = torch.compile(half, mode="max-autotune-no-cudagraphs", dynamic=False)
    errors = {way: distance(network(some.half().to(memory_format=torch.channels_last)), want)
              for way, network in ways.items() if network is not None}
    ways = {way: ways[way] for way, error in errors.items() if error < RIGHT}
    rates, share = {}, args.seconds / (len(batches) * (len(ways) + 1))
    for batch in batches:
        x = pictures(batch)
        rates.setdefault("pytorch eager", {})[batch] = rate(lambda: half(x), batch, share)
        for way, network in ways.items():
            rates.setdefault(way, {})[batch] = rate(graphed(network, x), batch, share)
    print(json.dumps({"images_per_second": rates, "errors": errors, "torch": torch.__version__,
                      "cudnn": torch.backends.cudnn.version()}))


if __name__ == "__main__":
    main()
