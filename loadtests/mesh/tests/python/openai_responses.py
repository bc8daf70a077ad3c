#!/usr/bin/env python3
"""The stock OpenAI client asks for responses. Input: base URL, model, a model that writes nothing, a key. Output: a last line that
says that all is well, or an assertion that says what is not.
"""

import sys

import openai

base_url, model, ranker, key = sys.argv[1:]
mesh = openai.OpenAI(base_url=base_url, api_key=key)

PYTHON = "def add(a: int, b: int) -> int:\n    return a + b"
RUST = "pub fn add(a: i64, b: i64) -> i64 {\n    a + b\n}"


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


whole = mesh.responses.create(model=model, input=PYTHON, temperature=0, metadata={"case": "1"})
assert whole.object == "response" and whole.id.startswith("resp_") and whole.model == model, whole
assert whole.status == "completed" and whole.error is None and whole.incomplete_details is None, whole
assert whole.output_text.strip() == RUST, whole.output_text
assert whole.output[0].type == "message" and whole.output[0].role == "assistant", whole.output
assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens > 0, whole.usage
assert whole.metadata == {"case": "1"} and whole.temperature == 0 and whole.store is False, whole

chat = mesh.chat.completions.create(model=model, messages=[{"role": "user", "content": PYTHON}], temperature=0)
assert chat.choices[0].message.content == whole.output_text, "the same conversation, the same answer"
assert chat.usage.prompt_tokens == whole.usage.input_tokens, (chat.usage, whole.usage)

said = [{"role": "user", "content": [{"type": "input_text", "text": PYTHON}]}]
kinds, text, last = [], "", None
for number, event in enumerate(mesh.responses.create(model=model, input=said, temperature=0, stream=True)):
    assert event.sequence_number == number, event
    kinds.append(event.type)
    if event.type == "response.output_text.delta":
        text += event.delta
    last = event
assert text == whole.output_text, text
assert [kind for kind in dict.fromkeys(kinds)] == [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
], kinds
assert kinds.count("response.output_text.delta") > 3, "it came in one piece"
assert last.response.output_text == text and last.response.usage.output_tokens == whole.usage.output_tokens, last

# The client's own way to put a stream together is as content with the events.
with mesh.responses.stream(model=model, input=PYTHON, temperature=0) as stream:
    final = stream.get_final_response()
assert final.output_text == text and final.status == "completed", final

# An answer is part of the next question as it came.
talk = [{"role": "user", "content": PYTHON}, *[item.model_dump(exclude_none=True) for item in whole.output], {"role": "user", "content": PYTHON}]
assert mesh.responses.create(model=model, input=talk, temperature=0, max_output_tokens=4).usage.input_tokens > whole.usage.input_tokens

cut = mesh.responses.create(model=model, input=PYTHON, temperature=0, max_output_tokens=4)
assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens", cut
assert cut.usage.output_tokens == 4 and whole.output_text.startswith(cut.output_text), cut

create = mesh.responses.create
refused(openai.BadRequestError, 400, "temperature", lambda: create(model=model, input="a", temperature=9))
refused(openai.BadRequestError, 400, "input", lambda: create(model=model, input=""))
refused(openai.BadRequestError, 400, "input", lambda: create(model=model, input="x = 1\n" * 2000))
refused(openai.BadRequestError, 400, "previous_response_id", lambda: create(model=model, input="a", previous_response_id="resp_1"))
refused(openai.BadRequestError, 400, "model", lambda: create(model=ranker, input="a"))
refused(openai.NotFoundError, 404, "model", lambda: create(model="no-such-model", input="a"))
print("the OpenAI client is content with the responses")
