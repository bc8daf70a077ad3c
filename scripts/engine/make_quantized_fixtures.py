"""Makes shared/engine/tests/fixtures/quantized/: tiny random Llamas in the quantized forms that are loaded, with the logits of their weights.

Input: none; the weights come from a fixed seed. Output, for each form, a folder with config.json, model.safetensors and expected.json: prompts,
and logits of every position as base64 of little-endian f32, computed in f64 from the dequantized weights, with the inputs of quantized products
rounded as the engine states it: to 8 bits per token and group beside 4-bit weights, to 12 bits per token beside int8 weights.
The forms are written out here from their definitions: GPTQ (AutoGPTQ `qweight`, `qzeros`, `scales`, `g_idx`), AWQ (AutoAWQ gemm) and
compressed-tensors `int-quantized`. The plain Llama below is first held against the logits of the transformers library in ../decoders/llama.
Run: python scripts/engine/make_quantized_fixtures.py   (numpy 2.4.6 and nothing else)
"""

import base64
import json
import pathlib
import shutil

import numpy

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "shared/engine/tests/fixtures"
OUT = FIXTURES / "quantized"
SEED = 20261121
PROMPT_TOKENS = (37, 14)
VOCAB = 96
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
# Where every matrix has two groups of 128.
WIDE = CONFIG | {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 1}
KINDS = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I8": "i1"}
# Nibble i of an AWQ word is column AWQ_ORDER[i] of its eight.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def matrices(config):
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield at + "self_attn.q_proj", hidden, hidden
        yield at + "self_attn.k_proj", kv, hidden
        yield at + "self_attn.v_proj", kv, hidden
        yield at + "self_attn.o_proj", hidden, hidden
        yield at + "mlp.gate_proj", intermediate, hidden
        yield at + "mlp.up_proj", intermediate, hidden
        yield at + "mlp.down_proj", hidden, intermediate


def others(config, random):
    hidden = config["hidden_size"]

    def half(values):
        return values.astype(numpy.float16)

    tensors = {
        "model.embed_tokens.weight": half(0.5 * random.standard_normal((VOCAB, hidden))),
        "lm_head.weight": half(1.5 * random.standard_normal((VOCAB, hidden)) / hidden**0.5),
        "model.norm.weight": half(1 + 0.2 * random.standard_normal(hidden)),
    }
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = half(1 + 0.2 * random.standard_normal(hidden))
    return tensors


def norm(x, weight, epsilon):
    return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rope(x, theta):
    """[tokens, heads, dims]; pairs are the two halves of a head."""
    tokens, _, dims = x.shape
    angles = numpy.arange(tokens)[:, None] * theta ** (-numpy.arange(0, dims, 2) / dims)
    cos, sin = numpy.cos(angles)[:, None], numpy.sin(angles)[:, None]
    first, second = x[..., : dims // 2], x[..., dims // 2 :]
    return numpy.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def rounded(x, groups, limit):
    """Each token's inputs as whole numbers of -limit..=limit times one scale per group."""
    result = numpy.zeros_like(x)
    for group in range(groups.max() + 1):
        part = x[:, groups == group]
        scale = abs(part).max(1, keepdims=True) / limit
        result[:, groups == group] = numpy.rint(part / scale) * scale
    return result


def llama(config, weights, prompt, rounding=None):
    """Logits of every position in f64; `rounding` names the groups and the limit of each product whose inputs are rounded."""
    w = {name: tensor.astype(numpy.float64) for name, tensor in weights.items()}
    heads, kv_heads, epsilon = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps"))
    dims = config["hidden_size"] // heads
    theta = config["rope_theta"]
    x = w["model.embed_tokens.weight"][prompt]
    count = len(prompt)
    mask = numpy.triu(numpy.full((count, count), -numpy.inf), 1)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."

        def linear(name, x, at=at):
            how = (rounding or {}).get(at + name)
            return (rounded(x, *how) if how else x) @ w[f"{at}{name}.weight"].T

        h = norm(x, w[at + "input_layernorm.weight"], epsilon)
        q = rope(linear("self_attn.q_proj", h).reshape(count, heads, dims), theta)
        k = rope(linear("self_attn.k_proj", h).reshape(count, kv_heads, dims), theta)
        v = linear("self_attn.v_proj", h).reshape(count, kv_heads, dims)
        k, v = (numpy.repeat(each, heads // kv_heads, 1) for each in (k, v))
        scores = numpy.einsum("qhd,khd->hqk", q, k) / dims**0.5 + mask
        scores = numpy.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + linear("self_attn.o_proj", numpy.einsum("hqk,khd->qhd", scores, v).reshape(count, -1))
        h = norm(x, w[at + "post_attention_layernorm.weight"], epsilon)
        gate = linear("mlp.gate_proj", h)
        x = x + linear("mlp.down_proj", gate / (1 + numpy.exp(-gate)) * linear("mlp.up_proj", h))
    return norm(x, w["model.norm.weight"], epsilon) @ w["lm_head.weight"].T


def read_safetensors(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, info in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in info["data_offsets"])
            tensors[name] = numpy.frombuffer(data[start:end], KINDS[info["dtype"]]).reshape(info["shape"])
    return tensors


def write_safetensors(file, tensors):
    header, parts, offset = {"__metadata__": {"format": "pt"}}, [], 0
    names = {numpy.dtype(kind): name for name, kind in KINDS.items()}
    # Larger elements first, so that each tensor is aligned.
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        part = numpy.ascontiguousarray(tensors[name]).tobytes()
        header[name] = {
            "dtype": names[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def check_against_transformers():
    folder = FIXTURES / "decoders/llama"
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    weights = read_safetensors(folder / "model.safetensors")
    for case in json.loads((folder / "expected.json").read_text())["cases"]:
        expected = numpy.frombuffer(base64.b64decode(case["logits"]), "<f4")
        difference = abs(llama(config, weights, case["prompt"]).reshape(-1) - expected).max()
        if difference > 1e-4:
            raise SystemExit(f"the plain Llama is {difference} off the transformers library")


def quantize_int4(weight, groups, symmetric):
    """`groups` names the group of each input; gives values [out, in], scales [groups, out] (f16) and zeros [groups, out]."""
    count = groups.max() + 1
    scales = numpy.zeros((count, len(weight)), numpy.float16)
    zeros = numpy.zeros((count, len(weight)), numpy.int64)
    values = numpy.zeros(weight.shape, numpy.int64)
    for group in range(count):
        part = weight[:, groups == group]
        if symmetric:
            scale = (abs(part).max(1) / 7).astype(numpy.float16)
            zero = numpy.full(len(weight), 8)
        else:
            least, greatest = numpy.minimum(part.min(1), 0), numpy.maximum(part.max(1), 0)
            scale = ((greatest - least) / 15).astype(numpy.float16)
            zero = numpy.rint(-least / scale.astype(float)).astype(int).clip(0, 15)
        wide = scale.astype(numpy.float64)
        values[:, groups == group] = (numpy.rint(part / wide[:, None]) + zero[:, None]).clip(0, 15)
        scales[group], zeros[group] = scale, zero
    plain = (values - zeros[groups].T) * scales[groups].T.astype(numpy.float64)
    return values, scales, zeros, plain


def words(nibbles):
    """[..., 8] values of 4 bits to one 32-bit word each, the first one lowest."""
    shifts = 4 * numpy.arange(8, dtype=numpy.uint64)
    return (nibbles.astype(numpy.uint64) << shifts).sum(-1, dtype=numpy.uint64).astype(numpy.uint32).view(numpy.int32)


def gptq(name, weight, random, group=32, symmetric=True, act_order=False, first_version=True):
    depth = weight.shape[1]
    groups = numpy.arange(depth) // (depth if group == -1 else group)
    if act_order:
        groups = random.permutation(groups)
    values, scales, zeros, plain = quantize_int4(weight, groups, symmetric)
    stored = zeros - 1 if first_version else zeros
    if stored.min() < 0:
        raise SystemExit(f"{name}: a zero of 0 has no place in the first version of the format")
    columns = len(weight)
    return {
        f"{name}.qweight": words(values.T.reshape(depth // 8, 8, columns).transpose(0, 2, 1)),
        f"{name}.qzeros": words(stored.reshape(-1, columns // 8, 8)),
        f"{name}.scales": scales,
        f"{name}.g_idx": groups.astype(numpy.int32),
    }, plain, (groups, 127)


def awq(name, weight, random, group=64, plain_down=False):
    if plain_down and name.endswith("mlp.down_proj"):
        plain = weight.astype(numpy.float16)
        return {f"{name}.weight": plain}, plain, None
    depth, columns = weight.shape[1], len(weight)
    groups = numpy.arange(depth) // group
    values, scales, zeros, plain = quantize_int4(weight, groups, False)
    return {
        f"{name}.qweight": words(values.T.reshape(depth, columns // 8, 8)[..., AWQ_ORDER]),
        f"{name}.qzeros": words(zeros.reshape(-1, columns // 8, 8)[..., AWQ_ORDER]),
        f"{name}.scales": scales,
    }, plain, (groups, 127)


def w8a8(name, weight, random):
    scales = (abs(weight).max(1, keepdims=True) / 127).astype(numpy.float32)
    values = numpy.rint(weight / scales).clip(-128, 127).astype(numpy.int8)
    stored = {f"{name}.weight": values, f"{name}.weight_scale": scales}
    return stored, values * scales.astype(numpy.float64), (numpy.zeros(weight.shape[1], int), 2047)


GPTQ = {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 64,
    "version": "gemm",
    "zero_point": True,
}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
CASES = {
    "gptq_sym": (gptq, {}, GPTQ),
    # Every matrix has an order of its own, also query, key and value.
    "gptq_act_order": (gptq, {"symmetric": False, "act_order": True}, GPTQ | {"desc_act": True, "sym": False}),
    "gptq_column_v2": (
        gptq,
        {"group": -1, "symmetric": False, "first_version": False},
        GPTQ | {"checkpoint_format": "gptq_v2", "group_size": -1, "sym": False},
    ),
    "awq": (awq, {"plain_down": True}, AWQ | {"modules_to_not_convert": ["down_proj"]}),
    "w8a8": (
        w8a8,
        {},
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": INT8 | {"strategy": "channel", "dynamic": False},
                    "input_activations": INT8 | {"strategy": "token", "dynamic": True},
                }
            },
            "ignore": ["lm_head"],
        },
    ),
    "gptq_128": (
        gptq,
        {"group": 128, "symmetric": False, "act_order": True, "first_version": False},
        GPTQ | {"checkpoint_format": "gptq_v2", "group_size": 128, "desc_act": True, "sym": False},
    ),
    "awq_32": (awq, {"group": 32}, AWQ | {"group_size": 32}),
    "awq_128": (awq, {"group": 128}, AWQ | {"group_size": 128}),
}


def make(name, index):
    form, options, quantization = CASES[name]
    config = WIDE if name.endswith("_128") else CONFIG
    random = numpy.random.default_rng(SEED + index)
    stored = others(config, random)
    plain, rounding = dict(stored), {}
    for matrix, columns, depth in matrices(config):
        weight = 1.5 * random.standard_normal((columns, depth)) / depth**0.5
        tensors, plain[f"{matrix}.weight"], rounding[matrix] = form(matrix, weight, random, **options)
        stored |= tensors
    cases = []
    for count in PROMPT_TOKENS:
        prompt = random.integers(0, VOCAB, count).tolist()
        logits = llama(config, plain, prompt, rounding).astype("<f4")
        lost = abs(llama(config, plain, prompt) - logits).max() / abs(logits).max()
        cases.append({"prompt": prompt, "logits": base64.b64encode(logits.tobytes()).decode("ascii")})
    folder = OUT / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}, indent=1) + "\n")
    write_safetensors(folder / "model.safetensors", stored)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    head = json.dumps({"vocab": VOCAB, "numpy": numpy.__version__, "seed": SEED + index})
    (folder / "expected.json").write_text(head[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    print(f"{name}: {sum(file.stat().st_size for file in folder.iterdir())} bytes, rounding of inputs moves logits by {lost:.3f} of the largest")


def main():
    check_against_transformers()
    shutil.rmtree(OUT, ignore_errors=True)
    for index, name in enumerate(CASES):
        make(name, index)


if __name__ == "__main__":
    main()
