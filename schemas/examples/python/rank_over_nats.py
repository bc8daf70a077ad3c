#!/usr/bin/env python3
"""Rank passages over NATS, without HTTP: what an internal publisher does; `embed_over_nats.py` beside it explains each step.

Input: an API key, a model, a query and passages. Output: one JSON line per passage, the best first, with its place, its raw
score and what the whole request took. Exit status 1 with one line on stderr when it fails.

Needs: pip install nats-py msgpack
"""

import argparse
import asyncio
import json
import os
import sys
import time

import nats
import nats.errors

from embed_over_nats import LANES, Failed, Format, failure_text, model_slug, publish, resolve, uuid7


async def scores(frames, form, count, deadline):
    """Reads frames until the last one; scores come all at once with it, so there is nothing to put together."""
    attempt = 0
    while True:
        left = max(deadline - time.monotonic(), 0.001)
        message = await frames.next_msg(timeout=left)
        frame = form.decode(message.data, message.headers)
        if frame["attempt"] < attempt:
            continue  # An older delivery whose worker came back: somebody else answers now.
        attempt = frame["attempt"]
        ((kind, body),) = frame["frame"].items()
        if kind == "failed":
            raise Failed(failure_text(body))
        if kind == "done":
            if len(body["scores"]) != count:
                raise Failed(f"{len(body['scores'])} scores came for {count} passages")
            return body["scores"], body["usage"]


async def rank(bus, arguments, form):
    """One request from the key to the scores."""
    deadline = time.monotonic() + arguments.timeout
    grant = await resolve(bus, arguments.key, form, arguments.timeout)
    lane = LANES[max(LANES.index(arguments.lane), LANES.index(grant["priority_ceiling"]))]
    identifier, inbox = uuid7(), bus.new_inbox()
    frames = await bus.subscribe(inbox)
    now_ms = int(time.time() * 1000)
    task = {"query": arguments.query, "passages": arguments.passages, "truncate": arguments.truncate}
    work = {
        "request_id": form.request_id(identifier),
        "model": arguments.model,
        "submitted_at_ms": now_ms,
        "task": {"rank": task},
    }
    headers = {
        "Content-Type": form.content_type,
        "Portalis-Identity": grant["identity"],
        "Portalis-Reply": inbox,
        "Portalis-Deadline": str(now_ms + int((deadline - time.monotonic()) * 1000)),
        "Nats-Msg-Id": f"{identifier}:1",
    }
    subject = f"portalis.v1.work.{model_slug(arguments.model)}.{lane}.{grant['tenant']}"
    await publish(bus, subject, form.encode(work), headers, arguments.timeout)
    try:
        return await scores(frames, form, len(arguments.passages), deadline)
    except (nats.errors.TimeoutError, asyncio.TimeoutError):
        raise Failed(f"no answer within {arguments.timeout} s") from None


async def run(arguments):
    async def quiet(_error):
        """Connection errors are raised where they matter; the default handler prints stack traces."""

    try:
        bus = await nats.connect(arguments.nats, connect_timeout=5, allow_reconnect=False, error_cb=quiet)
    except Exception as error:
        raise Failed(f"cannot connect to nats-server: {error or type(error).__name__}") from None
    try:
        found, usage = await rank(bus, arguments, Format(arguments.json))
    except nats.errors.Error as error:
        raise Failed(f"the bus failed: {error or type(error).__name__}") from None
    finally:
        await bus.close()
    for index in sorted(range(len(found)), key=lambda index: -found[index]):
        print(json.dumps({"index": index, "score": found[index], "usage": usage}))


def parse(argv=None):
    env = os.environ
    parser = argparse.ArgumentParser(description="Rank passages over NATS.")
    parser.add_argument("--nats", metavar="URL", default=env.get("PORTALIS_NATS_URL", "nats://127.0.0.1:4222"))
    parser.add_argument("--key", default=env.get("PORTALIS_API_KEY"), help="or PORTALIS_API_KEY")
    parser.add_argument("--model", required=True)
    parser.add_argument("--lane", choices=LANES, default="interactive")
    parser.add_argument("--truncate", choices=["NONE", "START", "END"], default="NONE")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="send JSON instead of MessagePack")
    parser.add_argument("--query", required=True)
    parser.add_argument("passages", nargs="+", metavar="PASSAGE")
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
