"""Writes what the engines read of a sentence-transformers directory: ONNX graphs, a copy in bf16, CTranslate2's files.

usage: embed_export.py onnx|bf16|ctranslate2 MODEL OUT
"""
import json
import os
import shutil
import sys


def export_onnx(model, out):
    import onnx
    import onnxruntime
    import torch
    from bert import Embedder
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers import optimizer
    from safetensors.torch import load_file
    from transformers import AutoModel

    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    embedder = Embedder(load_file(os.path.join(model, "model.safetensors")), config).eval()
    ids = torch.randint(1000, 20000, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    plain = os.path.join(out, "plain-fp32.onnx")
    axes = {0: "texts", 1: "tokens"}
    with torch.no_grad():
        torch.onnx.export(embedder, (ids, mask), plain, input_names=["input_ids", "attention_mask"], output_names=["embedding"],
                          dynamic_axes={"input_ids": axes, "attention_mask": axes, "embedding": {0: "texts"}}, opset_version=17, dynamo=False)
    fused_model = optimizer.optimize_model(plain, model_type="bert", num_heads=config["num_attention_heads"], hidden_size=config["hidden_size"], opt_level=0)
    fused = os.path.join(out, "fused-fp32.onnx")
    fused_model.save_model_to_file(fused)
    prepared = os.path.join(out, "prepared.onnx")
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    for name, source in (("plain", prepared), ("fused", fused)):
        for suffix, per_channel in (("", False), ("-channel", True)):
            quantize_dynamic(source, os.path.join(out, f"{name}-int8{suffix}.onnx"), weight_type=QuantType.QInt8, per_channel=per_channel, extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT})
    os.remove(prepared)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(model, dtype=torch.float32).eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (hidden * mask[:, :, None]).sum(1)
        want = (pooled / pooled.norm(dim=1, keepdim=True)).numpy()
    report = {"fused": {name: count for name, count in fused_model.get_fused_operator_statistics().items() if count}}
    for name in ("plain-fp32", "fused-fp32", "plain-int8", "fused-int8", "plain-int8-channel", "fused-int8-channel"):
        got, = onnxruntime.InferenceSession(os.path.join(out, name + ".onnx"), providers=["CPUExecutionProvider"]).run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        report[name] = float((got * want).sum(1).min())  # the cosine
    with open(os.path.join(out, "report.json"), "w") as file:
        json.dump(report, file, indent=1)
    if min(report["plain-fp32"], report["fused-fp32"]) < 0.9999:
        sys.exit(f"the exported graphs give other embeddings: {report}")


def export_bf16(model, out):
    import torch
    from safetensors.torch import load_file, save_file
    shutil.copytree(model, out, dirs_exist_ok=True)
    path = os.path.join(out, "model.safetensors")
    tensors = {name: tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor for name, tensor in load_file(path).items()}
    os.remove(path)  # the copy may be as read-only as the original
    save_file(tensors, path, metadata={"format": "pt"})


def export_ctranslate2(model, out):
    import ctranslate2
    ctranslate2.converters.TransformersConverter(model).convert(out, force=True)


def main():
    kind, model, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    {"onnx": export_onnx, "bf16": export_bf16, "ctranslate2": export_ctranslate2}[kind](model, out)
    open(os.path.join(out, "complete"), "w").close()


if __name__ == "__main__":
    main()
