"""The answer's text as it comes, with `requests`; Ctrl-C stops it.

python python_requests.py http://127.0.0.1:8000 "Count to ten."
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import requests


def ask(url: str, prompt: str, **options: Any) -> requests.Response:
    """Start an answer; its ID is in the header X-Stream-Id."""
    body = {"prompt": prompt, **options}
    response = requests.post(f"{url}/chat", json=body, stream=True, timeout=(5, 120))
    response.raise_for_status()
    response.encoding = "utf-8"
    return response


def pieces(response: requests.Response) -> Iterator[str]:
    """The text as it comes. Raises requests' ChunkedEncodingError where the answer breaks off."""
    for piece in response.iter_content(chunk_size=None, decode_unicode=True):
        yield str(piece)


def stop(url: str, stream_id: str) -> dict[str, Any]:
    """Stop it; the receipt says whether the connection to the model was seen closed."""
    receipt: dict[str, Any] = requests.post(f"{url}/stop/{stream_id}", timeout=5).json()
    return receipt


def main(url: str, prompt: str) -> None:
    with ask(url, prompt) as response:
        try:
            for piece in pieces(response):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print("\n", stop(url, response.headers["X-Stream-Id"]))
    print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
