"""Refusals of images in the words of real servers, and errors that only mention an image."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from halt.core.refusals import named_refusal
from halt.core.request import Message
from halt.errors import UpstreamError
from halt.providers.errors import parse_error, to_upstream_error

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
WITH_IMAGE = [Message("user", [IMAGE, {"type": "text", "text": "What is this?"}])]
WITHOUT_IMAGE = [Message("user", "What is this?")]


def refusal(status: int, body: object) -> UpstreamError:
    """The error of a refusal with this body: JSON, or text as it is."""
    content = body if isinstance(body, str) else json.dumps(body)
    request = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
    response = httpx2.Response(status, content=content, request=request)
    return to_upstream_error(httpx2.HTTPStatusError("x", request=request, response=response), ())


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def anthropic(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


REFUSED = [
    # OpenAI, Azure
    (400, openai("Invalid content type. image_url is only supported by certain models.", type="invalid_request_error", param="messages.[1].content.[1].type")),
    (400, openai("Invalid value: 'image_url'. Supported values are: 'text'.")),
    (400, openai("This model does not support image inputs.")),
    # llama.cpp, by version
    (500, openai("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", code=500, type="server_error")),
    (400, openai("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", code=400, type="invalid_request_error")),
    (500, openai("This server does not support multimodal", code=500, type="server_error")),
    # vLLM, by version
    (400, {"object": "error", "message": "Qwen/Qwen3-8B is not a multimodal model", "type": "BadRequestError", "param": None, "code": 400}),
    (400, openai("GLM-5.2 is not a multimodal model None", type="BadRequestError", code=400)),
    (400, {"object": "error", "message": "At most 0 image(s) may be provided in one request.", "type": "BadRequestError", "param": None, "code": 400}),
    (400, openai("At most 0 image(s) may be provided in one prompt.", type="BadRequestError", code=400)),
    # Ollama, and its cloud
    (500, openai("Failed to create new sequence: failed to process inputs: this model is missing data required for image input", type="api_error")),
    (400, openai("this model does not support image input (ref: b8bd630e-4a39-4b57-82af-9158ee9d5703)")),
    (400, openai("this model does not support images")),
    # LM Studio
    (400, {"error": "Model does not support images. Please use a model that does."}),
    (400, {"error": "<LM Studio error> Vision model is not loaded. Cannot process images. Suggestion: Make sure to load both the primary and the Vision Adapter models."}),
    (400, {"error": "Vision add-on is not loaded, but images were provided for processing"}),
    # OpenRouter, also of a provider behind it
    (404, openai("No endpoints found that support image input", code=404)),
    (400, openai("Provider returned error", code=400, metadata={"raw": '{"error":{"message":"Invalid content type. image_url is only supported by certain models."}}', "provider_name": "OpenAI"})),
    # Anthropic's API: Anthropic, Ollama, Bedrock
    (400, anthropic("This model does not support image inputs.")),
    (400, anthropic("'claude-instant-1.2' does not support images.")),
    (400, anthropic("messages.0.content.0: image blocks are not supported by this model")),
    (400, {"message": "This model doesn't support the image content block that you provided."}),
    # Gemini, xAI, Kimi, DeepSeek, Groq, Mistral, Qwen, Cerebras, Together
    (400, [openai("Image input modality is not enabled for models/gemma-3-27b-it", code=400, status="INVALID_ARGUMENT")]),
    (400, {"code": "invalid-argument", "error": "Image inputs are not supported by this model."}),
    (400, openai("Image input not supported for model kimi-k2-0905-preview", type="invalid_request_error")),
    (422, "Failed to deserialize the JSON body into the target type: messages[0]: unknown variant `image_url`, expected `text` at line 1 column 203"),
    (400, openai("Failed to deserialize the JSON body into the target type: messages[2]: invalid type: sequence, expected a string at line 1 column 2901", type="invalid_request_error")),
    (422, openai("Failed to deserialize the JSON body into the target type: messages[2]: data did not match any variant of untagged enum ChatCompletionRequestContent at line 1 column 15700")),
    (400, openai("'messages.0' : for 'role:user' the following must be satisfied[('messages.0.content' : value must be a string)]", type="invalid_request_error")),
    (400, openai("messages[0].content must be a string", type="invalid_request_error")),
    (422, {"detail": [{"type": "literal_error", "loc": ["body", "messages", 0, "content", 0, "type"], "msg": "Input should be 'text'", "input": "image_url"}]}),
    (400, openai("messages.content.type is invalid, allowed values: ['text']")),
    (400, openai("Unexpected item type in content.")),
    (400, openai("Content type 'image_url' is not supported by model llama3.1-8b.")),
    (400, openai("Input content contains images, but the model is not multimodal.")),
    # mlx-lm, llama-cpp-python, LiteLLM, gateways
    (404, {"error": "Only 'text' content type is supported."}),
    (500, openai('can only concatenate str (not "list") to str', type="internal_server_error")),
    (400, openai("litellm.BadRequestError: OpenAIException - this model does not support image input")),
    (400, openai("vision is not supported by this model")),
    (400, openai("glm-4.5 is a text-only model")),
    (400, openai("该模型不支持图片输入")),
]  # fmt: skip

#: Errors with the word, and errors of texts, that have another reason.
OTHERS = [
    (400, anthropic("Could not process image")),
    (400, anthropic("messages.0.content.0.image.source.base64: image exceeds 5 MB maximum: 5600296 bytes > 5242880 bytes")),
    (400, anthropic("messages.34.content.2.image.source.base64.data: Image format image/png not supported")),
    (400, anthropic("messages.36.content.2.image.source.base64.media_type: Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'")),
    (400, anthropic("messages.0.content.0.image.source.base64.data: At least one of the image dimensions exceed max allowed size: 8000 pixels")),
    (413, anthropic("Request exceeds the maximum size", "request_too_large")),
    (400, openai("You uploaded an unsupported image. Please make sure your image has of one the following formats: ['png', 'jpeg', 'gif', 'webp'].", code="invalid_image_format")),
    (400, openai("Invalid image URL: 'messages[1].content[1].image_url.url'. Expected a base64-encoded data URL with an image MIME type (e.g. 'data:image/png;base64,aW1nIGJ5dGVzIGhlcmU='), but got a value without the 'data:' prefix.")),
    (400, openai("Invalid type for 'messages[1].content[1].image_url': expected an object, but got a string instead.", code="invalid_type")),
    (400, openai("Image URLs are only allowed for messages with role 'user', but this message with role 'tool' contains an image URL.")),
    (400, openai("The image data you provided does not represent a valid image.")),
    (400, openai("Error while downloading https://example.org/a.png.", code="invalid_image_url")),
    (400, openai("Too many images in request. Max is 50.")),
    (400, openai("At most 1 image(s) may be provided in one request.")),
    (400, openai("At most 5 images may be provided in one prompt")),
    (400, openai("Failed to load image: cannot identify image file <_io.BytesIO object>")),
    (400, openai("Failed to apply Qwen2VLProcessor: Mismatched number of multimodal tokens")),
    (400, openai("The URL is not an image.")),
    (400, openai("failed to decode image bytes", code=400)),
    (400, [openai("Unable to process input image. Please retry or report in https://developers.generativeai.google", code=400)]),
    (400, openai("The model grok-imagine-image is an image model and is therefore not available on this endpoint.")),
    (404, openai("No endpoints found that support the requested output modalities: image, text")),
    (404, openai("No endpoints found that support tool use.")),
    (400, openai("Image generation is not supported by this model.")),
    (400, openai("This model does not support image generation.")),
    (400, openai("Invalid type for 'messages[0].name': expected a string, but got an integer.")),
    (400, openai("Invalid value: 'file'. Supported values are: 'text', 'image_url', 'input_audio'.")),
    (400, openai("Unsupported parameter: 'temperature' is not supported with this model.")),
    (400, openai("The prompt must be text or a list")),
    (429, openai("Rate limit reached for images per minute", code="rate_limit_exceeded")),
    (401, openai("Incorrect API key provided: vision is not enabled")),
    (503, openai("The image service is overloaded, it is not available")),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), REFUSED)
def test_refused_image_is_named(status: int, body: object) -> None:
    """The words of each server say that the model takes no images; the words are kept."""
    fault = refusal(status, body)
    named = named_refusal(fault, WITH_IMAGE, offers_tools=False)
    assert named.code == "images_refused"
    assert named.detail == fault.detail
    assert not named.retryable


@pytest.mark.parametrize(("status", "body"), REFUSED)
def test_request_without_images_is_not_refused_for_them(status: int, body: object) -> None:
    """Only a request with an image gets that code."""
    fault = refusal(status, body)
    assert named_refusal(fault, WITHOUT_IMAGE, offers_tools=False) is fault


@pytest.mark.parametrize(("status", "body"), OTHERS)
def test_other_error_that_mentions_an_image_keeps_its_code(status: int, body: object) -> None:
    """A damaged, large or misplaced image, and other errors, are no reason for another model."""
    fault = refusal(status, body)
    assert named_refusal(fault, WITH_IMAGE, offers_tools=False) is fault


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "Model does not support images. Please use a model that does."}},
        {"error": "Vision add-on is not loaded, but images were provided for processing"},
        openai("this model is missing data required for image input", type="api_error"),
    ],
)
def test_refusal_in_the_stream_is_named(event: dict[str, Any]) -> None:
    """LM Studio and proxies answer with 200 first, and refuse in an event."""
    fault = parse_error(event, event="error")
    assert fault is not None
    assert named_refusal(fault, WITH_IMAGE, offers_tools=True).code == "images_refused"


def test_refused_tools_come_first() -> None:
    """A server that refuses the tools is asked again without them, with the image."""
    fault = refusal(404, openai("No endpoints found that support tool use and image input"))
    assert named_refusal(fault, WITH_IMAGE, offers_tools=True).code == "tools_refused"
