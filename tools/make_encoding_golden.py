#!/usr/bin/env python3
"""Writes tests/golden/weight_encodings.json: small matrices as the libraries that quantize checkpoints store them, with the numbers they mean.

The layout (which bit of which word is which weight) comes from the library that writes it, called here; the numbers are the formula
scale * (code - zero point), or scale * codebook[code], in float32, from what was handed to the library. Needs torch, transformers,
compressed-tensors and bitsandbytes; of auto-gptq, autoawq and hqq only the sources, since their packages want a GPU:

    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9 hqq==0.2.8.post1   # unpacked into DIRECTORY
    tools/make_encoding_golden.py --sources DIRECTORY
    tools/make_encoding_golden.py --sources DIRECTORY --only hqq              # the cases of other methods stay as they are
"""
import argparse
import importlib.util
import json
import pathlib
import sys
import types

import torch

ROWS, K = 32, 64
DTYPES = {torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.float8_e4m3fn: "F8_E4M3"}


def stored(tensor):
    tensor = tensor.contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "hex": raw.hex()}


def case(name, config, tensors, expected, writer):
    return {"name": name, "writer": writer, "quantization_config": config, "rows": expected.shape[0], "k": expected.shape[1],
            "tensors": {key: stored(value) for key, value in tensors.items()}, "expected": expected.float().contiguous().numpy().tobytes().hex()}


def load_source(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def random_integers(bits, group, symmetric, scale_dtype, generator, k=K):
    groups = k // group
    codes = torch.randint(0, 2**bits, (ROWS, k), generator=generator)
    # 0 is not among them: before format v2, AutoGPTQ's kernels disagree about what -1 stands for.
    zeros = torch.full((ROWS, groups), 2 ** (bits - 1)) if symmetric else torch.randint(1, 2**bits, (ROWS, groups), generator=generator)
    scales = (torch.rand((ROWS, groups), generator=generator) * 0.1 + 0.01).to(scale_dtype)
    return codes, zeros, scales


def means(codes, zeros, scales, group_of):
    return scales.float()[:, group_of] * (codes - zeros[:, group_of]).float()


def gptq_cases(sources, generator):
    module = load_source("auto_gptq_linear", sources / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
    for bits, group, symmetric, act_order in [(4, 32, True, False), (4, 32, False, False), (2, 32, False, False), (3, 32, False, False), (8, 32, False, False), (4, K, True, False),
                                              (4, 32, False, True)]:
        codes, zeros, scales = random_integers(bits, group, symmetric, torch.float16, generator)
        group_of = torch.arange(K) // group
        if act_order:
            group_of = group_of[torch.randperm(K, generator=generator)]
        expected = means(codes, zeros, scales, group_of)
        layer = module.QuantLinear(bits, group if group < K else -1, K, ROWS, False, weight_dtype=torch.float32)
        linear = torch.nn.Linear(K, ROWS, bias=False)
        linear.weight.data = expected.clone()
        layer.pack(linear, scales.float(), zeros.float(), group_of.int())
        name = f"gptq_{bits}bit_{'sym' if symmetric else 'asym'}_{'row' if group == K else group}{'_act_order' if act_order else ''}"
        config = {"quant_method": "gptq", "bits": bits, "group_size": group if group < K else -1, "desc_act": act_order, "sym": symmetric}
        tensors = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales.half(), "g_idx": layer.g_idx.int()}
        yield case(name, config, tensors, expected, "auto-gptq 0.7.1")
        if bits in (2, 4, 8) and not act_order:  # v2 stores the zero points themselves; along whole words the difference is 1 in every field
            ones = sum(1 << shift for shift in range(0, 32, bits))
            v2 = ((layer.qzeros.long() & 0xffffffff) + ones) & 0xffffffff
            tensors = dict(tensors, qzeros=torch.where(v2 >= 2**31, v2 - 2**32, v2).int())
            yield case(name + "_v2", dict(config, checkpoint_format="gptq_v2"), tensors, expected, "auto-gptq 0.7.1, zero points as GPTQModel's v2")


def awq_cases(sources, generator):
    for name in ("awq", "awq.utils", "awq.utils.module", "awq.utils.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["awq.utils.module"].try_import = lambda name: (None, "")
    sys.modules["awq.utils.utils"].get_best_device = lambda: "cpu"
    load_source("awq.utils.packing_utils", sources / "awq/utils/packing_utils.py")
    module = load_source("awq_gemm", sources / "awq/modules/linear/gemm.py")
    for group in (32, K):
        codes, zeros, scales = random_integers(4, group, False, torch.float16, generator)
        expected = means(codes, zeros, scales, torch.arange(K) // group)
        linear = torch.nn.Linear(K, ROWS, bias=False)
        linear.weight.data = expected.clone()
        layer = module.WQLinear_GEMM.from_linear(linear, 4, group, scales=scales.t().contiguous().float(), zeros=zeros.t().contiguous().float())
        config = {"quant_method": "awq", "bits": 4, "group_size": group if group < K else -1, "zero_point": True, "version": "gemm"}
        yield case(f"awq_{group}", config, {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales}, expected, "autoawq 0.2.9")


def bitsandbytes_cases(generator):
    import bitsandbytes
    from bitsandbytes import functional

    writer = f"bitsandbytes {bitsandbytes.__version__}"
    k = 128
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            weight = torch.randn((ROWS, k), generator=generator) * 0.1
            packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
            absmax = state.absmax
            if nested:
                absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
            codes = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), dim=1).view(ROWS, k).long()
            expected = absmax.float().view(ROWS, k // 64).repeat_interleave(64, dim=1) * state.code.float()[codes]
            tensors = {"weight": packed, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
            config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
            difference = (functional.dequantize_4bit(packed, state) - expected).abs().max().item()
            assert difference < 1e-6, difference
            yield case(f"bitsandbytes_{kind}{'_nested' if nested else ''}", config, tensors, expected, writer)
    weight = torch.randn((ROWS, K), generator=generator)
    codes, scb, _ = functional.int8_vectorwise_quant(weight.half())
    yield case("bitsandbytes_int8", {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
               {"weight": codes, "SCB": scb.float(), "weight_format": torch.zeros((), dtype=torch.uint8)}, codes.float() * (scb.float() / 127).unsqueeze(1), writer)


def compressed_cases(generator):
    import compressed_tensors
    from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    writer = f"compressed-tensors {compressed_tensors.__version__}"

    def make(name, layout, compressor, args, weight, scale, zero_point=None, expected=None, extra=None):
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        state = {"weight": weight, "weight_scale": scale}
        if zero_point is not None:
            state["weight_zero_point"] = zero_point
        compressed = compressor.compress(state, scheme)
        config = {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}}
        return case(name, config, {**compressed, **(extra or {})}, expected, writer)

    for bits, group, symmetric, scale_dtype in [(4, 32, True, torch.bfloat16), (4, 32, False, torch.float16), (8, 32, True, torch.float32), (4, K, True, torch.bfloat16), (3, 32, False, torch.float16)]:
        codes, zeros, scales = random_integers(bits, group, symmetric, scale_dtype, generator)
        middle = 2 ** (bits - 1)
        expected = means(codes, zeros, scales, torch.arange(K) // group)
        args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group < K else "channel", "group_size": group if group < K else None}
        zero_point = None if symmetric else (zeros - middle).to(torch.int8)
        yield make(f"compressed_pack_{bits}bit_{'sym' if symmetric else 'asym'}_{'row' if group == K else group}", "pack-quantized", PackedQuantizationCompressor, args, expected, scales,
                   zero_point, expected)
    for symmetric in (True, False):
        codes, zeros, scales = random_integers(8, K, symmetric, torch.float32, generator)
        expected = means(codes, zeros, scales, torch.zeros(K, dtype=torch.long))
        args = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel"}
        zero_point = None if symmetric else (zeros - 128).to(torch.int8)
        yield make(f"compressed_int8_{'sym' if symmetric else 'asym'}", "int-quantized", NaiveQuantizationCompressor, args, expected, scales, zero_point, expected)
    for strategy in ("tensor", "channel"):
        numbers = torch.randn((ROWS, K), generator=generator).to(torch.float8_e4m3fn)
        scales = torch.rand((1,) if strategy == "tensor" else (ROWS, 1), generator=generator) * 0.1 + 0.01
        expected = scales * numbers.float()
        args = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
        yield make(f"compressed_fp8_{strategy}", "float-quantized", NaiveQuantizationCompressor, args, expected, scales, None, expected)


def fp8_cases(generator):
    # Plain torch tensors: what DeepSeek's and transformers' FP8 checkpoints hold. 160 columns in blocks of 32 x 64: the last is narrower.
    k = 160
    numbers = torch.randn((ROWS, k), generator=generator).to(torch.float8_e4m3fn)
    every = torch.tensor([code for code in range(256) if code & 0x7f != 0x7f], dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers.view(-1)[: every.numel()] = every
    scales = torch.rand((2, 3), generator=generator)
    expected = scales.repeat_interleave(16, dim=0).repeat_interleave(64, dim=1)[:, :k] * numbers.float()
    yield case("fp8_blocks", {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 64]}, {"weight": numbers, "weight_scale_inv": scales}, expected, "torch")
    scale = torch.tensor(0.037)
    yield case("fp8_tensor", {"quant_method": "fp8", "activation_scheme": "static"}, {"weight": numbers, "weight_scale": scale, "input_scale": torch.tensor(0.5)}, scale * numbers.float(), "torch")


def hqq_cases(sources):
    sys.modules.setdefault("termcolor", types.SimpleNamespace(colored=lambda text, *_: text))
    sys.path.insert(0, str(sources))
    import hqq
    from hqq.core.quantize import HQQLinear, Quantizer, hqq_base_quant_config

    generator = torch.Generator().manual_seed(21)
    for name, bits, group, dtype, rows, k, float_view in [("8bit_64", 8, 64, torch.float16, 16, 64, False), ("4bit_64", 4, 64, torch.float16, ROWS, 128, False),
                                                          ("3bit_64", 3, 64, torch.float16, 16, 64, False), ("2bit_32", 2, 32, torch.bfloat16, 16, 64, False),
                                                          ("1bit_64", 1, 64, torch.float16, 16, 64, False), ("4bit_row", 4, None, torch.bfloat16, 16, 96, False),
                                                          ("3bit_two_rows", 3, 128, torch.float16, 18, 64, False), ("4bit_float_view", 4, 64, torch.float16, 16, 64, True)]:
        linear = torch.nn.Linear(k, rows, bias=False)
        linear.weight.data = torch.randn((rows, k), generator=generator) * 0.1
        config = hqq_base_quant_config(nbits=bits, group_size=group, axis=1, view_as_float=float_view)
        layer = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
        state = layer.state_dict()
        meta, packed = layer.meta, layer.W_q.data
        size = meta["group_size"]
        words = packed.view(meta["unpack_view_dtype"]) if float_view else packed
        codes = Quantizer.unpack[meta["packing"]](words, dtype=torch.float32)[: rows * k // size]
        expected = ((codes - meta["zero"].float()) * meta["scale"].float()).reshape(rows, k)
        difference = (layer.dequantize().float() - expected).abs().max().item()
        assert difference <= expected.abs().max().item() * 0.02, difference  # it computes in 16 bits
        assert bits == 1 or ((meta["zero"].float() % 1) != 0).any(), "zero points that are no whole numbers"
        stored_config = {"quant_method": "hqq", "quant_config": {"weight_quant_params": config["weight_quant_params"], "scale_quant_params": None, "zero_quant_params": None}, "skip_modules": ["lm_head"]}
        yield case("hqq_" + name, stored_config, {key: torch.as_tensor(value) for key, value in state.items()}, expected, f"hqq {hqq.__version__}")


def fp4_cases():
    import compressed_tensors
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    writer = f"compressed-tensors {compressed_tensors.__version__}"
    generator = torch.Generator().manual_seed(22)
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for layout, compressor, group in (("nvfp4", NVFP4PackedCompressor, 16), ("mxfp4", MXFP4PackedCompressor, 32)):
        k = 96
        codes = torch.randint(0, 16, (ROWS, k), generator=generator)
        codes[codes == 8] = 0  # rounding makes no -0
        if layout == "nvfp4":
            bytes_ = torch.randint(1, 0x7f, (ROWS, k // group), generator=generator)
            bytes_.view(-1)[:126] = torch.arange(1, 127)  # every positive 8-bit float
            scales = bytes_.to(torch.uint8).view(torch.float8_e4m3fn).float()
            global_scale = torch.tensor([37.25])
            factor = scales * (1 / global_scale)
            args = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": group, "scale_dtype": "torch.float8_e4m3fn"}
        else:
            scales = 2.0 ** torch.randint(-20, 6, (ROWS, k // group), generator=generator)
            global_scale = None
            factor = scales
            args = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": group, "scale_dtype": "torch.uint8"}
        expected = numbers[codes] * factor.repeat_interleave(group, dim=1)
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        state = {"weight": expected.clone(), "weight_scale": scales}
        if global_scale is not None:
            state["weight_global_scale"] = global_scale
        compressed = compressor.compress(state, scheme)
        again = compressor.decompress(dict(compressed), scheme)["weight"].float()
        assert ((again - expected).abs() <= expected.abs() * 0.01).all(), "decompressed in 16 bits"
        packed = compressed["weight_packed"]
        assert torch.equal(torch.stack((packed & 15, packed >> 4), dim=2).view(ROWS, k).long(), codes)  # nothing was rounded
        if layout == "nvfp4":
            compressed["input_global_scale"] = torch.tensor([12.0])
        stored_config = {"quant_method": "compressed-tensors", "format": f"{layout}-pack-quantized", "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}}
        yield case(f"compressed_{layout}", stored_config, compressed, expected, writer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=pathlib.Path, required=True, help="folder with the unpacked auto_gptq and awq packages")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1] / "tests/golden/weight_encodings.json")
    parser.add_argument("--only", nargs="+", choices=("hqq", "fp4"), help="make the cases of these methods, which draw from generators of their own, and keep all others")
    options = parser.parse_args()
    kept, makers = [], {"hqq": lambda: hqq_cases(options.sources), "fp4": fp4_cases}
    if options.only:
        kept = json.loads(options.out.read_text())["cases"]
    else:
        generator = torch.Generator().manual_seed(20)
        kept = [*gptq_cases(options.sources, generator), *awq_cases(options.sources, generator), *bitsandbytes_cases(generator), *compressed_cases(generator), *fp8_cases(generator)]
    made = [made for name, make in makers.items() if not options.only or name in options.only for made in make()]
    names = {made_case["name"] for made_case in made}
    cases = [kept_case for kept_case in kept if kept_case["name"] not in names] + made
    options.out.write_text(json.dumps({"made_with": {"torch": torch.__version__}, "cases": cases}, indent=None, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")
    print(f"{len(cases)} cases, {options.out.stat().st_size} bytes: {options.out}")


if __name__ == "__main__":
    main()
