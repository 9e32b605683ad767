"""Finds out what a server refuses that a request can do without: tools, or images.

The status differs between servers: 400 and 422 are usual, 404 and 500 occur too. Some send the
refusal as an error in the stream. So the words decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from halt.core.request import Message, has_images
from halt.errors import UpstreamError

_CODES = frozenset(
    {"bad_request", "model_not_found", "upstream_server_error", "endpoint_not_found"}
)
_IN_STREAM = frozenset({"upstream_error"})
WORDS_MAX = 2_000  # characters of an error's words that are searched

_IMAGE = r"(?:images?|image_url|pictures?|vision|visual|multi-?modal)"
#: What may follow that word without changing the meaning: an image *format* is something else.
_MORE = r"(?:[ _](?:url|inputs?|content|modality|understanding|parts?|blocks?|data|messages?))*"
_QUOTE = r"['\"`]*"
_NOT = r"(?:not|n.t|cannot|unable to)"

#: A server says that it takes no images. Not: that it cannot read this one.
_IMAGES = re.compile(
    "|".join(
        (
            # llama.cpp, xAI, Gemini, Kimi: "image input is not supported"
            rf"\b{_IMAGE}{_MORE}{_QUOTE} (?:(?:is|are|was) )?(?:currently )?not "
            r"(?:yet )?(?:supported|enabled|allowed|accepted|available|permitted)",
            # Ollama, LM Studio, Bedrock: "does not support images", "Cannot process images."
            rf"{_NOT} (?:\w+ )?support\w* (?:\w+ ){{0,3}}{_QUOTE}{_IMAGE}\b(?![ _/-]?"
            r"(?:format|type|urls?\b|size|file|generation|png|jpe?g|gif|webp|resolution))",
            rf"{_NOT} (?:accept|read|process|handle|take|understand|see)\w* (?:\w+ )?images\b",
            rf"unsupported (?:content|message|part|input)s?(?:[ _]part)?(?: type)?:? "
            rf"{_QUOTE}{_IMAGE}",
            # OpenRouter: "No endpoints found that support image input"
            rf"\bno \w+ (?:\w+ ){{0,3}}support\w* {_IMAGE}",
            # OpenAI, Azure: "image_url is only supported by certain models"
            rf"{_IMAGE}{_MORE}{_QUOTE} (?:is|are) only \w+ (?:by|for|with|in|on) (?:\w+ )?models",
            # vLLM: "is not a multimodal model", "At most 0 image(s)"; LM Studio: "not loaded"
            rf"{_NOT} (?:an? )?(?:vision|multi-?modal|vlm)\b|\btext.only (?:model|llm)",
            rf"at most 0 {_IMAGE}",
            r"missing data required for image|mmproj|vision [\w-]+ is not loaded",
            # DeepSeek, mlx-lm, Mistral: of the types of parts it knows only text
            rf"unknown variant {_QUOTE}image|invalid value:? {_QUOTE}image_url",
            r"(?:only|expected|should be|must be|allowed values:|supported values are:) \[?"
            r"['\"`]text['\"`](?!, ?['\"`])",
            # Groq, DeepSeek, TGI, llama-cpp-python: it knows no parts at all
            r"\bcontent(?![\w\[.]).{0,40}(?:must be|expected|should be) (?:an? )?(?:valid )?str",
            r"(?:sequence|array|list), expected (?:an? )?str|untagged enum \w*Content\b",
            r"unexpected item type in content|concatenate str \(not \W*list",
            r"不支持.{0,6}(?:图片|图像|视觉|多模态)|(?:图片|图像|视觉|多模态).{0,6}不支持",
        )
    ),
    re.IGNORECASE,
)


def named_refusal(
    fault: UpstreamError, messages: Iterable[Message], *, offers_tools: bool
) -> UpstreamError:
    """The error with the code of what was refused; the error itself where that is something else.

    `offers_tools`: the request has Halt's tools, which it can do without.
    """
    words = fault.detail[:WORDS_MAX]
    if offers_tools and fault.code in _CODES and "tool" in words.lower():
        return fault.with_code("tools_refused")
    if fault.code in _CODES | _IN_STREAM and _IMAGES.search(words) and has_images(messages):
        return fault.with_code("images_refused")
    return fault
