#!/usr/bin/env python3
"""The stock OpenAI client writes text. Input: base URL, model, an embedding model, a key. Output: a last line that says that
all is well, or an assertion that says what is not.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import openai

base_url, model, embedder, key = sys.argv[1:]
mesh = openai.OpenAI(base_url=base_url, api_key=key)

PYTHON = "def add(a: int, b: int) -> int:\n    return a + b"
RUST = "pub fn add(a: i64, b: i64) -> i64 {\n    a + b\n}"
messages = [{"role": "user", "content": PYTHON}]


def refused(expected, status, param, call):
    """Runs a call that must fail with this exception of the client."""
    try:
        call()
    except expected as error:
        assert error.status_code == status, error
        assert error.param == param, (error.param, error)
        assert error.request_id, "no request id"
        return
    raise AssertionError(f"{expected.__name__} expected")


whole = mesh.chat.completions.create(model=model, messages=messages, temperature=0)
assert whole.object == "chat.completion" and whole.model == model and whole.id.startswith("chatcmpl-"), whole
assert whole.choices[0].message.role == "assistant"
assert whole.choices[0].message.content.strip() == RUST, whole.choices[0].message.content
assert whole.choices[0].finish_reason == "stop"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def streamed():
    text, roles, usage, finishes = "", [], None, []
    stream = mesh.chat.completions.create(
        model=model, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk", chunk
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            finishes += [choice.finish_reason] if choice.finish_reason else []
    return text, roles, usage.completion_tokens, finishes


expected = (whole.choices[0].message.content, ["assistant"], whole.usage.completion_tokens, ["stop"])
with ThreadPoolExecutor(16) as pool:
    for got in pool.map(lambda _: streamed(), range(32)):
        assert got == expected, got

likely = mesh.chat.completions.create(model=model, messages=messages, temperature=0, logprobs=True, top_logprobs=3, max_tokens=4)
tokens = likely.choices[0].logprobs.content
assert len(tokens) == 4 and all(len(token.top_logprobs) == 3 for token in tokens), tokens
assert all(token.top_logprobs[0].token == token.token and token.logprob <= 0 for token in tokens), tokens
assert likely.choices[0].finish_reason == "length"

# Where the model is not sure of itself, choices differ; the same seed says the same again.
unsure = dict(model=model, prompt="The weather", n=4, seed=7, temperature=2, max_tokens=16)
several = mesh.completions.create(**unsure)
assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
repeated = mesh.completions.create(**unsure, extra_headers={"cache-control": "no-cache"})
texts = lambda answer: [choice.text for choice in answer.choices]
assert texts(several) == texts(repeated), "the same seed, the same answers"
assert len(set(texts(several))) > 1, "choices of one request differ"

stopped = mesh.chat.completions.create(model=model, messages=messages, temperature=0, stop=["-> i64"])
assert stopped.choices[0].message.content == "pub fn add(a: i64, b: i64) ", stopped
assert stopped.choices[0].finish_reason == "stop"

completion = mesh.completions.create(model=model, prompt="pub fn add(a: i64", temperature=0, max_tokens=8)
assert completion.object == "text_completion" and completion.choices[0].finish_reason == "length", completion
pieces = mesh.completions.create(model=model, prompt="pub fn add(a: i64", temperature=0, max_tokens=8, stream=True)
assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == completion.choices[0].text

create = mesh.chat.completions.create
refused(openai.BadRequestError, 400, "temperature", lambda: create(model=model, messages=messages, temperature=9))
refused(openai.BadRequestError, 400, "messages", lambda: create(model=model, messages=[]))
refused(openai.BadRequestError, 400, "model", lambda: create(model=embedder, messages=messages))
refused(openai.NotFoundError, 404, "model", lambda: create(model="no-such-model", messages=messages))
print("the OpenAI client is content with the text")
