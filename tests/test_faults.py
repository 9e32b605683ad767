"""What an error of a model's server means: its code, its words, and whether to try again.

The bodies are what servers send; where one is known for it, its name stands beside it.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from halt.errors import UpstreamError
from halt.faults import error_of, fault, wait_of

KEY = "sk-test-0123456789abcdef"


def refusal(status: int, body: object, **headers: str) -> UpstreamError:
    """The error of a refusal with this body: JSON, or text as it is."""
    content = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
    response = httpx2.Response(status, content=content, headers=named, request=request)
    return fault(httpx2.HTTPStatusError("x", request=request, response=response), KEY)


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


# --- codes ----------------------------------------------------------------------------------------

CONTEXT = [
    # OpenAI, also without its label
    (400, openai("This model's maximum context length is 4096 tokens. However, your messages resulted in 9412 tokens. Please reduce the length of the messages.", code="context_length_exceeded")),
    (400, openai("This model's maximum context length is 4096 tokens. However, your messages resulted in 9412 tokens. Please reduce the length of the messages.")),
    (400, openai("Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens. Please reduce the length of the messages.")),
    # vLLM, by version
    (400, {"object": "error", "type": "BadRequestError", "code": 400, "message": "This model's maximum context length is 4096 tokens. However, you requested 9412 tokens (9212 in the messages, 200 in the completion). Please reduce the length of the messages or completion."}),
    (400, openai("This model's maximum context length is 4096 tokens. However, your request has 9412 input tokens. Please reduce the length of the input messages.")),
    (400, openai("The decoder prompt (length 9412) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no smaller than the number of text tokens.")),
    (400, openai("'max_tokens' or 'max_completion_tokens' is too large: 900. This model's maximum context length is 16384 tokens and your request has 16000 input tokens (900 > 16384 - 16000).")),
    # SGLang
    (400, openai("The input (9412 tokens) is longer than the model's context length (4096 tokens).")),
    (400, openai("Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 9612 tokens: 9412 tokens from the input messages and 200 tokens for the completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit.")),
    # TGI, Together
    (422, {"error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 9412", "error_type": "validation"}),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9412 `inputs` tokens and 100 `max_new_tokens`"}),
    # llama.cpp, LM Studio, Ollama
    (400, {"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9412, "n_ctx": 4096, "message": "request (9412 tokens) exceeds the available context size (4096 tokens), try increasing it"}}),
    (400, openai("the request exceeds the available context size. try increasing the context size or enable context shift")),
    (400, {"error": "Trying to keep the first 9412 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter input"}),
    (500, {"error": "the input length exceeds the context length"}),
    # Gemini, Anthropic, Bedrock, Mistral, Cohere, xAI, Groq, Moonshot, DashScope, Copilot, Cerebras, OpenRouter
    (400, openai("The input token count (1300000) exceeds the maximum number of tokens allowed (1048576).", code=400, status="INVALID_ARGUMENT")),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "input length and `max_tokens` exceed context limit: 195000 + 8192 > 200000, decrease input length or `max_tokens` and try again"}}),
    (400, openai("Input is too long for requested model.")),
    (400, {"message": "Too many input tokens. Max input tokens: 8000, request input token count: 9412"}),
    (400, {"object": "error", "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length", "type": "invalid_request_prompt", "code": "3051"}),
    (400, {"message": "too many tokens: size limit exceeded by 1000 tokens. Try using shorter or fewer inputs."}),
    (400, {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the request contains 200000 tokens."}),
    (400, openai("Please reduce the length of the messages or completion.", type="invalid_request_error")),
    (400, openai("Invalid request: Your request exceeded model token limit: 8192", type="invalid_request_error")),
    (400, openai("Range of input length should be [1, 30720]", code="invalid_parameter_error")),
    (400, openai("prompt token count of 70000 exceeds the limit of 64000", code="model_max_prompt_tokens_exceeded")),
    (400, openai("Current length is 9000 while limit is 8192", code="context_length_exceeded")),
    (400, openai("This endpoint's maximum context length is 32768 tokens. However, you requested about 40000 tokens (39000 of text input, 1000 in the output). Please reduce the length of either one, or use the \"middle-out\" transform to compress your prompt automatically.", code=400)),
    (400, openai("输入内容过长,请缩短后重试", code="1261")),
    (413, openai("Prompt is too long")),
]
BAD = [
    (400, openai("'max_tokens' or 'max_completion_tokens' is too large: 20000. This model's maximum context length is 16384 tokens and your request has 20 input tokens", type="BadRequestError", code=400)),
    (400, openai("This model's maximum context length is 16384 tokens. However, you requested 20020 tokens (20 in the messages, 20000 in the completion). Please reduce the length of the messages or completion.")),
    (400, openai("Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5020 tokens: 20 tokens from the input messages and 5000 tokens for the completion.")),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 20 `inputs` tokens and 8000 `max_new_tokens`"}),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens for claude-m"}}),
    (400, openai("`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the `context_window` for this model")),
    (400, openai("max_tokens is too large: 300000. This model supports at most 128000 completion tokens, whereas you provided 300000.", param="max_tokens")),
    (400, openai("Range of max_tokens should be [1, 8192]")),
    (400, openai("Unknown option context_window; did you mean n_ctx?", type="invalid_request_error")),
    (400, openai("Unrecognized request argument supplied: context_length")),
    (400, openai("Unknown parameter: 'moderation'.")),
    (400, openai("Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64, but got a string with length 80 instead.", code="string_above_max_length")),
    (400, openai("Invalid 'messages[1].name': string too long. Expected a string with maximum length 64")),
    (400, openai("Invalid value for 'temperature'.")),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "`max_tokens` must be greater than `thinking.budget_tokens`. The thinking budget exceeds it."}}),
    (400, openai("A system role is not supported")),
    (400, openai("this model does not support chat")),
    (404, openai("No endpoints found that support tool use. To learn more about provider routing, visit the docs")),
    (413, openai("The image is too large: at most 5 MB are allowed")),
    (400, openai("Request payload size exceeds the limit: 20971520 bytes.")),
    (501, openai("This server does not support embeddings")),
]
RATE = [
    (429, openai("Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s. You can increase your rate limit by adding a payment method to your account at https://platform.openai.com/account/billing.", type="requests", code="rate_limit_exceeded")),
    (429, openai("Rate limit reached for model `m` on tokens per day (TPD): Limit 100000, Used 99000, Requested 5000. Please try again in 57m36s. Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing", code="rate_limit_exceeded")),
    (429, openai("You exceeded your current quota, please check your plan and billing details.\n* Quota exceeded for metric: generate_content_free_tier_requests, limit: 10\nPlease retry in 22.5s.", code=429, status="RESOURCE_EXHAUSTED", details=[{"retryDelay": "22s"}])),
    (429, openai("Requests to the ChatCompletions_Create Operation under Azure OpenAI API have exceeded token rate limit of your current pricing tier. Please retry after 20 seconds. To increase the quota, visit the portal.", code="429")),
    (429, {"type": "error", "error": {"type": "rate_limit_error", "message": "This request would exceed your organization's rate limit of 40,000 input tokens per minute. Reduce the prompt length or the maximum tokens requested."}}),
    (429, openai("Too many tokens, please wait before trying again.")),
    (429, openai("slow down")),
    (429, {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded, please increase your quota limit."}),
    (429, openai("Your account org-x request reached max request: 3, please try again after 1 seconds", type="rate_limit_reached_error")),
    (429, {"message": "Requests rate limit exceeded"}),
    (400, openai("Rate limit is exceeded: too many requests for this key")),
    (403, openai("Request rate limit exceeded, 60 requests per minute are allowed")),
    (503, openai("Too many concurrent requests")),
    (429, openai("您的账户已达到速率限制,请您控制请求频率", code="1302")),
]
SPENT = [
    (429, openai("You went over your current quota: look at your plan and billing details", type="insufficient_quota", code="insufficient_quota")),
    (429, openai("You exceeded your current quota, please check your plan and billing details.")),
    (402, openai("Insufficient Balance")),
    (402, openai("This request requires more credits, or fewer max_tokens. You requested up to 64000 tokens, but can only afford 1234.", code=402)),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."}}),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."}}),
    (403, {"code": "The caller does not have permission to execute the specified operation", "error": "Your newly created teams doesn't have any credits yet."}),
    (403, openai("Key limit exceeded (monthly limit). Manage it in your settings", code=403)),
    (401, openai("You exceeded your current quota, please check your billing details", type="insufficient_quota", code=401)),
    (429, openai("Your account org-x is suspended, please check your plan and billing details", type="exceeded_current_quota_error")),
    (400, openai("Budget has been exceeded! Current cost: 1.0, Max budget: 0.5", type="budget_exceeded", code="400")),
    (429, openai("余额不足或无可用资源包,请充值。", code="1113")),
    (400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}),
    (403, openai("user quota is not enough", type="new_api_error")),
    (429, {"errors": [{"message": "AiError: you have used up your daily free allocation of 10,000 neurons", "code": 4006}], "success": False}),
    (412, openai("Account suspended: your spending limit was reached")),
    (402, "Payment Required"),
    (402, ""),
]
OTHERS = [
    ("region_not_supported", 403, openai("Country, region, or territory not supported", code="unsupported_country_region_territory", type="request_forbidden")),
    ("region_not_supported", 400, openai("User location is not supported for the API use.", status="FAILED_PRECONDITION")),
    ("region_not_supported", 403, openai("This model is not available in your region.", code=403)),
    ("region_not_supported", 403, {"type": "error", "error": {"type": "forbidden", "message": "Access to Anthropic models is not allowed from unsupported countries, regions, or territories."}}),
    ("content_filter", 403, openai('m requires moderation on A. Your input was flagged for "violence". No credits were charged.', code=403, metadata={"reasons": ["violence"], "flagged_input": "x"})),
    ("content_filter", 400, openai("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", code="content_filter", status=400, innererror={"code": "ResponsibleAIPolicyViolation"})),
    ("content_filter", 400, openai("Your request was rejected as a result of our safety system.", code="content_policy_violation")),
    ("content_filter", 400, openai("Input data may contain inappropriate content.", code="data_inspection_failed")),
    ("content_filter", 400, openai("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301")),
    ("unauthorized", 401, openai("Incorrect API key provided: sk-ab***ef.", code="invalid_api_key")),
    ("unauthorized", 401, ""),
    ("unauthorized", 401, {"statusCode": 401, "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an active subscription."}),
    ("unauthorized", 400, [openai("API key not valid, please pass a valid one", code=400, status="INVALID_ARGUMENT")]),
    ("unauthorized", 403, openai("Your API key has expired")),
    ("forbidden", 403, openai("You are not allowed to sample from this model", type="permission_error")),
    ("forbidden", 403, "<html><head><title>Attention Required! | Cloudflare</title></head></html>"),
    ("model_not_found", 404, openai("The model `m` does not exist or you do not have access to it.", code="model_not_found")),
    ("model_not_found", 404, openai("model 'm' not found, try pulling it first")),
    ("model_not_found", 404, {"type": "error", "error": {"type": "not_found_error", "message": "model: m"}}),
    ("model_not_found", 404, openai("models/m is not found for API version v1main, or is not supported for generateContent.", status="NOT_FOUND")),
    ("model_not_found", 404, openai("The API deployment for this resource does not exist.", code="DeploymentNotFound")),
    ("model_not_found", 404, openai("No endpoints found for a/b.", code=404)),
    ("model_not_found", 400, openai("m is not a valid model ID", code=400)),
    ("model_not_found", 400, {"object": "error", "message": "Invalid model: m", "type": "invalid_model", "code": "1500"}),
    ("model_not_found", 400, {"code": 20012, "message": "Model does not exist. Please check it carefully.", "data": None}),
    ("endpoint_not_found", 404, "<html><head><title>404 Not Found</title></head></html>"),
    ("endpoint_not_found", 404, {"detail": "Not Found"}),
    ("endpoint_not_found", 404, openai("Not Found")),
    ("endpoint_not_found", 404, "404 page not found"),
    ("endpoint_not_found", 404, "<pre>Cannot POST /v1/chat/completions</pre>"),
    ("endpoint_not_found", 404, openai("Invalid URL (POST /v1/models/chat/completions)", type="invalid_request_error")),
    ("endpoint_not_found", 404, ""),
    ("endpoint_not_found", 405, {"detail": "Method Not Allowed"}),
    ("model_loading", 503, openai("Loading model", type="unavailable_error", code=503)),
    ("model_loading", 503, {"error": "Model m is currently loading", "estimated_time": 20.0}),
    ("model_loading", 503, {"detail": "The server is still starting up, please wait"}),
    ("model_loading", 500, openai("The model is being loaded")),
    ("upstream_server_error", 500, openai("error loading model: unable to allocate the buffer")),
    ("upstream_server_error", 500, openai("this model needs 8.4 GiB of memory, and only 5.5 GiB are free")),
    ("upstream_server_error", 500, "context deadline exceeded while the model was awaited"),
    ("upstream_server_error", 502, "<html><head><title>502 Bad Gateway</title></head></html>"),
    ("upstream_server_error", 503, openai("The model is overloaded. Please try again later.", status="UNAVAILABLE")),
    ("upstream_server_error", 529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    ("upstream_server_error", 500, "Internal Server Error"),
    ("upstream_server_error", 503, "upstream connect error or disconnect/reset before headers"),
    ("upstream_server_error", 500, "load balancer: no healthy upstream"),
    ("upstream_server_error", 507, "disk quota exceeded"),
    ("upstream_server_error", 408, openai("Request timed out")),
    ("upstream_server_error", 409, openai("Conflict")),
    ("upstream_server_error", 425, ""),
]
CASES = (
    [("context_too_long", *case) for case in CONTEXT]
    + [("bad_request", *case) for case in BAD]
    + [("rate_limited", *case) for case in RATE]
    + [("quota_exceeded", *case) for case in SPENT]
    + OTHERS
)


@pytest.mark.parametrize(("code", "status", "body"), CASES)
def test_a_refusal_is_told_by_what_it_says(code: str, status: int, body: object) -> None:
    """The words decide: servers use the same status for different things."""
    assert refusal(status, body).code == code
