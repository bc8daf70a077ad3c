"""Makes shared/engine/tests/fixtures/minilm_64.json: 64 texts with the token ids and vectors of sentence-transformers.

Input: a model directory. Output: the fixture, one text per line, vectors as base64 of little-endian f32.
Run: python scripts/engine/make_fixture.py --model .portalis/models/all-minilm-l6-v2
     (in an environment made from scripts/engine/requirements-bench.txt)
"""

import argparse
import base64
import json
import pathlib

import numpy
import sentence_transformers
import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parents[2] / "shared/engine/tests/fixtures/minilm_64.json"

PLAIN = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey.",
    "How do I reset my password?",
    "Where can I change the credentials of my account?",
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France.",
    "Water boils at 100 degrees Celsius at sea level.",
    "Quarterly revenue rose by 12.5% to $4.2 billion.",
    "She sells sea shells by the sea shore.",
    "To be, or not to be, that is the question.",
    "The mitochondrion is the powerhouse of the cell.",
    "Please send the invoice to accounts@example.com before 2026-11-30.",
    "Message queues decouple producers from consumers.",
    "I can't believe it's not butter!",
]
SHORT = [" ", "\n\t", ".", "a", "I", "?!", "...", "ok", "42", "_", "e=mc^2", "[CLS]"]
UNICODE = [
    "Größenwahn und Übermut tun selten gut.",
    "Le cœur a ses raisons que la raison ne connaît point.",
    "¿Dónde está la biblioteca más cercana?",
    "Zażółć gęślą jaźń.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "השועל החום המהיר קופץ מעל הכלב העצלן",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "我喜欢在周末去公园散步。",
    "東京は日本の首都です。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "机器学习 and deep learning 混合 text",
    "I ❤️ Rust 🦀 and coffee ☕️!",
    "👩‍👩‍👧‍👦 family 👍🏽 flags 🇫🇷🇯🇵",
    "zero\u200bwidth\u00a0space and \ufeffmark",
    "cafe\u0301 versus caf\u00e9",
    "ﬁne ligatures, ½ fractions, ① circled, Ⅷ roman",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝓼𝓬𝓻𝓲𝓹𝓽 ＦＵＬＬＷＩＤＴＨ",
    "control\u0007bell\u0000null and replacement \ufffd",
    "ĲSSELMEER İstanbul straße ŉ",
]
CODE = [
    "fn main() { println!(\"hello, {}\", name); }",
    "SELECT id, COUNT(*) FROM orders WHERE status <> 'void' GROUP BY id HAVING COUNT(*) > 3;",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    "{\"model\": \"all-minilm-l6-v2\", \"input\": [\"a\", \"b\"], \"dimensions\": null}",
    "https://example.com/path/to?query=1&other=%20value#fragment",
    "kubectl get pods -n portalis -o jsonpath='{.items[*].metadata.name}'",
]
WORDS = (
    "an engine that embeds packed batches of sentences reads each weight once and shares the work between the threads "
    "of a small team while other requests wait for their turn in a bounded queue whose limits are known in advance"
).split()


def repeated(count):
    return " ".join(WORDS[index % len(WORDS)] for index in range(count))


LONG = [
    repeated(60),
    repeated(120),
    repeated(254),
    repeated(255),
    repeated(300),
    "Antidisestablishmentarianism " * 90,
    "数据 " * 400,
    "x" * 300,
]


def pack(values):
    return base64.b64encode(numpy.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    texts = PLAIN + SHORT + UNICODE + CODE + LONG
    assert len(texts) == 64, len(texts)
    model = sentence_transformers.SentenceTransformer(arguments.model, device="cpu")
    torch.set_num_threads(1)
    lines = []
    for text in texts:
        # One text at a time: no padding, so nothing but the text decides the result.
        ids = model.tokenize([text])["input_ids"][0].tolist()
        vector = model.encode([text], convert_to_numpy=True, show_progress_bar=False)[0]
        lines.append({"text": text, "ids": ids, "vector": pack(vector)})
    head = {
        "model": "all-MiniLM-L6-v2",
        "made_by": "scripts/engine/make_fixture.py",
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "max_tokens": model.max_seq_length,
        "dims": len(vector),
    }
    with OUT.open("w", encoding="utf-8") as out:
        out.write(json.dumps(head)[:-1] + ', "texts": [\n')
        out.write(",\n".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines))
        out.write("\n]}\n")
    print(f"{OUT.name}: {len(lines)} texts, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
