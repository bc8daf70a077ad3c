#!/usr/bin/env python3
"""The stock OpenAI client writes text. Input: base URL, model, an embedding model, a model that knows functions, a key.
Output: a last line that says that all is well, or an assertion that says what is not.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import openai
from pydantic import BaseModel, Field

base_url, model, embedder, caller, key = sys.argv[1:]
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

# Prompts as texts or as tokens, each with its own choices, in order.
prompts = ["pub fn add(a: i64", "pub fn"]
asked = dict(model=model, temperature=0, max_tokens=5, echo=True, logprobs=2)
together = mesh.completions.create(**asked, prompt=prompts, n=2)
assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
for place, prompt in enumerate(prompts):
    alone = mesh.completions.create(**asked, prompt=prompt)
    for choice in together.choices[2 * place : 2 * place + 2]:
        assert choice.text == alone.choices[0].text and choice.text.startswith(prompt), choice
    lists = alone.choices[0].logprobs
    assert len(lists.tokens) == alone.usage.total_tokens == len(lists.token_logprobs) == len(lists.text_offset), lists
    assert "".join(lists.tokens) == alone.choices[0].text, lists
    assert lists.token_logprobs[0] is None and lists.top_logprobs[0] is None, lists
    assert all(logprob <= 0 for logprob in lists.token_logprobs[1:]) and len(lists.top_logprobs[1]) == 2, lists
    pieces = list(mesh.completions.create(**asked, prompt=prompt, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == alone.choices[0].text
    streamed_tokens = [token for piece in pieces if piece.choices[0].logprobs for token in piece.choices[0].logprobs.tokens]
    assert streamed_tokens == lists.tokens, streamed_tokens
assert together.usage.completion_tokens == 20
by_tokens = mesh.completions.create(model=model, prompt=[[70, 71], [72]], max_tokens=2, temperature=0)
assert len(by_tokens.choices) == 2 and by_tokens.usage.prompt_tokens == 3, by_tokens
best = mesh.completions.create(**unsure | {"n": 1}, best_of=4, logprobs=0)
mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
candidates = mesh.completions.create(**unsure, logprobs=0)
assert best.choices[0].text == max(candidates.choices, key=mean).text and len(best.choices) == 1, best
assert best.usage.completion_tokens == candidates.usage.completion_tokens

completion = mesh.completions.create(model=model, prompt="pub fn add(a: i64", temperature=0, max_tokens=8)
assert completion.object == "text_completion" and completion.choices[0].finish_reason == "length", completion
pieces = mesh.completions.create(model=model, prompt="pub fn add(a: i64", temperature=0, max_tokens=8, stream=True)
assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == completion.choices[0].text

create = mesh.chat.completions.create


# Structured output: the model knows nothing of it, so every form is the grammar's work.
class Strict(BaseModel, extra="forbid"):
    """Without fields of the model's own, whose texts need not end."""


class Point(Strict):
    x: int = Field(ge=-99, le=99)
    label: Literal["near", "far"]


class Report(Strict):
    verdict: Literal["yes", "no"]
    points: list[Point] = Field(max_length=2)
    note: str | None = Field(max_length=12)


for temperature, seed in [(0, 1), (1.5, 2), (2, 3)]:
    wild = dict(model=model, messages=messages, temperature=temperature, seed=seed)
    report = mesh.chat.completions.parse(**wild, response_format=Report).choices[0]
    assert isinstance(report.message.parsed, Report) and report.finish_reason == "stop", report
    schema = {"type": "json_schema", "json_schema": {"name": "report", "schema": Report.model_json_schema()}}
    pieces = create(**wild, response_format=schema, stream=True)
    Report.model_validate_json("".join(piece.choices[0].delta.content or "" for piece in pieces))
    for guided, conforms in [
        ({"guided_regex": r"v[0-9]{1,3}\.[0-9]"}, lambda text: re.fullmatch(r"v[0-9]{1,3}\.[0-9]", text)),
        ({"guided_choice": ["red", "redder", "\u00e4rger"]}, lambda text: text in ["red", "redder", "\u00e4rger"]),
        ({"guided_json": Report.model_json_schema()}, Report.model_validate_json),
        ({"guided_grammar": 'start: "a"+ "." | "b"'}, lambda text: re.fullmatch(r"a+\.|b", text)),
        ({"nvext": {"guided_choice": ["x"]}}, lambda text: text == "x"),
    ]:
        answer = create(**wild, max_tokens=300, extra_body=guided).choices[0]
        assert answer.finish_reason == "stop" and conforms(answer.message.content), (guided, answer)
# The shortest object is the end of a greedy one soon or never; a limit cuts it.
thing = create(model=model, messages=messages, temperature=0, max_tokens=30, response_format={"type": "json_object"}).choices[0]
assert thing.message.content.startswith("{"), thing
assert thing.finish_reason == "length" or isinstance(json.loads(thing.message.content), dict), thing
written = mesh.completions.create(model=model, prompt="x = ", max_tokens=4, extra_body={"guided_regex": "[0-9]{3}"})
assert re.fullmatch("[0-9]{3}", written.choices[0].text), written
for field, wrong in [("guided_regex", "("), ("guided_json", {"type": "nonsense"}), ("guided_grammar", "start: nothing")]:
    refused(openai.BadRequestError, 400, field, lambda: create(model=model, messages=messages, extra_body={field: wrong}))
broken = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#/$defs/none"}}}
refused(openai.BadRequestError, 400, "response_format", lambda: create(model=model, messages=messages, response_format=broken))


# Functions: forced ones are always called in a way that can be read, and their arguments conform.
class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=14)


class Stop(BaseModel):
    """Ends it."""

    why: Literal["done", "bored"]


tools = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Stop)]
kinds = {"Weather": Weather, "Stop": Stop}
named = {"type": "function", "function": {"name": "Stop"}}
for choice, parallel, seed in [("required", True, 5), ("required", False, 6), (named, True, 7)]:
    calling = dict(model=caller, messages=messages, tools=tools, tool_choice=choice, parallel_tool_calls=parallel)
    calling |= dict(temperature=1.2, seed=seed, max_tokens=700)
    answer = create(**calling).choices[0]
    calls = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and answer.message.content is None and calls, answer
    for call in calls:
        assert call.type == "function" and call.id, call
        kinds[call.function.name].model_validate_json(call.function.arguments)
    assert len({call.id for call in calls}) == len(calls)
    if not parallel or choice == named:
        assert len(calls) == 1, calls
    if choice == named:
        assert calls[0].function.name == "Stop"
    with mesh.chat.completions.stream(**calling) as stream:
        finished = stream.get_final_completion().choices[0]
    assert finished.finish_reason == "tool_calls", finished
    same = lambda calls: [(call.function.name, call.function.arguments) for call in calls]
    assert same(finished.message.tool_calls) == same(calls), (finished, calls)
    assert all(isinstance(call.function.parsed_arguments, tuple(kinds.values())) for call in finished.message.tool_calls)
    # The next turn takes the calls and their answers back.
    turn = messages + [answer.message] + [{"role": "tool", "tool_call_id": call.id, "content": "12"} for call in calls]
    after = create(model=caller, messages=turn, tools=tools, temperature=0, max_tokens=8)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls"), after
assert create(model=caller, messages=messages, tools=tools, tool_choice="none", max_tokens=5).choices[0].message.tool_calls is None
refused(openai.BadRequestError, 400, "tools", lambda: create(model=model, messages=messages, tools=tools))

refused(openai.BadRequestError, 400, "temperature", lambda: create(model=model, messages=messages, temperature=9))
refused(openai.BadRequestError, 400, "messages", lambda: create(model=model, messages=[]))
refused(openai.BadRequestError, 400, "model", lambda: create(model=embedder, messages=messages))
refused(openai.NotFoundError, 404, "model", lambda: create(model="no-such-model", messages=messages))
print("the OpenAI client is content with the text")
