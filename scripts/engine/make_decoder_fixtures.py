"""Makes shared/engine/tests/fixtures/decoders/: tiny random decoders of every served family with what the transformers library computes.

Input: none; the weights come from a fixed seed. Output, for each decoder, a folder with config.json, safetensors (one or two files) and
expected.json: prompts, logits of every position as base64 of little-endian f32, and the greedy continuation.
Run: python scripts/engine/make_decoder_fixtures.py
     (in an environment made from scripts/engine/requirements-bench.txt: torch 2.15.0, transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6)
"""

import base64
import json
import pathlib
import shutil

import numpy
import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "shared/engine/tests/fixtures/decoders"
VOCAB = 96
# Longer than a block of 16 tokens, than the sliding windows and than the original context of the scaled ropes.
PROMPT_TOKENS = (37, 14)
CONTINUATION_TOKENS = 12
# Below this the two best tokens could change places by rounding, and greedy answers would not be comparable.
MARGIN = 5e-3

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}

# Name: class, configuration, stored type, files.
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}, torch.float32, 1),
    "llama_llama3_tied": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}, torch.bfloat16, 1),
    "llama_yarn_biases": (
        "Llama",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
        torch.bfloat16,
        1,
    ),
    "qwen2_window_tied": (
        "Qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1},
        torch.bfloat16,
        1,
    ),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 16}, torch.bfloat16, 1),
    "mistral_window_sharded": ("Mistral", {"tie_word_embeddings": False, "sliding_window": 7}, torch.bfloat16, 2),
}


def fill(model, generator):
    """Weights large enough that attention is far from uniform and logits differ by whole numbers."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)


def round_to(model, dtype):
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype).to(torch.float32))


def save(folder, model, dtype, files):
    tied = model.config.tie_word_embeddings
    state = {
        name: weight.detach().to(dtype).contiguous()
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    if files == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(state)
    places = {name: f"model-{index * files // len(names) + 1:05}-of-{files:05}.safetensors" for index, name in enumerate(names)}
    for place in sorted(set(places.values())):
        part = {name: state[name] for name in names if places[name] == place}
        save_file(part, folder / place, metadata={"format": "pt"})
    total = sum(weight.numel() * weight.element_size() for weight in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def pack(values):
    return base64.b64encode(numpy.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def expect(model, prompt):
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0]
        ids = list(prompt)
        margins = []
        for _ in range(CONTINUATION_TOKENS):
            last = model(torch.tensor([ids])).logits[0, -1]
            best = torch.topk(last, 2).values
            margins.append(float(best[0] - best[1]))
            ids.append(int(last.argmax()))
    return {"prompt": prompt, "logits": pack(logits.numpy()), "greedy": ids[len(prompt):]}, min(margins)


def make(name, kind, fields, dtype, files):
    config = getattr(transformers, f"{kind}Config")(**(SIZES | fields))
    config.architectures = [f"{kind}ForCausalLM"]
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.float32).eval()
    for seed in range(100):
        generator = torch.Generator().manual_seed(1000 * sum(name.encode()) + seed)
        fill(model, generator)
        round_to(model, dtype)
        prompts = [torch.randint(0, VOCAB, (count,), generator=generator).tolist() for count in PROMPT_TOKENS]
        results = [expect(model, prompt) for prompt in prompts]
        if min(margin for _, margin in results) >= MARGIN:
            break
    else:
        raise SystemExit(f"{name}: no seed gives answers that rounding cannot change")
    folder = OUT / name
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save(folder, model, dtype, files)
    lines = ",\n".join(json.dumps(result, separators=(",", ":")) for result, _ in results)
    head = json.dumps({"vocab": VOCAB, "torch": torch.__version__, "transformers": transformers.__version__, "seed": seed})
    (folder / "expected.json").write_text(head[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: seed {seed}, {size} bytes, largest logit {max(abs(v) for v in numpy.frombuffer(base64.b64decode(results[0][0]['logits']), '<f4')):.2f}")


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    for name, (kind, fields, dtype, files) in CASES.items():
        make(name, kind, fields, dtype, files)


if __name__ == "__main__":
    main()
