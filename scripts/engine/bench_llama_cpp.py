"""Compares generation with llama.cpp on one machine in one run: the same random-weight Llama of 100M parameters, the same precision.

Input: the release build of the example `generate_bench`. Output: one table as Markdown on standard output.
The model is made once with the transformers library (fixed seed) and written as GGUF with the `gguf` package: f32 as F32, bf16 as F16
(llama.cpp is slower in BF16 here), int8 as Q8_0, int4 as Q4_0; in f32 both keep keys and values in f32, else in 16 bits.
In f32 both must give the same greedy tokens, else the run fails: then it is not the same model.

llama.cpp runs through the low-level functions of llama-cpp-python, each token chosen by numpy's argmax: what its Python classes add is left out.
Sixteen requests are given to it in two ways: one after the other, as llama-cpp-python's class and server serve them (one context behind a lock),
and together, as a program of one's own could drive it: all prompts first, then steps of sixteen sequences.
Engines take turns, each in a process of its own; a figure is the best of its turns, a ratio the median of the turns' ratios.

Run: python scripts/engine/bench_llama_cpp.py [--only int8,int4] [--turns 3]
     (in an environment made from scripts/engine/requirements-bench.txt and requirements-llama-cpp.txt, after
      cargo build --release -p engine --example generate_bench; `make bench-generate` does all of it)
"""

import argparse
import ctypes
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEED = 20261121
# 12 layers of 768 with 12 heads in groups of 3, and an output layer of its own: 100.1M parameters.
SIZES = {
    "vocab_size": 16_000,
    "hidden_size": 768,
    "intermediate_size": 2_048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2_048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
PRECISIONS = {"f32": "F32", "bf16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
# Tokens of prompts and answers.
ALONE_PROMPT, ALONE_ANSWER = 512, 64
MANY, MANY_PROMPT, MANY_ANSWER = 16, 128, 128
# Tokens whose agreement shows that both compute the same model.
CHECKED_TOKENS = 8


def token(request, position, turn):
    """As in `generate_bench`."""
    return (request * 7_919 + position * 31 + turn) % SIZES["vocab_size"]


def make_model(folder):
    """A Hugging Face folder with random bf16 weights, larger than usual so that answers do not depend on rounding."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(**SIZES, initializer_range=0.04, eos_token_id=0, bos_token_id=None)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    # Only its decoder is used: no text goes in.
    words = {f"t{index}": index for index in range(SIZES["vocab_size"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}\n")


def rope_order(weight, heads):
    """llama.cpp turns neighbours, transformers halves."""
    rows, depth = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, depth).swapaxes(1, 2).reshape(rows, depth)


def make_gguf(folder, file, kind):
    import gguf
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_rope_dimension_count(SIZES["hidden_size"] // SIZES["num_attention_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["num_hidden_layers"])
    for name, tensor in tensors.items():
        values = tensor.to(torch.float32).numpy()
        if name.endswith("q_proj.weight"):
            values = rope_order(values, SIZES["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = rope_order(values, SIZES["num_key_value_heads"])
        # Vectors (norms) stay f32, as llama.cpp wants them.
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(names.get_name(name, (".weight",)), gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """One context of llama.cpp, driven by its low-level functions."""

    def __init__(self, file, threads, sequences, tokens, is_f32):
        import llama_cpp

        self.lib = llama_cpp
        # Silence: it reports every tensor.
        self.log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = sequences * ((tokens + 255) // 256 * 256)
        parameters.n_batch = 2_048
        parameters.n_ubatch = 512
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        if is_f32:
            parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.batch = llama_cpp.llama_batch_init(parameters.n_batch, 0, 1)
        self.room = parameters.n_batch

    def clear(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def step(self, rows):
        """`rows`: (token, position, sequence, wanted); the best tokens of the wanted ones."""
        import numpy

        best = []
        for start in range(0, len(rows), self.room):
            part = rows[start : start + self.room]
            self.batch.n_tokens = len(part)
            for at, (token_id, position, sequence, wanted) in enumerate(part):
                self.batch.token[at] = token_id
                self.batch.pos[at] = position
                self.batch.n_seq_id[at] = 1
                self.batch.seq_id[at][0] = sequence
                self.batch.logits[at] = wanted
            if self.lib.llama_decode(self.context, self.batch) != 0:
                raise SystemExit("llama_decode failed")
            for at, (*_, wanted) in enumerate(part):
                if wanted:
                    logits = self.lib.llama_get_logits_ith(self.context, at)
                    best.append(int(numpy.ctypeslib.as_array(logits, (SIZES["vocab_size"],)).argmax()))
        return best

    def run(self, requests, prompt, answer, turn):
        """The requests together: seconds until all have their first token, seconds in all, and the answers."""
        self.clear()
        started = time.perf_counter()
        rows = [
            (token(request, position, turn), position, index, position + 1 == prompt)
            for index, request in enumerate(requests)
            for position in range(prompt)
        ]
        best = self.step(rows)
        prefill = time.perf_counter() - started
        answers = [[each] for each in best]
        for position in range(prompt, prompt + answer - 1):
            best = self.step([(best[index], position, index, True) for index in range(len(requests))])
            for each, token_id in zip(answers, best, strict=True):
                each.append(token_id)
        return prefill, time.perf_counter() - started, answers


def peer(arguments):
    """One turn of llama.cpp in a process of its own; prints what `generate_bench` prints."""
    tokens = arguments.prompt + arguments.answer
    together = arguments.requests if arguments.together else 1
    engine = LlamaCpp(arguments.peer, arguments.threads, together, tokens, "F32" in arguments.peer.name)
    engine.run(range(together), arguments.prompt, 2, 99)
    prefill = total = 0.0
    for first in range(0, arguments.requests, together):
        requests = range(first, first + together)
        some, all_of_it, answers = engine.run(requests, arguments.prompt, arguments.answer, arguments.turn)
        prefill, total = prefill + some, total + all_of_it
        if first == 0:
            checked = answers[0][:CHECKED_TOKENS]
    print(json.dumps({
        "prefill_tokens_per_second": arguments.requests * arguments.prompt / prefill,
        "decode_tokens_per_second": arguments.requests * (arguments.answer - 1) / (total - prefill),
        "total_tokens_per_second": arguments.requests * arguments.answer / total,
        "first_tokens": checked,
    }))


def last_line(command):
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def turn_of(arguments, folder, precision, turn):
    """Every figure of one turn."""
    kind = PRECISIONS[precision]
    gguf_file = folder.parent / f"{folder.name}-{kind}.gguf"
    shapes = {"alone": (1, ALONE_PROMPT, ALONE_ANSWER), "many": (MANY, MANY_PROMPT, MANY_ANSWER)}
    figures = {}
    for name, (requests, prompt, answer) in shapes.items():
        sizes = ["--threads", arguments.threads, "--prompt", prompt, "--answer", answer, "--requests", requests, "--turn", turn]
        ours = [arguments.binary, "--model", folder, "--precision", precision, "--rounds", 1, *sizes]
        theirs = [sys.executable, __file__, "--peer", gguf_file, *sizes]
        figures[name] = {"ours": last_line(ours), "sequential": last_line(theirs)}
        if requests > 1:
            figures[name]["together"] = last_line([*theirs, "--together"])
    alone = figures["alone"]
    if precision == "f32" and alone["ours"]["first_tokens"] != alone["sequential"]["first_tokens"]:
        raise SystemExit(f"the answers differ: {alone}")
    return figures


def report(precision, turns):
    def row(name, shape, field, peer_name):
        ours = [turn[shape]["ours"][field] for turn in turns]
        theirs = [turn[shape][peer_name][field] for turn in turns]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"| {precision} / {PRECISIONS[precision]} | {name} | {max(ours):,.0f} | {max(theirs):,.0f} | {ratio:.2f} |", flush=True)

    row(f"prefill of {ALONE_PROMPT}, 1 request", "alone", "prefill_tokens_per_second", "sequential")
    row("decode, 1 request", "alone", "decode_tokens_per_second", "sequential")
    row(f"{MANY} requests, llama.cpp one by one", "many", "total_tokens_per_second", "sequential")
    row(f"{MANY} requests, llama.cpp together", "many", "total_tokens_per_second", "together")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/examples/generate_bench")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / ".portalis/bench/random-llama-100m")
    parser.add_argument("--only", default=",".join(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peer", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--together", action="store_true", help=argparse.SUPPRESS)
    for name in ("prompt", "answer", "requests", "turn"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments)
        return
    folder = arguments.folder
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_model(folder)
    chosen = arguments.only.split(",")
    for precision in chosen:
        file = folder.parent / f"{folder.name}-{PRECISIONS[precision]}.gguf"
        if not file.exists():
            make_gguf(folder, file.with_suffix(".part"), PRECISIONS[precision])
            file.with_suffix(".part").rename(file)
    print("| precision | what | ours, tokens/s | llama.cpp, tokens/s | ratio |")
    print("|---|---|---|---|---|", flush=True)
    for precision in chosen:
        report(precision, [turn_of(arguments, folder, precision, turn) for turn in range(arguments.turns)])


if __name__ == "__main__":
    main()
