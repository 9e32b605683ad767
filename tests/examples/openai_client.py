"""OpenAI's own client, pointed at Halt: a stream that can be stopped from anywhere by its ID.

python openai_client.py http://127.0.0.1:8000 MODEL "Count to ten."
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

from openai import OpenAI


def pieces(llm: OpenAI, model: str, prompt: str, stream_id: str) -> Iterator[str]:
    """The text as it comes. Raises openai's own errors."""
    with llm.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        extra_headers={"X-Stream-Id": stream_id},  # so that we know it before anything comes back
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


def stop(url: str, stream_id: str) -> dict[str, Any]:
    """Stop it; the receipt says whether the connection to the model was seen closed."""
    with urlopen(Request(f"{url}/stop/{stream_id}", method="POST"), timeout=5) as response:
        receipt: dict[str, Any] = json.load(response)
    return receipt


def main(url: str, model: str, prompt: str) -> None:
    stream_id = f"client-{uuid.uuid4()}"
    with OpenAI(base_url=f"{url}/v1", api_key="HALT_TOKEN, or any word without one") as llm:
        try:
            for piece in pieces(llm, model, prompt, stream_id):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print("\n", stop(url, stream_id))
    print()


if __name__ == "__main__":
    main(*sys.argv[1:4])
