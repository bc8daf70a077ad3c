"""Compares the engine with onnxruntime and sentence-transformers on one machine in one run.

Input: a model directory and the release build of the example `embed_bench`. Output: a table of sentences per second with
ratios, as Markdown on standard output, and all rounds as JSON with --json.
Every figure includes tokenization. Engines take turns (one round each, then the next round), and the median counts, so
that whatever else the machine does hits all of them alike.

Run: python scripts/engine/bench_minilm.py --model .portalis/models/all-minilm-l6-v2
     (in an environment made from scripts/engine/requirements-bench.txt, after
      cargo build --release -p engine --example embed_bench)
"""

import argparse
import base64
import contextlib
import json
import logging
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "shared/engine/tests/fixtures/minilm_64.json"
# Words that are one token each, so that lengths are exact.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
).split()
SPECIAL_TOKENS = 2


def text(rng, tokens):
    return " ".join(rng.choice(WORDS) for _ in range(tokens - SPECIAL_TOKENS))


def shapes(rng):
    """Name -> batches of texts. `mixed` has the long tail of real requests: median near 40 tokens, up to 256."""
    found = {}
    for tokens in (16, 128, 256):
        for batch in (1, 32):
            found[f"{tokens} tokens x {batch}"] = [[text(rng, tokens) for _ in range(batch)] for _ in range(4 if batch == 1 else 1)]
    lengths = [min(256, max(4, int(rng.lognormvariate(3.7, 0.9)))) for _ in range(128)]
    found["mixed x 32"] = [[text(rng, tokens) for tokens in lengths[at : at + 32]] for at in range(0, 128, 32)]
    return found


class Ours:
    """The engine, in a process that runs one round for each line it is sent."""

    def __init__(self, arguments, precision):
        self.arguments, self.precision = arguments, precision
        self.process = None

    def select(self, name, batches):
        self.close()
        path = pathlib.Path(self.arguments.work) / "batches.jsonl"
        path.write_text("".join(json.dumps(batch) + "\n" for batch in batches))
        command = [str(self.arguments.binary), "--model", self.arguments.model, "--batches", str(path), "--serve"]
        command += ["--precision", self.precision, "--threads", str(self.arguments.threads)]
        command += ["--seconds", str(self.arguments.seconds)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        json.loads(self.process.stdout.readline())

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["sentences_per_second"]

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait(timeout=60)
            self.process.stdout.close()
            self.process = None


class Peer:
    """An engine in this process: `embed(texts)` returns one vector per text."""

    def __init__(self, arguments, embed):
        self.arguments, self.embed = arguments, embed

    def select(self, name, batches):
        self.batches = batches
        self.embed(batches[0])

    def round(self):
        started, sentences = time.perf_counter(), 0
        while sentences == 0 or time.perf_counter() - started < self.arguments.seconds:
            for batch in self.batches:
                self.embed(batch)
                sentences += len(batch)
        return sentences / (time.perf_counter() - started)

    def close(self):
        pass


def export_onnx(arguments):
    """f32 and int8 models, with the fusions of onnxruntime's own optimizer (attention, GELU, normalization)."""
    import onnx
    import torch
    import transformers
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    model = transformers.AutoModel.from_pretrained(arguments.model, attn_implementation="eager").eval()

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            return out.last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    ones = torch.ones(2, 8, dtype=torch.int64)
    work = pathlib.Path(arguments.work)
    raw, fused, quantized = (str(work / name) for name in ("raw.onnx", "f32.onnx", "int8.onnx"))
    torch.onnx.export(
        Hidden(), (ones, ones, ones * 0), raw, input_names=names, output_names=["hidden"], opset_version=17,
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*names, "hidden"]}, dynamo=False,
    )
    config = model.config
    done = optimizer.optimize_model(
        raw, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    )
    done.save_model_to_file(fused)
    quantize_dynamic(fused, quantized, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    return fused, quantized


def onnx_embed(arguments, path):
    import numpy
    import onnxruntime
    import tokenizers

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(arguments.model) / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def embed(texts):
        encoded = tokenizer.encode_batch(texts)
        ids = numpy.array([one.ids for one in encoded], dtype=numpy.int64)
        mask = numpy.array([one.attention_mask for one in encoded], dtype=numpy.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
        hidden = session.run(None, inputs)[0]
        mean = (hidden * mask[..., None].astype(numpy.float32)).sum(1) / mask.sum(1, keepdims=True)
        return mean / numpy.linalg.norm(mean, axis=1, keepdims=True)

    return embed


def sentence_transformers_embed(arguments, dtype):
    import sentence_transformers
    import torch

    torch.set_num_threads(arguments.threads)
    model = sentence_transformers.SentenceTransformer(arguments.model, device="cpu", model_kwargs={"torch_dtype": dtype})

    def embed(texts):
        vectors = model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().numpy()

    return embed


def smallest_cosine(embed):
    """Over the committed fixture."""
    import numpy

    cases = json.loads(FIXTURE.read_text())["texts"]
    exact = numpy.stack([numpy.frombuffer(base64.b64decode(case["vector"]), dtype="<f4") for case in cases])
    found = numpy.concatenate([embed([case["text"]]) for case in cases])
    return float((exact * found).sum(1).min())


def engines(arguments):
    """Name -> engine, those that --only names; models are loaded only for them."""
    import torch

    wanted = lambda name: not arguments.only or any(part in name for part in arguments.only.split(","))
    fused, quantized = export_onnx(arguments) if wanted("onnxruntime f32") or wanted("onnxruntime int8") else ("", "")
    peers = {
        "onnxruntime f32": lambda: onnx_embed(arguments, fused),
        "onnxruntime int8": lambda: onnx_embed(arguments, quantized),
        "torch f32": lambda: sentence_transformers_embed(arguments, torch.float32),
        "torch bf16": lambda: sentence_transformers_embed(arguments, torch.bfloat16),
    }
    found = {f"ours {precision}": Ours(arguments, precision) for precision in ("f32", "bf16", "int8")}
    found = {name: engine for name, engine in found.items() if wanted(name)}
    found.update({name: Peer(arguments, make()) for name, make in peers.items() if wanted(name)})
    return found


def measure(arguments, found):
    rng = random.Random(7)
    results = {}
    for shape, batches in shapes(rng).items():
        if arguments.shapes and not any(part in shape for part in arguments.shapes.split(",")):
            continue
        for name, engine in found.items():
            engine.select(shape, batches)
        rounds = {name: [] for name in found}
        for _ in range(arguments.rounds):
            for name, engine in found.items():
                rounds[name].append(engine.round())
        for engine in found.values():
            engine.close()
        results[shape] = rounds
        figures = {name: f"{statistics.median(values):.0f}" for name, values in rounds.items()}
        print(shape, figures, file=sys.stderr, flush=True)
    return results


RATIOS = [
    ("ours f32", "onnxruntime f32"),
    ("ours f32", "torch f32"),
    ("ours bf16", "torch bf16"),
    ("ours int8", "onnxruntime int8"),
]


def table(results):
    names = list(next(iter(results.values())))
    ratios = [pair for pair in RATIOS if pair[0] in names and pair[1] in names]
    lines = ["| sentences/s | " + " | ".join(names) + " | " + " | ".join(f"{a} / {b}" for a, b in ratios) + " |"]
    lines.append("|---" * (1 + len(names) + len(ratios)) + "|")
    for shape, rounds in results.items():
        cells = [f"{statistics.median(rounds[name]):,.0f}" for name in names]
        # The ratio of each turn, then the median: noise that lasts a whole turn cancels.
        for a, b in ratios:
            turns = [x / y for x, y in zip(rounds[a], rounds[b])]
            cells.append(f"{statistics.median(turns):.2f}")
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / ".portalis/models/all-minilm-l6-v2"))
    parser.add_argument("--binary", default=str(ROOT / "target/release/examples/embed_bench"), type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="comma-separated parts of engine names")
    parser.add_argument("--shapes", default="", help="comma-separated parts of shape names")
    parser.add_argument("--json", type=pathlib.Path, help="where to write all rounds")
    arguments = parser.parse_args()
    if not arguments.binary.is_file():
        sys.exit(f"{arguments.binary.name} is missing: cargo build --release -p engine --example embed_bench")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        arguments.work = work
        found = engines(arguments)
        for engine in found.values():
            stack.callback(engine.close)
        results = measure(arguments, found)
        print(f"Threads {arguments.threads}, {arguments.rounds} turns of {arguments.seconds} s, median; tokenization included.\n")
        print(table(results))
        print("\nSmallest cosine to sentence-transformers f32 over the fixture:")
        for name, engine in found.items():
            if isinstance(engine, Peer):
                print(f"- {name}: {smallest_cosine(engine.embed):.5f}")
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
