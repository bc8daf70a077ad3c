#!/usr/bin/env python3
"""Embed texts over NATS, without HTTP: what an internal publisher does, in any language.

Input: an API key, a model and texts. Output: one JSON line per text with the vector's length, its first three
numbers and what the whole request took. Exit status 1 with one line on stderr when it fails.

Needs: pip install nats-py msgpack
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import struct
import sys
import time
import uuid
import zlib

import msgpack
import nats
import nats.errors
import nats.js.errors

PARTITIONS = 64
LANES = ["interactive", "batch", "background"]


class Failed(Exception):
    """Why there is no answer, in one sentence for a person."""


class Format:
    """How bodies are written: MessagePack, or JSON on request."""

    def __init__(self, use_json):
        self.json = use_json
        self.content_type = "application/json" if use_json else "application/msgpack"

    def encode(self, message):
        return json.dumps(message).encode() if self.json else msgpack.packb(message)

    def decode(self, data, headers=None):
        named = (headers or {}).get("Content-Type", self.content_type)
        return json.loads(data) if "json" in named else msgpack.unpackb(data)

    def request_id(self, identifier):
        return str(identifier) if self.json else identifier.bytes


def partition(text):
    """The partition of a key id; CRC-32 because every language has it."""
    return zlib.crc32(text.encode()) % PARTITIONS


def model_slug(name):
    """The subject token of a model: the name itself when it is one already, else made safe and marked."""
    if re.fullmatch(r"[a-z0-9_-]{1,48}", name):
        return name
    safe = "".join(c if re.fullmatch(r"[a-z0-9_]", c) else "-" for c in map(ascii_lower, name))
    return f"{safe[:39].strip('-')}-{zlib.crc32(name.encode()):08x}"


def ascii_lower(character):
    return character.lower() if character.isascii() else character


def uuid7():
    """A UUID version 7: milliseconds since 1970, then random bits."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def failure_text(failure):
    text = f"{failure['code']}: {failure['message']}"
    if failure.get("param"):
        text += f" ({failure['param']})"
    if failure.get("retry_after_ms") is not None:
        text += f"; try again in {failure['retry_after_ms']} ms"
    return text


def vector(value):
    """Bytes of little-endian 32-bit floats in MessagePack, numbers in JSON."""
    return list(struct.unpack(f"<{len(value) // 4}f", value)) if isinstance(value, bytes) else value


class Answer:
    """Puts the frames of one request together."""

    def __init__(self, count):
        self.vectors = [None] * count
        self.attempt = 0
        self.expected = 0
        self.worker = None

    def add(self, message):
        """Takes one frame; returns the usage when it was the last one, else None."""
        if message["attempt"] < self.attempt:
            return None  # An older delivery whose worker came back: somebody else answers now.
        if message["attempt"] > self.attempt:
            self.attempt, self.expected = message["attempt"], 0
            self.vectors = [None] * len(self.vectors)
        if message["sequence"] != self.expected:
            raise Failed(f"frame {self.expected} was lost; send the request again")
        self.expected += 1
        ((kind, body),) = message["frame"].items()
        if kind == "accepted":
            self.worker = body["worker"]
        elif kind == "part":
            self.place(body)
        elif kind == "done":
            self.place(body["embed"])
            if None in self.vectors:
                raise Failed(f"no vector came for text {self.vectors.index(None)}")
            return body["usage"]
        elif kind == "failed":
            raise Failed(failure_text(body))
        return None

    def place(self, part):
        for offset, value in enumerate(part["vectors"]):
            index = part["first"] + offset
            if index >= len(self.vectors):
                raise Failed(f"a vector came for text {index}, which was not sent")
            self.vectors[index] = vector(value)


async def resolve(bus, key, form, timeout):
    """Trades the key for a grant with a signed identity; only the key's hash crosses the bus."""
    parts = key.split("_")
    if len(parts) != 4:
        raise Failed("the key does not look like ptl_live_<id>_<secret>")
    body = {"kid": parts[2], "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
    subject = f"portalis.v1.auth.resolve.{partition(parts[2])}"
    headers = {"Content-Type": form.content_type}
    try:
        reply = await bus.request(subject, form.encode(body), timeout=timeout, headers=headers)
    except nats.errors.NoRespondersError:
        raise Failed("nobody answers for keys: is portalis-auth running?") from None
    except (nats.errors.TimeoutError, asyncio.TimeoutError):
        raise Failed("the key was not resolved in time") from None
    ((kind, body),) = form.decode(reply.data, reply.headers).items()
    if kind == "denied":
        raise Failed(failure_text(body))
    return body


async def publish(bus, subject, body, headers, timeout):
    """Queues the work and waits until the broker has it."""
    try:
        await bus.jetstream().publish(subject, body, timeout=timeout, headers=headers)
    except nats.js.errors.NoStreamResponseError:
        raise Failed("the model has no queue: no worker has served it yet") from None
    except nats.js.errors.APIError as error:
        raise Failed(f"the queue refused the work: {error.description}") from None
    except (nats.errors.TimeoutError, asyncio.TimeoutError):
        raise Failed("the broker did not take the work in time") from None


async def embed(bus, arguments, form):
    """One request from the key to the vectors."""
    deadline = time.monotonic() + arguments.timeout

    def left():
        return max(deadline - time.monotonic(), 0.001)

    grant = await resolve(bus, arguments.key, form, left())
    # As urgent as asked, but never more than the key may.
    lane = LANES[max(LANES.index(arguments.lane), LANES.index(grant["priority_ceiling"]))]
    slug = model_slug(arguments.model)
    identifier = uuid7()
    inbox = bus.new_inbox()
    # Listen before asking: the first frame may come before the publish returns.
    frames = await bus.subscribe(inbox)
    now_ms = int(time.time() * 1000)
    work = {
        "request_id": form.request_id(identifier),
        "model": arguments.model,
        "submitted_at_ms": now_ms,
        "task": {"embed": {"inputs": arguments.texts, "truncate": arguments.truncate}},
    }
    headers = {
        "Content-Type": form.content_type,
        "Portalis-Identity": grant["identity"],
        "Portalis-Reply": inbox,
        "Portalis-Deadline": str(now_ms + int(left() * 1000)),
        "Portalis-Request-Id": str(identifier),
        "Nats-Msg-Id": f"{identifier}:1",
        "traceparent": f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01",
    }
    subject = f"portalis.v1.work.{slug}.{lane}.{grant['tenant']}"
    await publish(bus, subject, form.encode(work), headers, left())
    answer = Answer(len(arguments.texts))
    try:
        while True:
            message = await frames.next_msg(timeout=left())
            usage = answer.add(form.decode(message.data, message.headers))
            if usage is not None:
                return answer.vectors, usage
    except (nats.errors.TimeoutError, asyncio.TimeoutError):
        # Nobody waits any more: tell whoever has it, so that nothing is computed in vain.
        owner = f"worker.{answer.worker}" if answer.worker else f"model.{slug}"
        cancel = form.encode({"request_ids": [form.request_id(identifier)]})
        content_type = {"Content-Type": form.content_type}
        await bus.publish(f"portalis.v1.cancel.{owner}", cancel, headers=content_type)
        await bus.flush()
        raise Failed(f"no answer within {arguments.timeout} s") from None


async def run(arguments):
    async def quiet(_error):
        """Connection errors are raised where they matter; the default handler prints stack traces."""

    try:
        bus = await nats.connect(
            arguments.nats, connect_timeout=5, allow_reconnect=False, error_cb=quiet
        )
    except Exception as error:
        raise Failed(f"cannot connect to nats-server: {error or type(error).__name__}") from None
    try:
        vectors, usage = await embed(bus, arguments, Format(arguments.json))
    except nats.errors.Error as error:
        raise Failed(f"the bus failed: {error or type(error).__name__}") from None
    finally:
        await bus.close()
    for index, values in enumerate(vectors):
        line = {"index": index, "dims": len(values), "first": values[:3], "usage": usage}
        print(json.dumps(line))


def parse(argv=None):
    env = os.environ
    parser = argparse.ArgumentParser(description="Embed texts over NATS.")
    parser.add_argument("--nats", metavar="URL", default=env.get("PORTALIS_NATS_URL", "nats://127.0.0.1:4222"))
    parser.add_argument("--key", default=env.get("PORTALIS_API_KEY"), help="or PORTALIS_API_KEY")
    parser.add_argument("--model", required=True)
    parser.add_argument("--lane", choices=LANES, default="interactive")
    parser.add_argument("--truncate", choices=["NONE", "START", "END"], default="NONE")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="send JSON instead of MessagePack")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    arguments = parser.parse_args(argv)
    if not arguments.key:
        parser.error("--key or PORTALIS_API_KEY is needed")
    return arguments


def main():
    try:
        asyncio.run(run(parse()))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
