"""Errors of model servers: their code, their message, and whether a retry is useful.

The bodies are those of real servers, named beside them where known.
"""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import pytest

from halt.errors import UpstreamError
from halt.providers.errors import parse_error, retry_delay, to_upstream_error

KEY = "sk-test-0123456789abcdef"


def refusal(status: int, body: object, **headers: str) -> UpstreamError:
    """The error of a refusal with this body: JSON, or text as it is."""
    content = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
    response = httpx2.Response(status, content=content, headers=named, request=request)
    return to_upstream_error(
        httpx2.HTTPStatusError("x", request=request, response=response), (KEY,)
    )


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


# --- codes ----------------------------------------------------------------------------------------

CONTEXT = [
    # OpenAI, also without its label
    (
        400,
        openai(
            "This model's maximum context length is 4096 tokens. However, your messages resulted in 9412 tokens. Please reduce the length of the messages.",
            code="context_length_exceeded",
        ),
    ),
    (
        400,
        openai(
            "This model's maximum context length is 4096 tokens. However, your messages resulted in 9412 tokens. Please reduce the length of the messages."
        ),
    ),
    (
        400,
        openai(
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens. Please reduce the length of the messages."
        ),
    ),
    # vLLM, by version
    (
        400,
        {
            "object": "error",
            "type": "BadRequestError",
            "code": 400,
            "message": "This model's maximum context length is 4096 tokens. However, you requested 9412 tokens (9212 in the messages, 200 in the completion). Please reduce the length of the messages or completion.",
        },
    ),
    (
        400,
        openai(
            "This model's maximum context length is 4096 tokens. However, your request has 9412 input tokens. Please reduce the length of the input messages."
        ),
    ),
    (
        400,
        openai(
            "The decoder prompt (length 9412) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no smaller than the number of text tokens."
        ),
    ),
    (
        400,
        openai(
            "'max_tokens' or 'max_completion_tokens' is too large: 900. This model's maximum context length is 16384 tokens and your request has 16000 input tokens (900 > 16384 - 16000)."
        ),
    ),
    # SGLang
    (
        400,
        openai("The input (9412 tokens) is longer than the model's context length (4096 tokens)."),
    ),
    (
        400,
        openai(
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 9612 tokens: 9412 tokens from the input messages and 200 tokens for the completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit."
        ),
    ),
    # TGI, Together
    (
        422,
        {
            "error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 9412",
            "error_type": "validation",
        },
    ),
    (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9412 `inputs` tokens and 100 `max_new_tokens`"
        },
    ),
    # llama.cpp, LM Studio, Ollama
    (
        400,
        {
            "error": {
                "code": 400,
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 9412,
                "n_ctx": 4096,
                "message": "request (9412 tokens) exceeds the available context size (4096 tokens), try increasing it",
            }
        },
    ),
    (
        400,
        openai(
            "the request exceeds the available context size. try increasing the context size or enable context shift"
        ),
    ),
    (
        400,
        {
            "error": "Trying to keep the first 9412 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter input"
        },
    ),
    (500, {"error": "the input length exceeds the context length"}),
    # Gemini, Anthropic, Bedrock, Mistral, Cohere, xAI, Groq, Moonshot, DashScope, Copilot, Cerebras, OpenRouter
    (
        400,
        openai(
            "The input token count (1300000) exceeds the maximum number of tokens allowed (1048576).",
            code=400,
            status="INVALID_ARGUMENT",
        ),
    ),
    (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "prompt is too long: 210000 tokens > 200000 maximum",
            },
        },
    ),
    (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "input length and `max_tokens` exceed context limit: 195000 + 8192 > 200000, decrease input length or `max_tokens` and try again",
            },
        },
    ),
    (400, openai("Input is too long for requested model.")),
    (
        400,
        {
            "message": "Too many input tokens. Max input tokens: 8000, request input token count: 9412"
        },
    ),
    (
        400,
        {
            "object": "error",
            "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
            "type": "invalid_request_prompt",
            "code": "3051",
        },
    ),
    (
        400,
        {
            "message": "too many tokens: size limit exceeded by 1000 tokens. Try using shorter or fewer inputs."
        },
    ),
    (
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "This model's maximum prompt length is 131072 but the request contains 200000 tokens.",
        },
    ),
    (
        400,
        openai(
            "Please reduce the length of the messages or completion.", type="invalid_request_error"
        ),
    ),
    (
        400,
        openai(
            "Invalid request: Your request exceeded model token limit: 8192",
            type="invalid_request_error",
        ),
    ),
    (400, openai("Range of input length should be [1, 30720]", code="invalid_parameter_error")),
    (
        400,
        openai(
            "prompt token count of 70000 exceeds the limit of 64000",
            code="model_max_prompt_tokens_exceeded",
        ),
    ),
    (400, openai("Current length is 9000 while limit is 8192", code="context_length_exceeded")),
    (
        400,
        openai(
            'This endpoint\'s maximum context length is 32768 tokens. However, you requested about 40000 tokens (39000 of text input, 1000 in the output). Please reduce the length of either one, or use the "middle-out" transform to compress your prompt automatically.',
            code=400,
        ),
    ),
    (400, openai("输入内容过长,请缩短后重试", code="1261")),
    (413, openai("Prompt is too long")),
]
BAD = [
    (
        400,
        openai(
            "'max_tokens' or 'max_completion_tokens' is too large: 20000. This model's maximum context length is 16384 tokens and your request has 20 input tokens",
            type="BadRequestError",
            code=400,
        ),
    ),
    (
        400,
        openai(
            "This model's maximum context length is 16384 tokens. However, you requested 20020 tokens (20 in the messages, 20000 in the completion). Please reduce the length of the messages or completion."
        ),
    ),
    (
        400,
        openai(
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5020 tokens: 20 tokens from the input messages and 5000 tokens for the completion."
        ),
    ),
    (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 20 `inputs` tokens and 8000 `max_new_tokens`"
        },
    ),
    (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens for claude-m",
            },
        },
    ),
    (
        400,
        openai(
            "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the `context_window` for this model"
        ),
    ),
    (
        400,
        openai(
            "max_tokens is too large: 300000. This model supports at most 128000 completion tokens, whereas you provided 300000.",
            param="max_tokens",
        ),
    ),
    (400, openai("Range of max_tokens should be [1, 8192]")),
    (
        400,
        openai("Unknown option context_window; did you mean n_ctx?", type="invalid_request_error"),
    ),
    (400, openai("Unrecognized request argument supplied: context_length")),
    (400, openai("Unknown parameter: 'moderation'.")),
    (
        400,
        openai(
            "Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64, but got a string with length 80 instead.",
            code="string_above_max_length",
        ),
    ),
    (
        400,
        openai(
            "Invalid 'messages[1].name': string too long. Expected a string with maximum length 64"
        ),
    ),
    (400, openai("Invalid value for 'temperature'.")),
    (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "`max_tokens` must be greater than `thinking.budget_tokens`. The thinking budget exceeds it.",
            },
        },
    ),
    (400, openai("A system role is not supported")),
    (400, openai("this model does not support chat")),
    (
        404,
        openai(
            "No endpoints found that support tool use. To learn more about provider routing, visit the docs"
        ),
    ),
    (413, openai("The image is too large: at most 5 MB are allowed")),
    (400, openai("Request payload size exceeds the limit: 20971520 bytes.")),
    (501, openai("This server does not support embeddings")),
]
RATE = [
    (
        429,
        openai(
            "Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s. You can increase your rate limit by adding a payment method to your account at https://platform.openai.com/account/billing.",
            type="requests",
            code="rate_limit_exceeded",
        ),
    ),
    (
        429,
        openai(
            "Rate limit reached for model `m` on tokens per day (TPD): Limit 100000, Used 99000, Requested 5000. Please try again in 57m36s. Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing",
            code="rate_limit_exceeded",
        ),
    ),
    (
        429,
        openai(
            "You exceeded your current quota, please check your plan and billing details.\n* Quota exceeded for metric: generate_content_free_tier_requests, limit: 10\nPlease retry in 22.5s.",
            code=429,
            status="RESOURCE_EXHAUSTED",
            details=[{"retryDelay": "22s"}],
        ),
    ),
    (
        429,
        openai(
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API have exceeded token rate limit of your current pricing tier. Please retry after 20 seconds. To increase the quota, visit the portal.",
            code="429",
        ),
    ),
    (
        429,
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": "This request would exceed your organization's rate limit of 40,000 input tokens per minute. Reduce the prompt length or the maximum tokens requested.",
            },
        },
    ),
    (429, openai("Too many tokens, please wait before trying again.")),
    (429, openai("slow down")),
    (
        429,
        {
            "code": "Throttling.AllocationQuota",
            "message": "Allocated quota exceeded, please increase your quota limit.",
        },
    ),
    (
        429,
        openai(
            "Your account org-x request reached max request: 3, please try again after 1 seconds",
            type="rate_limit_reached_error",
        ),
    ),
    (429, {"message": "Requests rate limit exceeded"}),
    (400, openai("Rate limit is exceeded: too many requests for this key")),
    (403, openai("Request rate limit exceeded, 60 requests per minute are allowed")),
    (503, openai("Too many concurrent requests")),
    (429, openai("您的账户已达到速率限制,请您控制请求频率", code="1302")),
]
SPENT = [
    (
        429,
        openai(
            "You went over your current quota: look at your plan and billing details",
            type="insufficient_quota",
            code="insufficient_quota",
        ),
    ),
    (429, openai("You exceeded your current quota, please check your plan and billing details.")),
    (402, openai("Insufficient Balance")),
    (
        402,
        openai(
            "This request requires more credits, or fewer max_tokens. You requested up to 64000 tokens, but can only afford 1234.",
            code=402,
        ),
    ),
    (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits.",
            },
        },
    ),
    (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
            },
        },
    ),
    (
        403,
        {
            "code": "The caller does not have permission to execute the specified operation",
            "error": "Your newly created teams doesn't have any credits yet.",
        },
    ),
    (403, openai("Key limit exceeded (monthly limit). Manage it in your settings", code=403)),
    (
        401,
        openai(
            "You exceeded your current quota, please check your billing details",
            type="insufficient_quota",
            code=401,
        ),
    ),
    (
        429,
        openai(
            "Your account org-x is suspended, please check your plan and billing details",
            type="exceeded_current_quota_error",
        ),
    ),
    (
        400,
        openai(
            "Budget has been exceeded! Current cost: 1.0, Max budget: 0.5",
            type="budget_exceeded",
            code="400",
        ),
    ),
    (429, openai("余额不足或无可用资源包,请充值。", code="1113")),
    (
        400,
        {
            "code": "Arrearage",
            "message": "Access denied, please make sure your account is in good standing.",
        },
    ),
    (403, openai("user quota is not enough", type="new_api_error")),
    (
        429,
        {
            "errors": [
                {
                    "message": "AiError: you have used up your daily free allocation of 10,000 neurons",
                    "code": 4006,
                }
            ],
            "success": False,
        },
    ),
    (412, openai("Account suspended: your spending limit was reached")),
    (402, "Payment Required"),
    (402, ""),
]
OTHERS = [
    (
        "region_not_supported",
        403,
        openai(
            "Country, region, or territory not supported",
            code="unsupported_country_region_territory",
            type="request_forbidden",
        ),
    ),
    (
        "region_not_supported",
        400,
        openai("User location is not supported for the API use.", status="FAILED_PRECONDITION"),
    ),
    ("region_not_supported", 403, openai("This model is not available in your region.", code=403)),
    (
        "region_not_supported",
        403,
        {
            "type": "error",
            "error": {
                "type": "forbidden",
                "message": "Access to Anthropic models is not allowed from unsupported countries, regions, or territories.",
            },
        },
    ),
    (
        "content_filter",
        403,
        openai(
            'm requires moderation on A. Your input was flagged for "violence". No credits were charged.',
            code=403,
            metadata={"reasons": ["violence"], "flagged_input": "x"},
        ),
    ),
    (
        "content_filter",
        400,
        openai(
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
            code="content_filter",
            status=400,
            innererror={"code": "ResponsibleAIPolicyViolation"},
        ),
    ),
    (
        "content_filter",
        400,
        openai(
            "Your request was rejected as a result of our safety system.",
            code="content_policy_violation",
        ),
    ),
    (
        "content_filter",
        400,
        openai("Input data may contain inappropriate content.", code="data_inspection_failed"),
    ),
    (
        "content_filter",
        400,
        openai("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301"),
    ),
    (
        "unauthorized",
        401,
        openai("Incorrect API key provided: sk-ab***ef.", code="invalid_api_key"),
    ),
    ("unauthorized", 401, ""),
    (
        "unauthorized",
        401,
        {
            "statusCode": 401,
            "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an active subscription.",
        },
    ),
    (
        "unauthorized",
        400,
        [openai("API key not valid, please pass a valid one", code=400, status="INVALID_ARGUMENT")],
    ),
    ("unauthorized", 403, openai("Your API key has expired")),
    (
        "forbidden",
        403,
        openai("You are not allowed to sample from this model", type="permission_error"),
    ),
    ("forbidden", 403, "<html><head><title>Attention Required! | Cloudflare</title></head></html>"),
    (
        "model_not_found",
        404,
        openai(
            "The model `m` does not exist or you do not have access to it.", code="model_not_found"
        ),
    ),
    ("model_not_found", 404, openai("model 'm' not found, try pulling it first")),
    (
        "model_not_found",
        404,
        {"type": "error", "error": {"type": "not_found_error", "message": "model: m"}},
    ),
    (
        "model_not_found",
        404,
        openai(
            "models/m is not found for API version v1main, or is not supported for generateContent.",
            status="NOT_FOUND",
        ),
    ),
    (
        "model_not_found",
        404,
        openai("The API deployment for this resource does not exist.", code="DeploymentNotFound"),
    ),
    ("model_not_found", 404, openai("No endpoints found for a/b.", code=404)),
    ("model_not_found", 400, openai("m is not a valid model ID", code=400)),
    (
        "model_not_found",
        400,
        {"object": "error", "message": "Invalid model: m", "type": "invalid_model", "code": "1500"},
    ),
    (
        "model_not_found",
        400,
        {
            "code": 20012,
            "message": "Model does not exist. Please check it carefully.",
            "data": None,
        },
    ),
    ("endpoint_not_found", 404, "<html><head><title>404 Not Found</title></head></html>"),
    ("endpoint_not_found", 404, {"detail": "Not Found"}),
    ("endpoint_not_found", 404, openai("Not Found")),
    ("endpoint_not_found", 404, "404 page not found"),
    ("endpoint_not_found", 404, "<pre>Cannot POST /v1/chat/completions</pre>"),
    (
        "endpoint_not_found",
        404,
        openai("Invalid URL (POST /v1/models/chat/completions)", type="invalid_request_error"),
    ),
    ("endpoint_not_found", 404, ""),
    ("endpoint_not_found", 400, "Client sent an HTTP request to an HTTPS server."),
    (
        "endpoint_not_found",
        400,
        "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
    ),
    ("bad_request", 413, "<html><title>413 Request Entity Too Large</title></html>"),
    ("context_too_long", 413, ""),
    ("endpoint_not_found", 405, {"detail": "Method Not Allowed"}),
    ("model_loading", 503, openai("Loading model", type="unavailable_error", code=503)),
    ("model_loading", 503, {"error": "Model m is currently loading", "estimated_time": 20.0}),
    ("model_loading", 503, {"detail": "The server is still starting up, please wait"}),
    ("model_loading", 500, openai("The model is being loaded")),
    ("upstream_server_error", 500, openai("error loading model: unable to allocate the buffer")),
    (
        "upstream_server_error",
        500,
        openai("this model needs 8.4 GiB of memory, and only 5.5 GiB are free"),
    ),
    ("upstream_server_error", 500, "context deadline exceeded while the model was awaited"),
    ("upstream_server_error", 502, "<html><head><title>502 Bad Gateway</title></head></html>"),
    (
        "upstream_server_error",
        503,
        openai("The model is overloaded. Please try again later.", status="UNAVAILABLE"),
    ),
    (
        "upstream_server_error",
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    ),
    ("upstream_server_error", 500, "Internal Server Error"),
    ("upstream_server_error", 503, "upstream connect error or disconnect/reset before headers"),
    ("upstream_server_error", 500, "load balancer: no healthy upstream"),
    ("upstream_server_error", 507, "disk quota exceeded"),
    ("upstream_server_error", 408, openai("Request timed out")),
    ("upstream_server_error", 409, openai("Conflict")),
    ("upstream_server_error", 425, ""),
]
#: More of the same, from many servers.
MORE: list[tuple[str, int, Any]] = [
    (
        "bad_request",
        400,
        openai(
            "This model's maximum context length is 2048 tokens. However, your request has 8 input tokens plus 2045 'max_tokens'. Please reduce one or the other. (parameter=input_tokens, max_tokens, value=(8, 2045))"
        ),
    ),
    (
        "bad_request",
        400,
        openai(
            "This model's maximum context length is 2048 tokens. However, you requested 2045 output tokens and your prompt contains at least 8 input tokens, for a total of at least 2053 tokens. Please reduce the length of the input prompt or the number of requested output tokens."
        ),
    ),
    (
        "context_too_long",
        400,
        openai(
            "This model's maximum context length is 2048 tokens. However, you requested 45 output tokens and your prompt contains at least 2040 input tokens, for a total of at least 2085 tokens. Please reduce the length of the input prompt or the number of requested output tokens."
        ),
    ),
    ("context_too_long", 500, {"detail": "Requested tokens (5000) exceed context window of 512"}),
    (
        "context_too_long",
        400,
        openai("Input prompt (35247 tokens) is too long and exceeds limit of 1000"),
    ),
    (
        "quota_exceeded",
        429,
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": 'Upstream provider KIMI returned HTTP 429.\nCategory:\n exceeded_current_quota_error\nMapped message: Provider rate limit reached. Please retry shortly.\n\nUpstream error:\n{"message":"Your account org-x is suspended due to insufficient balance, please recharge your account or check your plan and billing details","type":"exceeded_current_quota_error"}\n\nRequest ID: r',
            },
        },
    ),
    (
        "quota_exceeded",
        429,
        openai(
            "Your account org-e <ak-f> is suspended due to insufficient balance, please recharge your account or check your plan and billing details"
        ),
    ),
    (
        "quota_exceeded",
        403,
        openai(
            "Your account c<ak-e> is not active, current state: suspended, you may consider to check your account balance"
        ),
    ),
    (
        "rate_limited",
        429,
        openai(
            "The engine is currently overloaded, please try again later",
            type="engine_overloaded_error",
        ),
    ),
    ("quota_exceeded", 429, openai("No money left on this account")),
    ("quota_exceeded", 400, openai("Your prepaid balance is exhausted")),
    ("quota_exceeded", 403, {"error": "Free trial expired, please add a payment method"}),
    ("quota_exceeded", 429, openai("Monthly usage limit reached")),
    (
        "quota_exceeded",
        429,
        openai("You've reached your hourly usage limit, please upgrade to continue"),
    ),
    (
        "rate_limited",
        429,
        openai(
            "Quota exceeded for quota metric 'Generate requests' and limit 'Generate requests per minute' of service",
            status="RESOURCE_EXHAUSTED",
        ),
    ),
    (
        "rate_limited",
        429,
        openai(
            "Resource has been exhausted (e.g. check quota).", status="RESOURCE_EXHAUSTED", code=429
        ),
    ),
    ("rate_limited", 413, openai("Request too large: tokens per min limit")),
    ("rate_limited", 400, {"message": "Rate exceeded"}),
    ("rate_limited", 400, {"message": "Too many requests, please wait before trying again."}),
    (
        "bad_request",
        400,
        openai(
            "Invalid 'max_output_tokens': integer above maximum value. Expected a value <= 16384, but got 100000 instead."
        ),
    ),
    (
        "bad_request",
        400,
        openai(
            "max_completion_tokens is too large: 200000. This model supports at most 100000 completion tokens"
        ),
    ),
    ("bad_request", 400, openai("num_ctx must be smaller than 131072")),
    ("bad_request", 400, openai("property 'context_length' is unsupported")),
    ("bad_request", 400, openai("Invalid parameter: context_window_size")),
    ("bad_request", 400, openai("Tool description too long")),
    ("bad_request", 400, openai("prompt_cache_key is too long: at most 64 characters")),
    ("bad_request", 400, openai("Invalid value: 'user' exceeds the maximum length of 512")),
    ("bad_request", 400, openai("messages: text content blocks must be non-empty")),
    ("bad_request", 400, openai("messages.1.content: Input should be a valid string")),
    (
        "bad_request",
        400,
        openai(
            "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
        ),
    ),
    (
        "bad_request",
        400,
        openai("Conversation roles must alternate user/assistant/user/assistant/..."),
    ),
    ("bad_request", 400, openai("The chat template of this model is missing")),
    ("bad_request", 400, openai("At most 5 images may be provided in one prompt")),
    (
        "bad_request",
        400,
        openai("An assistant message with 'tool_calls' must be followed by tool messages"),
    ),
    ("bad_request", 400, openai("Could not process image")),
    ("bad_request", 400, openai("Image size exceeds 5 MB in messages.0")),
    (
        "bad_request",
        400,
        openai("reasoning_effort 'none' is not supported by this model", code="unsupported_value"),
    ),
    ("bad_request", 400, openai("Logprobs are not supported with this model")),
    (
        "bad_request",
        400,
        openai("Streaming is not available for your organization; verify it in the settings"),
    ),
    (
        "content_filter",
        400,
        openai(
            "Your request was flagged as potentially violating our usage policy. Please try again with a different prompt.",
            code="invalid_prompt",
        ),
    ),
    ("content_filter", 403, openai("Prompt violates our terms of use: harmful content")),
    ("content_filter", 400, {"error": {"code": "400", "message": "Content Exists Risk"}}),
    ("unauthorized", 401, "<html><head><title>401 Authorization Required</title></head></html>"),
    ("unauthorized", 403, openai("Invalid API key")),
    ("unauthorized", 400, openai("Missing bearer token: no API key was provided")),
    ("unauthorized", 401, {"message": "Unauthorized"}),
    ("forbidden", 403, {"message": "Forbidden"}),
    ("model_not_found", 404, {"error": {"message": 'Model "m" not found. Available: x'}}),
    ("model_not_found", 400, openai("Model Not Exist")),
    ("model_not_found", 404, {"detail": "No model named m is registered"}),
    (
        "model_not_found",
        404,
        {"status": 404, "title": "Not Found", "detail": "Function 'x': Not found for account 'y'"},
    ),
    ("endpoint_not_found", 404, {"error": {"code": "404", "message": "Resource not found"}}),
    ("endpoint_not_found", 404, {"message": "no Route matched with those values"}),
    (
        "endpoint_not_found",
        404,
        {"error": "Unexpected endpoint or method. (POST /chat/completions)"},
    ),
    (
        "endpoint_not_found",
        404,
        {"timestamp": "t", "status": 404, "error": "Not Found", "path": "/v1/chat/completions"},
    ),
    (
        "endpoint_not_found",
        404,
        {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}},
    ),
    ("model_loading", 503, openai("The model is warming up, please retry")),
    ("model_loading", 503, {"error": "Model is starting"}),
    ("model_loading", 503, {"detail": "Server is initializing"}),
    ("model_loading", 503, openai("llama runner is not ready: loading the model")),
    ("upstream_server_error", 503, openai("No available workers")),
    ("upstream_server_error", 503, "no healthy upstream"),
    (
        "upstream_server_error",
        500,
        {"error": "llama runner process has terminated: cudaMalloc failed: out of memory"},
    ),
    ("upstream_server_error", 504, "<html><title>504 Gateway Time-out</title></html>"),
    ("upstream_server_error", 524, "error code: 524"),
    ("upstream_server_error", 500, openai("CUDA out of memory. Tried to allocate 2.00 GiB")),
    (
        "upstream_server_error",
        500,
        openai('POST predict: Post "http://127.0.0.1:1/completion": EOF'),
    ),
    (
        "upstream_server_error",
        500,
        {"error": "timed out waiting for llama runner to start - progress 0.00"},
    ),
    ("upstream_server_error", 500, {"error": "concurrent.futures._base.TimeoutError"}),
    ("region_not_supported", 403, openai("Sorry, this service is unavailable in your location")),
    ("region_not_supported", 451, "Unavailable For Legal Reasons: blocked in your country"),
]
#: Words that resemble those of another code.
ALIKE = [
    # a value that is too small is no prompt that is too long
    ("bad_request", 422, {"detail": [{"loc": ["body", "top_k"], "msg": "Input should be greater than 0"}]}),
    ("bad_request", 400, openai("thinking.budget_tokens: Input should be greater than or equal to 1024")),
    ("bad_request", 400, openai("prompt must contain more than 0 tokens")),
    ("context_too_long", 400, openai("prompt must not be longer than 4096 tokens")),
    ("context_too_long", 400, openai("Input length should be no greater than 4096 tokens")),
    # a name in quotes, or of an option, is none of money or of a model
    ("bad_request", 400, openai("tools[3].function.parameters: property 'balance' is required")),
    ("bad_request", 400, openai("Schema error: property 'quota' is required")),
    ("bad_request", 400, openai("Unknown model parameter 'mirostat'")),
    ("bad_request", 400, openai("This model does not support the 'developer' role; unknown role")),
    # per second, and no limit
    ("bad_request", 400, openai("The audio input rate must be 16000 samples per second")),
    ("bad_request", 400, openai("frames per second must be > 0")),
    ("rate_limited", 413, openai("Limit 6000 tokens per minute, requested 9000")),
    # spent, under a label that stands for both
    ("quota_exceeded", 429, {"code": "resource-exhausted", "error": "Your team has used all available credits"}),
    ("rate_limited", 429, openai("Resource has been exhausted (e.g. check quota).", status="RESOURCE_EXHAUSTED")),
    ("quota_exceeded", 403, openai("The free tier of the model has been exhausted.")),
    # an address in the words is none of the path
    ("bad_request", 404, openai("No endpoints found that support tool use. To learn more about provider routing, visit: https://openrouter.ai/docs/provider-routing")),
    ("endpoint_not_found", 404, {"message": "no Route matched with those values"}),
    ("model_not_found", 404, {"error": "model 'hf.co/x/router-7b' not found"}),
    # the model
    ("model_not_found", 503, openai("No available channel for model foo", code="model_not_found")),
    ("model_not_found", 400, openai("Unable to access model x.", code="model_not_available")),
    ("model_not_found", 400, {"message": "The provided model identifier is invalid."}),
    ("model_not_found", 400, openai("The requested model is not supported.", code="model_not_supported")),
    ("bad_request", 400, openai("This model does not support image input", code="model_not_supported")),
    ("bad_request", 400, openai("json_schema is not for this model. It is not supported.")),
    ("region_not_supported", 403, openai("The distribution is configured to block access from your country.")),
]  # fmt: skip
CASES = (
    [("context_too_long", *case) for case in CONTEXT]
    + [("bad_request", *case) for case in BAD]
    + [("rate_limited", *case) for case in RATE]
    + [("quota_exceeded", *case) for case in SPENT]
    + OTHERS
    + MORE
    + ALIKE
)


@pytest.mark.parametrize(("code", "status", "body"), CASES)
def test_refusal_code_follows_from_its_words(code: str, status: int, body: object) -> None:
    """A refusal's code follows from its words, since servers use one status for different
    faults.
    """
    assert refusal(status, body).code == code


# --- words ----------------------------------------------------------------------------------------

WORDS = [
    # Gemini: a list; OpenRouter: JSON text one level deeper; LiteLLM: JSON inside a sentence
    (400, [openai("API key not valid, please pass a valid one", code=400)], ["API key not valid"]),
    (
        400,
        openai(
            "Provider returned error",
            metadata={"raw": '{"message":"A system role is not supported"}'},
        ),
        ["A system role is not supported"],
    ),
    (
        400,
        openai("Provider returned error", metadata={"raw": '{"error":{"message":"Deep words"}}'}),
        ["Deep words"],
    ),
    (400, openai("Provider returned error", metadata={"raw": "plain words"}), ["plain words"]),
    (
        400,
        openai('litellm.BadRequestError: OpenAIException - {"error":{"message":"No such voice"}}'),
        ["litellm.BadRequestError", "No such voice"],
    ),
    (
        400,
        openai("Error code: 400 - {'error': {'message': 'No such voice', 'type': 'x'}}"),
        ["No such voice"],
    ),
    # FastAPI, pydantic, Rails, Cloudflare, RFC 7807, Spring, OAuth, Ollama, Bedrock, Apigee, Cohere
    (
        422,
        {
            "detail": [
                {"type": "missing", "loc": ["body", "max_len"], "msg": "Field required"},
                {"loc": ["body", 3], "msg": "Odd"},
            ]
        },
        ["body.max_len: Field required", "body.3: Odd"],
    ),
    (
        422,
        {
            "object": "error",
            "message": {"detail": [{"loc": ["body", "x"], "msg": "Field required"}]},
        },
        ["body.x: Field required"],
    ),
    (400, {"detail": "Plain detail"}, ["Plain detail"]),
    (400, {"detail": {"error": "Deep detail"}}, ["Deep detail"]),
    (400, {"max_len": ["must be at most 4096"]}, ["max_len: must be at most 4096"]),
    (422, {"errors": {"max_len": ["must be at most 4096"]}}, ["max_len: must be at most 4096"]),
    (
        400,
        {
            "errors": [{"code": 7003, "message": "Could not route"}, {"message": "Second"}],
            "success": False,
        },
        ["Could not route", "Second"],
    ),
    (400, {"errors": ["One", "Two"]}, ["One", "Two"]),
    (
        400,
        {"type": "about:blank", "title": "Bad things", "status": 400, "detail": "Seven apples"},
        ["Seven apples"],
    ),
    (400, {"type": "about:blank", "title": "Bad things", "status": 400}, ["Bad things"]),
    (
        500,
        {
            "timestamp": "t",
            "status": 500,
            "error": "Internal Server Error",
            "message": "Real words",
            "path": "/v1",
        },
        ["Real words"],
    ),
    (
        400,
        {"error": "invalid_client", "error_description": "The client is unknown here"},
        ["The client is unknown here"],
    ),
    (
        500,
        {"error": "llama runner process has terminated"},
        ["llama runner process has terminated"],
    ),
    (400, {"Message": "Capital words"}, ["Capital words"]),
    (500, {"fault": {"faultstring": "Fault words", "detail": {"errorcode": "x"}}}, ["Fault words"]),
    (500, {"base_resp": {"status_code": 1013, "status_msg": "Inner words"}}, ["Inner words"]),
    (400, {"error_code": 336003, "error_msg": "Odd words"}, ["Odd words"]),
    (400, {"error": {"code": "model_not_ready_yet"}}, ["model_not_ready_yet"]),
    (500, '{"error":{"message":"Cut in the mid', ["Cut in the mid"]),
    (500, 'data: {"error":{"message":"As an event"}}\n\n', ["It said: As an event"]),
    (500, "Just text\r\n  on two lines", ["Just text on two lines"]),
    (500, '"A JSON text"', ["It said: A JSON text"]),
    (
        400,
        openai("Invalid schema: {'type': 'object'} is not allowed"),
        ["Invalid schema: {'type': 'object'} is not allowed"],
    ),
    # pages: nginx, Express, Python, Cloudflare, S3
    (
        400,
        "<html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n<body><h1>400</h1></body></html>",
        ["The plain HTTP request was sent to HTTPS port"],
    ),
    (
        500,
        "<!DOCTYPE html><html><head><title>Error</title></head><body><pre>Cannot read &#39;x&#39; of undefined</pre></body></html>",
        ["Cannot read 'x' of undefined"],
    ),
    (500, "<!-- x --><body><h1>Sorry,\n  down</h1><p>later</p></body>", ["Sorry, down"]),
    (
        502,
        "<html><style>b{}</style><p>Only a paragraph</p><script>x()</script></html>",
        ["It said: Only a paragraph"],
    ),
    (
        403,
        '<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>',
        ["Access Denied"],
    ),
    (500, "", ["500 Internal Server Error"]),
    (503, "null", ["503 Service Unavailable"]),
]


@pytest.mark.parametrize(("status", "body", "words"), WORDS)
def test_message_has_the_servers_words_in_one_line(
    status: int, body: object, words: list[str]
) -> None:
    """Words of every format are plain text in one line: no HTML, JSON or Python literal."""
    message = refusal(status, body).message
    for word in words:
        assert word in message
    if "Invalid schema" not in message:
        assert not [sign for sign in ("<", "{", "[{", "\r", "\n", "&#", "None") if sign in message]


@pytest.mark.parametrize("length", [10, 299, 300, 301, 5_000, 3_000_000])
def test_long_words_are_shortened(length: int) -> None:
    """The server's words are shortened to 300 characters, and a cut is marked."""
    message = refusal(500, openai("w" * length)).message
    assert len(message) < 400
    assert message.endswith("w" * 10 if length <= 300 else "w…")


@pytest.mark.parametrize("depth", [9, 10_000])
def test_deeply_nested_body_is_read_to_a_limit(depth: int) -> None:
    """A deeply nested body is read to a limit, quickly and without a fault."""
    for body in ("[" * depth + "]" * depth, '{"error":' * depth + "1" + "}" * depth):
        assert refusal(500, body).code == "upstream_server_error"


@pytest.mark.parametrize(
    "message_text",
    [f"Incorrect key: {KEY}.", f"GET /v1?key={KEY}&x=1", f"{'x' * 480}{KEY}", KEY, f"B {KEY}{KEY}"],
)
def test_key_is_masked_in_message_and_detail(message_text: str) -> None:
    """Neither the message nor the log's detail has the key, also where the text is cut."""
    for body in (
        openai(message_text),
        message_text,
        [openai(message_text)],
        {"detail": [{"loc": ["x"], "msg": message_text}]},
    ):
        error = refusal(401, body)
        assert KEY[:12] not in error.message + error.detail + repr(error)
        assert error.detail


def test_unforeseen_error_is_logged_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    """The traceback of an error that is not translated does not show the key."""
    try:
        raise KeyError(f"Bearer {KEY}")
    except KeyError as exc:
        error = to_upstream_error(exc, (KEY,))
    assert error.code == "internal"
    assert "KeyError" in caplog.text
    assert "[key]" in caplog.text
    assert KEY not in caplog.text


def test_key_masked_by_the_server_is_shown() -> None:
    """A key that the server has masked is shown, so that users know which key it is."""
    assert "sk-te***cdef" in refusal(401, openai("Incorrect API key: sk-te***cdef")).message


# --- how long to wait -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:10 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, None),  # it is over
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "999999"}, None),
        ({"retry-after-ms": "45000"}, 45.0),
        ({"retry-after-ms": "45000", "retry-after": "46"}, 45.0),
        ({"retry-after": "30s"}, 30.0),
        ({"x-ratelimit-reset-requests": "1m30s", "x-ratelimit-remaining-requests": "0"}, 90.0),
        ({"x-ratelimit-reset-tokens": "6ms", "x-ratelimit-remaining-tokens": "9"}, None),
        ({"x-ratelimit-reset-tokens": "250ms", "x-ratelimit-remaining-tokens": "0"}, 0.25),
        ({"x-ratelimit-reset": "60"}, 60.0),
        (
            {
                "anthropic-ratelimit-tokens-reset": "1970-01-01T00:01:00Z",
                "anthropic-ratelimit-tokens-remaining": "0",
            },
            20.0,
        ),
        ({"x-ratelimit-reset": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_delay_is_read_from_headers(headers: dict[str, str], seconds: float | None) -> None:
    """The delay is read from headers: seconds, milliseconds, a date, or the reset of a limit."""
    assert retry_delay(headers, 40.0) == seconds


def test_retry_delay_reads_reset_times_since_the_epoch() -> None:
    """The delay is read from reset times: milliseconds since the epoch (OpenRouter) or seconds
    (GitHub).
    """
    assert retry_delay({"x-ratelimit-reset": "1700000030"}, 1_700_000_000.0) == 30.0
    assert retry_delay({"x-ratelimit-reset": "1700000030000"}, 1_700_000_000.0) == 30.0


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ([openai("Too many requests", details=[{"retryDelay": "30s"}])], 30.0),
        ([openai("Too many requests", details=[{"retryDelay": "1.5s"}])], 1.5),
        (openai("Please try again in 20s."), 20.0),
        (openai("Please try again in 7.66s. Visit the docs for 3 more."), 7.66),
        (openai("Please try again in 6m0s."), 360.0),
        (openai("Please try again in 1h2m3.5s."), 3723.5),
        (openai("Please try again in 250ms."), 0.25),
        (openai("Please retry after 20 seconds."), 20.0),
        (openai("Rate limit exceeded. Try again in 2 minutes."), 120.0),
        (openai("Please wait 40000 seconds before retrying."), 40_000.0),
        (openai("The limit resets in 1 hour and 5 minutes."), 3900.0),
        (openai("Rate limit", metadata={"headers": {"Retry-After": "9"}}), 9.0),
        ({"error": "Too many requests", "retry_after": 12}, 12.0),
        ({"detail": "Request was throttled. Expected available in 17 seconds."}, 17.0),
        (openai("Limit of 60 requests per 1 minute"), None),
        (openai("Try again later."), None),
    ],
)
def test_retry_after_is_read_from_the_body(body: object, seconds: float | None) -> None:
    """The wait that Gemini, OpenAI, Groq, Azure and others send in the body alone is read."""
    error = refusal(429, body)
    assert error.retry_after == seconds
    assert error.retryable
    if seconds is not None and seconds >= 1:
        assert f"Try again in {-(-seconds // 1):.0f} s." in error.message


def test_request_larger_than_the_limit_is_not_retryable() -> None:
    """A request larger than the limit (7000 tokens of 6000 a minute) is not retryable."""
    words = "Request too large on tokens per minute (TPM): Limit 6000, Requested 7000"
    for status in (413, 429):
        error = refusal(status, openai(words, code="rate_limit_exceeded"), retry_after="5")
        assert (error.code, error.retryable) == ("rate_limited", False)
        assert "Try again in" not in error.message


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        *((status, True) for status in (408, 409, 425, 429, 500, 502, 503, 504, 520, 529)),
        *((status, False) for status in (400, 401, 402, 403, 404, 405, 410, 413, 422, 451)),
        *((status, False) for status in (501, 505)),
    ],
)
def test_empty_refusal_is_retryable_by_its_status(status: int, retryable: bool) -> None:
    """An empty refusal is retryable or not by its status."""
    assert refusal(status, "").retryable is retryable


def test_quota_fault_keeps_status_402_else_has_429() -> None:
    """A quota fault keeps status 402; any other becomes 429, as OpenAI's."""
    assert refusal(402, "").status == 402
    assert refusal(429, openai("x", code="insufficient_quota")).status == 429
    assert refusal(400, openai("Your credit balance is too low")).status == 429
    assert refusal(402, openai("x")).with_secrets_removed(("x" * 9,)).with_hint("h").status == 402


# --- in a stream ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "event", "code", "words"),
    [
        (openai("Boom 7"), "", "upstream_error", "Boom 7"),
        (openai("Boom 7", code=500), "", "upstream_error", "Boom 7"),
        ({"error": "Boom 7"}, "", "upstream_error", "Boom 7"),
        ([openai("Boom 7", code=503)], "", "upstream_error", "Boom 7"),
        ({"error": ["Boom 7"]}, "", "upstream_error", "Boom 7"),
        ({"error": True, "message": "Boom 7"}, "", "upstream_error", "Boom 7"),
        ({"object": "error", "message": "Boom 7"}, "", "upstream_error", "Boom 7"),
        ({"type": "error", "message": "Boom 7"}, "", "upstream_error", "Boom 7"),
        (
            {"type": "error", "error": {"type": "api_error", "message": "Boom 7"}},
            "",
            "upstream_error",
            "Boom 7",
        ),
        ({"message": "Boom 7", "code": 500}, "error", "upstream_error", "Boom 7"),
        ({"message": "Boom 7"}, "error", "upstream_error", "Boom 7"),
        ({"whatever": "Boom 7"}, "error", "upstream_error", "Boom 7"),
        ("Boom 7", "error", "upstream_error", "Boom 7"),
        ("Boom 7", "server_error", "upstream_error", "Boom 7"),
        (
            {"choices": None, "base_resp": {"status_code": 1000, "status_msg": "Boom 7"}},
            "",
            "upstream_error",
            "Boom 7",
        ),
        (
            {
                "choices": None,
                "base_resp": {"status_code": 1008, "status_msg": "Boom 7: the balance is used up"},
            },
            "",
            "quota_exceeded",
            "Boom 7",
        ),
        ({"detail": "Boom 7"}, "", "upstream_error", "Boom 7"),
        (
            {"detail": [{"loc": ["body", "x"], "msg": "Boom 7"}]},
            "",
            "upstream_error",
            "body.x: Boom 7",
        ),
        ([{"loc": ["body", "x"], "msg": "Boom 7"}], "", "upstream_error", "body.x: Boom 7"),
        ({"errors": [{"message": "Boom 7"}]}, "", "upstream_error", "Boom 7"),
        ({"success": False, "message": "Boom 7"}, "", "upstream_error", "Boom 7"),
        (
            {"code": "InternalError", "message": "Boom 7", "request_id": "x"},
            "",
            "upstream_error",
            "Boom 7",
        ),
        ({"code": 50001, "msg": "Boom 7"}, "", "upstream_error", "Boom 7"),
        ({"status": "failed", "message": "Boom 7"}, "", "upstream_error", "Boom 7"),
        (
            {"status": 500, "error": "Oops", "message": "Boom 7"},
            "",
            "upstream_error",
            "Boom 7",
        ),
        ({"error_code": 336100, "error_msg": "Boom 7"}, "", "upstream_error", "Boom 7"),
        ({"internalServerException": {"message": "Boom 7"}}, "", "upstream_error", "Boom 7"),
        ({"header": {"code": 10013, "message": "Boom 7"}}, "", "upstream_error", "Boom 7"),
        ({"result": {"error": "Boom 7"}}, "", "upstream_error", "Boom 7"),
        ({"event": "error", "data": {"message": "Boom 7"}}, "", "upstream_error", "Boom 7"),
        (
            {"type": "response.failed", "response": {"error": {"message": "Boom 7"}}},
            "",
            "upstream_error",
            "Boom 7",
        ),
        (
            {"choices": [{"delta": {"content": ""}, "finish_reason": "error"}], **openai("Boom 7")},
            "",
            "upstream_error",
            "Boom 7",
        ),
        (
            {"choices": [{"delta": {}, "error": {"message": "Boom 7", "code": 502}}]},
            "",
            "upstream_error",
            "Boom 7",
        ),
        (openai("Boom 7", type="overloaded_error"), "", "upstream_server_error", "Boom 7"),
        (openai("Boom 7", type="rate_limit_error"), "", "rate_limited", "Boom 7"),
        (openai("Boom 7", code=429), "", "rate_limited", "Boom 7"),
        (openai("Boom 7", code=402), "", "quota_exceeded", "Boom 7"),
        (openai("Boom 7", code="context_length_exceeded"), "", "context_too_long", "Boom 7"),
        (openai("Boom 7", code=401), "", "unauthorized", "Boom 7"),
    ],
)
def test_error_in_a_stream_is_recognised(value: object, event: str, code: str, words: str) -> None:
    """An error in a stream is recognised in every format, by its event's name or beside choices in
    a chunk.
    """
    error = parse_error(value, event=event)
    assert error is not None
    assert error.code == code
    assert " It said: " in error.message
    assert words in error.message


@pytest.mark.parametrize("code", [400, 403, 404, 422])
def test_refusal_inside_a_stream_is_not_retryable(code: int) -> None:
    """A refusal inside a stream, after status 200, is not retryable."""
    error = parse_error(openai("No endpoint of this model takes tools", code=code))
    assert error is not None
    assert not error.retryable


@pytest.mark.parametrize(
    "value",
    [
        {"choices": [{"delta": {"content": "a"}}], "error": None},
        {"choices": [{"delta": {"content": "a"}}], "error": ""},
        {"choices": [{"delta": {"content": "a"}}], "error": {}},
        {"choices": [{"delta": {"content": "a"}}], "error": {"code": 0, "message": ""}},
        {"error": {"code": None, "message": None, "type": None, "param": None}},
        {"error": {"code": 0, "message": ""}},
        {"type": "status", "data": {"message": "queued"}},
        {"choices": [{"delta": {"content": "a"}}], "code": 0, "message": "Success", "sid": "x"},
        {"choices": [{"delta": {"content": "a"}}], "message": "x", "code": 500},
        {
            "choices": [{"delta": {"content": "a"}}],
            "base_resp": {"status_code": 0, "status_msg": ""},
        },
        {"choices": [], "base_resp": {"status_code": 0, "status_msg": "success"}},
        {"choices": [], "usage": {"prompt_tokens": 3}},
        {"choices": [], "prompt_filter_results": [{"content_filter_results": {}}]},
        {"object": "chat.completion.chunk", "choices": [], "service_tier": "default"},
        {"code": 200, "msg": "ok", "data": {}},
        {"code": "success", "message": "", "data": {}},
        {"success": True, "errors": [], "messages": [], "result": {"response": "x"}},
        {"status": "in_progress", "message": "queued"},
        {"status": 200, "message": "fine"},
        {"type": "ping"},
        {"type": "message_start", "message": {"role": "assistant", "content": []}},
        {"model": "m", "message": {"role": "assistant", "content": "A"}, "done": False},
        {"detail": None},
        {"errors": []},
        {"error": False, "message": "fine"},
        {},
        [],
        [{"choices": [{"delta": {"content": "a"}}]}],
        "text",
        7,
        None,
        True,
    ],
)
def test_other_values_in_a_stream_are_no_error(value: object) -> None:
    """Chunks, pings, lists of results and reports of success in a stream are no errors."""
    assert parse_error(value) is None


def test_empty_error_event_is_no_error() -> None:
    """An empty error event, as some servers end every stream, is no error."""
    empty: list[object] = [None, "", {}, []]
    assert [parse_error(value, event="error") for value in empty] == [None] * 4


# --- hostile values -------------------------------------------------------------------------------


def tree(names: list[str], depth: int) -> object:
    return {name: tree(names, depth - 1) for name in names} if depth else ""


@pytest.mark.parametrize(
    "value",
    [
        {"code": "\u00b2", "message": "x"},
        {"status": "\u00b2", "message": "x", "code": 1},
        {"code": "1" * 5_000, "message": "x"},
        {"error": {"message": "x", "status": "\u00b2"}},
        {"error": {"message": "x", "retry_after": 10**400}},
        {"error": {"message": f"Rate limit: {'1' * 5_000} requested: 2", "code": "rate_limit"}},
        {"error": f"x {{'error': 'x', 'code': 0x{'f' * 9_000}}}"},
    ],
)
def test_odd_numbers_leave_the_error_an_error(value: object) -> None:
    """A code, status, limit or wait of any size and spelling is still an error."""
    assert parse_error(value) is not None


@pytest.mark.parametrize(
    "value",
    [
        {"error": {"message": "x", "retry_after": "1" * 200_000 + "x"}},
        {"error": {"message": "exceed" * 4_000}},
        {"error": {"message": "0" * 20_000}},
        {"error": {"message": "<h1>" * 5_000}},
        {"error": {"message": "<script" * 3_000}},
        {"error": {"message": "<!---->" * 3_000}},
        {"error": tree(["title", "description", "info", "body"], 8)},
    ],
)
def test_hostile_error_takes_bounded_time(value: object) -> None:
    """A hostile error is parsed in less than a second of CPU time."""
    start = time.process_time()
    assert parse_error(value) is not None
    assert time.process_time() - start < 1


def test_nested_lists_are_no_error_and_break_none() -> None:
    """900 nested lists are no error; beside a message they do not hide it."""
    value: list[Any] = []
    for _ in range(900):
        value = [value]
    assert parse_error({"error": value}) is None
    assert parse_error({"error": {"message": "x", "details": value}}) is not None


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<title>Busy", "Busy"),
        ("<head><title>Error</title><style>a</style></head><p>Come back later", "Come back later"),
        ("<p>Wait<script>var a;", "Wait"),
    ],
)
def test_unfinished_html_page_is_read(page: str, words: str) -> None:
    """An HTML page without end tags is read: its elements end with the page."""
    assert refusal(502, page).detail == words
