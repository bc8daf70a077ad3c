#!/usr/bin/env python3
"""The stock OpenAI client against the mesh. Input: base URL, model, three keys: one for all, one limited to a request a
minute, one for another model. Output: a last line that says that all is well, or an assertion that says what is not.
"""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

base_url, model, key, limited_key, narrow_key = sys.argv[1:]


def client(api_key, **options):
    return openai.OpenAI(base_url=base_url, api_key=api_key, **options)


def refused(expected, status, code, call):
    """Runs a call that must fail with this exception of the client."""
    try:
        call()
    except expected as error:
        assert error.status_code == status, error
        assert error.code == code, (error.code, error)
        assert error.request_id, "no request id"
        assert isinstance(error.body, dict) and {"message", "type", "param", "code"} <= error.body.keys(), error.body
        return error
    raise AssertionError(f"{expected.__name__} expected")


mesh = client(key)
texts = [f"text number {number}, of a hundred" for number in range(100)]

# The client asks for base64 by itself and decodes it.
together = mesh.embeddings.create(model=model, input=texts)
assert together.model == model and together.object == "list", together
assert [item.index for item in together.data] == list(range(100))
vectors = [item.embedding for item in together.data]
for vector in vectors:
    assert len(vector) == 384
    assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-4)
assert together.usage.prompt_tokens == together.usage.total_tokens > 100


def single(text):
    return mesh.embeddings.create(model=model, input=text)


with ThreadPoolExecutor(100) as pool:
    apart = list(pool.map(single, texts))
for one, vector in zip(apart, vectors):
    cosine = sum(a * b for a, b in zip(one.data[0].embedding, vector))
    assert cosine >= 0.9999, cosine
assert sum(one.usage.prompt_tokens for one in apart) == together.usage.prompt_tokens

floats = mesh.embeddings.create(model=model, input=texts[0], encoding_format="float")
# The same 32-bit numbers: once as bytes, once as their shortest decimals.
for number, decimal in zip(apart[0].data[0].embedding, floats.data[0].embedding):
    assert math.isclose(number, decimal, rel_tol=1e-6), (number, decimal)
raw = mesh.embeddings.with_raw_response.create(model=model, input=texts[0])
assert raw.headers["x-portalis-cache"] == "hit" and raw.headers["x-request-id"], dict(raw.headers)
assert [entry.id for entry in mesh.models.list()] == [model]
assert mesh.models.retrieve(model).id == model

refused(openai.BadRequestError, 400, "invalid_field", lambda: mesh.embeddings.create(model=model, input=""))
refused(openai.BadRequestError, 400, "invalid_field", lambda: mesh.embeddings.create(model=model, input="a", dimensions=7))
too_long = refused(openai.BadRequestError, 400, "input_too_long", lambda: single("word " * 1000))
assert "exceeds maximum allowed" in too_long.message
refused(
    openai.UnprocessableEntityError,
    422,
    "extra_forbidden",
    lambda: mesh.embeddings.create(model=model, input="a", extra_body={"nonsense": 1}),
)
refused(openai.NotFoundError, 404, "model_not_found", lambda: mesh.embeddings.create(model="none", input="a"))
refused(openai.AuthenticationError, 401, "invalid_key", lambda: client("garbage").embeddings.create(model=model, input="a"))
refused(openai.PermissionDeniedError, 403, "forbidden", lambda: client(narrow_key).embeddings.create(model=model, input="a"))
impatient = client(limited_key, max_retries=0)
impatient.embeddings.create(model=model, input="a")
limit = refused(openai.RateLimitError, 429, "rate_limited", lambda: impatient.embeddings.create(model=model, input="a"))
assert int(limit.response.headers["retry-after"]) >= 1
late = mesh.with_options(max_retries=0)
for headers, expected in [({"x-portalis-timeout-ms": "0"}, openai.BadRequestError)]:
    refused(expected, 400, "invalid_field", lambda: late.embeddings.create(model=model, input="b", extra_headers=headers))
print("all is as it should be")
