"""Makes shared/engine/tests/fixtures/encoders/: tiny random encoders of every served family with what sentence-transformers computes.

Input: none; the weights come from a fixed seed, the tokenizers are trained on the texts below. Output, for each encoder, a folder with
config.json, model.safetensors, tokenizer.json and the card's files, and expected.json: texts or pairs with their token ids and vector or logit.
Logits are those of CrossEncoder without an activation; vectors are those of SentenceTransformer, prompts and pooling included.
Nomic's weights and configuration are written with the names of the published checkpoints (modeling_hf_nomic_bert.py of nomic-ai/contrastors);
the numbers come from the nomic_bert of the transformers library, which reads the same checkpoints.
Run: python scripts/engine/make_encoder_fixtures.py
     (in an environment made from scripts/engine/requirements-bench.txt: torch 2.15.0, transformers 5.23.0, sentence-transformers 6.2.0)
"""

import base64
import json
import pathlib
import shutil
import tempfile

import numpy
import sentence_transformers
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parents[2] / "shared/engine/tests/fixtures/encoders"
VOCAB = 180
# Short, so that a few sentences are too long.
MAX_TOKENS = 40

TEXTS = [
    "A worker pulls only what can start soon.",
    "How often is a request paid?",
    "Every request is answered once and paid once; a second computation is waste that nobody pays for.",
    "The queue keeps the rest, where another worker can take it.",
    "Größenwahn, naïve café and 数据",
    "a",
    "Water boils at 100 degrees Celsius at sea level, and a little earlier on a mountain where the air is thin and cold.",
    "Which mountain is high?",
]
PAIRS = [
    ("How often is a request paid?", TEXTS[2]),
    ("How often is a request paid?", TEXTS[0]),
    ("a", "a"),
    ("Which mountain is high?", TEXTS[6]),
    (TEXTS[6], "a worker"),
    (TEXTS[6], TEXTS[2]),
    ("naïve 数据", TEXTS[4]),
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def wordpiece():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return tokenizer, names


def byte_level():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer, roberta_names()


def unigram():
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer, roberta_names()


def roberta_names():
    return {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }


def fill(model, generator):
    """Weights large enough that attention is far from uniform and logits differ by tenths."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                weight.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.2 * noise)
            elif "embeddings" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)


def pack(values):
    return base64.b64encode(numpy.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def write_tokenizer(folder, tokenizer, names, typed):
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if typed else ["input_ids", "attention_mask"]
    config = names | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS, "model_input_names": inputs}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def write(folder, head, lines):
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "max_tokens": MAX_TOKENS,
    }
    text = ",\n".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines)
    (folder / "expected.json").write_text(json.dumps(versions | head)[:-1] + ', "cases": [\n' + text + "\n]}\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder.name}: {size} bytes")


def build(name, kind, architecture, tokenizer, fields):
    generator = torch.Generator().manual_seed(sum(name.encode()))
    vocab = tokenizer.get_vocab_size()
    config = getattr(transformers, f"{kind}Config")(**(SIZES | {"vocab_size": vocab} | fields))
    model = getattr(transformers, f"{kind}{architecture}")(config).to(torch.float32).eval()
    fill(model, generator)
    folder = OUT / name
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        for file in ("config.json", "model.safetensors"):
            shutil.copy(pathlib.Path(scratch) / file, folder / file)
    return folder


def ranker(name, kind, tokenizer, names, fields):
    typed = kind == "Bert"
    folder = build(name, kind, "ForSequenceClassification", tokenizer, fields | {"num_labels": 1})
    write_tokenizer(folder, tokenizer, names, typed)
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu", max_length=MAX_TOKENS)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    lines = []
    for query, passage in PAIRS:
        encoded = fast(query, passage, truncation="longest_first", max_length=MAX_TOKENS)
        whole = fast(query, passage)["input_ids"]
        logit = model.predict([(query, passage)], activation_fn=torch.nn.Identity(), show_progress_bar=False)
        ids = encoded["input_ids"]
        lines.append({"query": query, "passage": passage, "ids": ids, "whole_tokens": len(whole), "logit": float(logit[0])})
    logits = [line["logit"] for line in lines]
    assert max(logits) - min(logits) > 0.2, logits
    assert any(line["whole_tokens"] > MAX_TOKENS for line in lines)
    write(folder, {"tokens_differ_by_type": typed}, lines)


def embedder(name, kind, tokenizer, names, fields, card):
    folder = build(name, kind, "Model", tokenizer, fields)
    write_tokenizer(folder, tokenizer, names, kind in ("Bert", "NomicBert"))
    dump = lambda file, value: (folder / file).write_text(json.dumps(value, indent=1) + "\n")
    kinds = ["Transformer", "Pooling"] + (["Normalize"] if card["normalize"] else [])
    paths = ["", "1_Pooling", "2_Normalize"]
    module = lambda index, kind: {
        "idx": index,
        "name": str(index),
        "path": paths[index],
        "type": f"sentence_transformers.models.{kind}",
    }
    dump("modules.json", [module(index, kind) for index, kind in enumerate(kinds)])
    dump("sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    cls = card["pooling"] == "cls"
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    dump("1_Pooling/config.json", pooling)
    if card["normalize"]:
        (folder / "2_Normalize").mkdir()
    if card.get("prompts"):
        dump("config_sentence_transformers.json", {"prompts": card["prompts"], "default_prompt_name": None})
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == MAX_TOKENS
    sides = {"query": "query", "passage": "document"} if card.get("prompts") else {None: None}
    lines = []
    for text in TEXTS:
        for side, prompt in sides.items():
            prefix = card["prompts"][prompt] if prompt else ""
            ids = model.tokenize([prefix + text])["input_ids"][0].tolist()
            vector = model.encode([text], prompt_name=prompt, convert_to_numpy=True, show_progress_bar=False)[0]
            lines.append({"text": text, "side": side, "ids": ids, "vector": pack(vector)})
    if card["normalize"]:
        (folder / "2_Normalize").rmdir()
    if kind == "NomicBert":
        publish_nomic(folder)
    write(folder, {"pooling": card["pooling"], "normalized": card["normalize"]}, lines)


def publish_nomic(folder):
    """The names of the published configuration in place of the library's."""
    config = json.loads((folder / "config.json").read_text())
    published = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "activation_function": "swiglu",
        "causal": False,
        "layer_norm_epsilon": config["layer_norm_eps"],
        "max_trained_positions": 64,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_positions": config["max_position_embeddings"],
        "pad_vocab_size_multiple": 1,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": config["rope_parameters"]["rope_theta"],
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "type_vocab_size": config["type_vocab_size"],
        "use_rms_norm": False,
        "vocab_size": config["vocab_size"],
    }
    (folder / "config.json").write_text(json.dumps(published, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    bert, roberta = {"max_position_embeddings": 64}, {"max_position_embeddings": 66, "pad_token_id": 1}
    ranker("rank_bert", "Bert", *wordpiece(), bert)
    ranker("rank_roberta", "Roberta", *byte_level(), roberta | {"type_vocab_size": 1})
    ranker("rank_xlm_roberta", "XLMRoberta", *unigram(), roberta | {"type_vocab_size": 1})
    nomic = {"max_position_embeddings": 64, "intermediate_size": 256, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    search = {"query": "search_query: ", "document": "search_document: "}
    e5 = {"query": "query: ", "document": "passage: "}
    embedder("embed_nomic", "NomicBert", *wordpiece(), nomic, {"pooling": "mean", "normalize": True, "prompts": search})
    embedder("embed_bge", "Bert", *wordpiece(), bert, {"pooling": "cls", "normalize": True})
    embedder("embed_e5", "XLMRoberta", *unigram(), roberta | {"type_vocab_size": 1}, {"pooling": "mean", "normalize": False, "prompts": e5})


if __name__ == "__main__":
    main()
