#!/usr/bin/env python3
"""Writes tests/golden/rounding.json: a matrix, and the codes, scales and zero points that the libraries which publish quantized checkpoints make of it by
rounding to the nearest: compressed-tensors (integers and FP8) and bitsandbytes (nf4). Needs torch and both of them:

    tools/make_rounding_golden.py
"""
import argparse
import json
import pathlib

import torch

ROWS, K = 8, 256


def hexadecimal(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes().hex()


def some_weights():
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn((ROWS, K), generator=generator) * 0.02
    weights[1] = weights[1].abs()          # one sign: the zero point is an end of the codes
    weights[2] = -weights[2].abs()
    weights[3, 77] = 3.0                   # an outlier
    weights[4] *= 1e-20
    weights[5] *= 1e20
    weights[6] = torch.linspace(-1, 1, K)
    weights[7] = torch.randint(-8, 8, (K,), generator=generator).float()  # often half way between two codes
    return weights


def compressed_cases(weights):
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    for kind, bits, symmetric, group in [("int8", 8, True, K), ("int8", 8, True, 64), ("int8", 8, False, 128), ("int4", 4, True, 32), ("int4", 4, True, 128), ("int4", 4, False, 32),
                                         ("int4", 4, False, 128), ("int4", 4, False, K), ("fp8", 8, True, K), ("fp8", 8, True, 128)]:
        strategy = {"strategy": "channel"} if group == K else {"strategy": "group", "group_size": group}
        args = QuantizationArgs(num_bits=bits, type="float" if kind == "fp8" else "int", symmetric=symmetric, **strategy)
        grouped = weights.reshape(ROWS, K // group, group)
        scales, zeros = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        codes = quantize(weights, scales, zeros, args, dtype=torch.float8_e4m3fn if kind == "fp8" else torch.int8)
        middle = 2 ** (bits - 1)
        if kind == "fp8":
            codes = codes.view(torch.uint8)
        else:
            codes, zeros = (codes.int() + middle).to(torch.uint8), (zeros.int() + middle).to(torch.uint8)
        found = {"writer": f"compressed-tensors {compressed_tensors.__version__}", "kind": kind, "symmetric": symmetric, "group_size": group, "codes": hexadecimal(codes), "scales": hexadecimal(scales)}
        if kind != "fp8":
            found["zero_points"] = hexadecimal(zeros)
        yield found


def bitsandbytes_cases(weights):
    import bitsandbytes
    from bitsandbytes import functional

    for group in (64, 128):
        packed, state = functional.quantize_4bit(weights, blocksize=group, quant_type="nf4", compress_statistics=False)
        packed = packed.reshape(-1)
        codes = torch.stack([packed >> 4, packed & 15], dim=1)
        yield {"writer": f"bitsandbytes {bitsandbytes.__version__}", "kind": "nf4", "symmetric": True, "group_size": group, "codes": hexadecimal(codes), "scales": hexadecimal(state.absmax.float())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1] / "tests/golden/rounding.json")
    options = parser.parse_args()
    weights = some_weights()
    golden = {"made_with": {"torch": torch.__version__}, "rows": ROWS, "k": K, "weights": hexadecimal(weights), "cases": [*compressed_cases(weights), *bitsandbytes_cases(weights)]}
    options.out.write_text(json.dumps(golden, separators=(",", ":")).replace('{"writer"', '\n{"writer"') + "\n")
    print(f"{len(golden['cases'])} cases, {options.out.stat().st_size} bytes: {options.out}")


if __name__ == "__main__":
    main()
