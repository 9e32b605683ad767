"""Chooses Halt's error code for an error from its message, labels and status.

The message and the labels decide; the status only if they do not, because servers use the same
status for different things. A code stands for the action that is needed.
"""

from __future__ import annotations

import re

from halt.errors import CODES
from halt.providers.error_body import ErrorInfo

WORDS_MAX = 2_000  # characters of an error's message that are searched


def _phrases(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_MONEY = (
    r"(?:(?<!disk )(?<!storage )quota|\bcredits?\b|\bbalance\b|\bbilling\b|\bfunds?\b|\bpayment"
    r"|\bspend(?:ing)?\b|\bprepaid\b|\bmoney\b|\barrears?\b|\boverdue\b|\binvoice"
    r"|\b(?:usage|monthly|weekly|daily|key) limit|free allocation)"
)
_GONE = (
    r"(?:insufficient|exceed|\bover\b|out of|used|exhaust|deplet|too low|not enough|\bno\b"
    r"|negative|reached|expired|required|\blimit|purchase|\bbuy\b|suspend|\blow\b|lack|\bneeds?\b"
    r"|more|left|spent|unpaid|past due|inactive|not active|doesn.t have|disabled|ran out|empty"
    r"|zero|add|increase|check|update)"
)
_QUOTA_USED_UP = _phrases(
    rf"{_MONEY}.{{0,80}}{_GONE}",
    rf"{_GONE}.{{0,80}}{_MONEY}",
    r"\bfree (?:tier|trial)\b.{0,60}\b(?:exhaust|exceed|used up|reached|expired|over\b|ended)",
    r"\btop.?up\b|\brecharge\b|payment required|pay your|budget has been exceeded|ExceededBudget",
    r"(?:余额|额度|配额).{0,12}(?:不足|用完|用尽|耗尽|超)|欠费|充值",
)
_QUOTA_LABELS = (
    *("insufficient_quota", "insufficient_balance", "insufficient_credit", "insufficient_fund"),
    *("insufficient_user_quota", "exceeded_current_quota", "quota_exceeded", "quota_exhausted"),
    *("quota_reached", "billing", "payment", "credit_limit", "credits_", "out_of_credit"),
    *("arrear", "budget_exceeded", "spend_limit", "spending_limit", "usage_limit"),
)
#: The same for money alone, since a quota may be a limit per time.
_MONEY_USED_UP = _phrases(
    r"(?:insufficient|exhaust\w{0,20}|used|out of|no|not enough|negative|too low).{0,30}"
    r"\b(?:credits?|balance|funds?)\b",
    r"\b(?:credits?|balance|funds?)\b.{0,30}\b(?:insufficient|exhausted|used up|too low|negative)",
)
#: A quoted name is that of a field or a function, and is no evidence.
_QUOTED_NAME = re.compile(r"(['\"`])[\w.\[\]/-]+\1")
_LINK = re.compile(r"\bhttps?://\S+")
_COUNTED = r"(?:\blimit|quota|exceed|requests?\b|\btokens?\b|\bcalls?\b|too many)"
_PERIOD = r"\b(?:per|each|every|an?|/)[ _-]?(?:sec|min|hour|day)(?:ond|ute)?s?\b"
_RATE = _phrases(
    r"rate.?limit|rate (?:is |was )?exceeded|too many (?:requests|concurrent)|throttl|slow down",
    r"concurren\w{0,20} (?:request|limit|connection|session|generation)",
    rf"{_COUNTED}.{{0,200}}?{_PERIOD}",
    rf"{_PERIOD}.{{0,200}}?{_COUNTED}",
    r"\b[rt]p[mdshi]\b",
    r"频率|并发|限流|速率|请求过多|请求数",
)
_RATE_LABELS = ("rate_limit", "throttl", "too_many_requests", "resource_exhausted", "concurrency")

_FLAGGED = _phrases(
    r"(?:input|prompt|content|message|request|text|image|output|completion)s?\b.{0,60}"
    r"\b(?:flagged|moderat\w{1,20}|inappropriate|unsafe content"
    r"|violat\w{1,20}.{0,40}(?:polic|guideline|terms|rules))",
    r"\b(?:requires? moderation|flagged (?:by|for|as)|content (?:management |usage |safety )?polic"
    r"|content.?filter|safety (?:system|filter|reason|polic)|usage polic|responsible ai"
    r"|prohibited (?:content|use)|inappropriate content|sensitive (?:content|word|information))",
    r"\bcontent (?:exists?|contains?|has|poses?) (?:\w+ )?risk|敏感|违规|不安全",
)
_FLAGGED_LABELS = (
    *("content_filter", "content_policy", "content_moderation", "moderation", "responsible_ai"),
    *("data_inspection", "sensitive", "safety", "flagged"),
    *("prohibited_content", "policy_violation"),
)
_REGION = _phrases(
    r"\b(?:countr(?:y|ies)|regions?|territor(?:y|ies)|location|jurisdiction)\b.{0,60}"
    r"\b(?:not (?:be )?(?:supported|available|allowed|permitted|served|accessible|eligible)"
    r"|un(?:supported|available)|restrict|block(?:ed)?\b|forbidden|prohibited|embargo)",
    r"\b(?:not (?:supported|available|allowed|permitted|served|offered|accessible)|unsupported"
    r"|unavailable|restricted|block(?:ed)?|prohibited)\b.{0,60}"
    r"\b(?:countr(?:y|ies)|your (?:region|area|location)|regions?\b(?!:)|territor(?:y|ies))",
    r"地区",
)
_REGION_LABELS = ("unsupported_country", "country_", "region_", "territory", "geo_", "location_not")
_KEY = _phrases(
    r"\b(?:invalid|incorrect|wrong|bad|missing|expired|no|malformed|revoked|disabled|unknown)\b"
    r"[^.]{0,20}\b(?:api.?key|access.?key|(?:auth\w{0,40}|access|bearer|api) token|credentials?)\b",
    r"\bapi.?(?:key|token)\b[^.]{0,40}\b(?:not (?:valid|found|provided|recogni)|invalid|incorrect"
    r"|expired|missing|required|revoked|disabled|malformed)",
    r"\bunauthenticated\b|authentication (?:failed|required|fails)",
)
_KEY_LABELS = ("invalid_api_key", "api_key_invalid", "authentication", "unauthenticated")
_LOADING = _phrases(
    r"\bloading (?:\w+ ){0,3}model\b",
    r"\b(?:is|are|still|currently) (?:\w+ ){0,3}"
    r"(?:loading|warming.?up|starting|initiali[sz]ing|spinning up|downloading)\b",
    r"\bbeing (?:loaded|started|initiali[sz]ed|downloaded)|\bnot (?:yet ready|ready yet)",
    r"\b(?:model|server) (?:is )?not ready\b|加载中|启动中",
)
_PLAIN = _phrases(r"\bhttp request\b.{0,30}\bhttps\b|plain http\b.{0,30}\b(?:https|ssl|tls)\b")
_BROKEN = _phrases(r"\b(?:fail|error|unable|could not|couldn.t|cannot|can.t|overload)")
_OVERLOADED = _phrases(
    r"overload|(?:at|over|out of|insufficient|no|lacks?|not enough).{0,20} capacity",
    r"high (?:demand|load|traffic)|temporarily unavailable",
    r"\b(?:server|model|engine|service|system|upstream)s?\b.{0,30}\bbusy\b",
    r"no (?:available|healthy|free) \w+|queue is full|繁忙|过载",
)
_OVERLOADED_LABELS = ("overloaded", "unavailable", "engine_busy", "capacity", "busy")

#: An option that the server does not know: other words in the message then describe the option.
_OPTION = _phrases(
    r"\b(?:unknown|unrecogni[sz]ed|unsupported|unexpected|undefined|extra|additional|no such)"
    r" (?:[\w-]+ )?"
    r"(?:option|param|parameter|field|argument|key|property|propertie|input|flag|attribute)s?\b",
    r"extra inputs are not permitted",
    r"did you mean",
)
_OPTION_LABELS = ("unsupported_parameter", "unknown_parameter", "extra_forbidden", "unknown_field")

_LONG = (
    r"(?:too (?:long|large|big|many)|exceed\w{0,10}"
    # "must be greater than 0" is about a value that is too small
    r"|(?<!must be )(?<!should be )(?<!must have )(?<!should have )(?<!must contain )"
    r"(?<!should contain )(?:longer|larger|greater|more|bigger) than|over(?:flow|run)\w{0,10}"
    r"|beyond|(?:does|do|will)(?: not|n.t) fit|above|past|over)"
)
_CONTEXT = _phrases(
    # the prompt is too long
    rf"(?<![\w.'\[])(?:prompt|inputs?|input (?:token|text|length|sequence)\w{{0,10}}"
    rf"|conversation|context"
    rf"|chat history|history|messages|token count|sequence|instruction)`?(?![\w\[.'])"
    rf".{{0,70}}\b{_LONG}",
    rf"{_LONG}.{{0,60}}\b(?:context|maximum (?:prompt|input)|prompt (?:length|limit)"
    rf"|input (?:length|limit|token)|model token limit|model.{{0,10}} maximum (?:model )?length)",
    # the request is over the limit of the context
    r"(?:maximum|max|available|model.s) (?:context|prompt|input|sequence) (?:length|size|window)"
    r"\b.{0,60}\b(?:however|but|request|you|tokens)",
    r"context.{0,20}(?:overflow|is full|not (?:large|big|long) enough|exceeded)"
    r"|context[_ -]length[_ -]exceeded",
    r"too many (?:input |prompt |total )?tokens|input tokens? exceeded",
    r"(?:reduce|shorten|shorter|decrease|trim|truncate).{0,40}"
    r"\b(?:messages|prompt|input|inputs|conversation|context|history)\b",
    r"range of input length|`?inputs`? (?:must|should) have (?:less|fewer)|while limit is",
    r"(?:上下文|输入|提示词|prompt|对话|文本).{0,12}(?:过长|超长|超出|超过|太长)",
)
_CONTEXT_LABELS = (
    *("context_length", "exceed_context", "context_window_exceed", "context_too_long"),
    *("context_size", "prompt_too_long", "input_too_long"),
    *("max_prompt_tokens_exceeded", "prompt_tokens_exceeded"),
)
_NOT_CONTEXT = _phrases(
    r"deadline|canceled|cancelled|timed? ?out|payload size|\bbytes\b|file|image"
)
_MAX = r"max(?:imum)?[ _]?(?:new|completion|output|generated)?[ _]?tokens\b|maxTokens|num_predict"
_ANSWER = _phrases(
    # the requested limit of the answer is too large
    rf"(?:{_MAX})\W.{{0,60}}?(?:too (?:large|big|high|many)|exceed|greater than|larger than|above"
    r"|must be|should be|at most|less than|> ?\d|cannot be|at least|invalid|range)",
    rf"range of (?:{_MAX})|at most \d+ (?:completion|output) tokens",
)
_PROMPT_TOKENS = re.compile(
    r"(?<!\d)(\d+)(?: tokens)? (?:in|from|of|for) (?:the |your |input |text )*"
    r"(?:messages|prompt|input)"
    r"|(?<!\d)(\d+) `?(?:input|prompt|inputs)`? tokens|(?:prompt|input)\w{0,20}\W{1,3}(\d+) tokens"
    r"|context limit: (\d+) \+",
    re.IGNORECASE,
)
_ANSWER_TOKENS = re.compile(
    r"(?<!\d)(\d+)(?: tokens)? (?:in|for|from|of) (?:the |your )?"
    r"(?:completion|output|answer|response)"
    r"|too large: (\d+)|(?<!\d)(\d+) [`'\"]?max_\w{0,40}tokens|max_\w{0,40}tokens\W{1,3}(\d+)"
    r"|limit: \d+ \+ (\d+)"
    r"|(?<!\d)(\d+) (?:output|completion) tokens",
    re.IGNORECASE,
)
_MODEL_MISSING = _phrases(
    r"\bmodels?\b[^;]{0,100}?"
    r"(?:\bnot (?:be )?(?:found|exist|available|deployed|served|loaded|known)"
    r"|does ?n[o']t exist|unknown|is not a valid|not a valid model|no longer|retired|decommission"
    r"|deprecated)",
    r"\bmodel (?:id|name|identifier)\b.{0,60}\binvalid",
    r"\bmodel\b(?:[^.;,]|\.\w){0,80}\bis not supported\W*(?:$|[.;,])",
    r"\b(?:unknown|invalid|no such|nonexistent|no) (?:model|deployment)\b(?: id| name)?"
    r"(?=[\W]*$|[:'\"` ])",
    r"deployment\b.{0,60}(?:not (?:found|exist)|does not exist)|no endpoints? found for"
    r"|not a valid model|模型不存在",
)
_MODEL_LABELS = (
    *("model_not_found", "model_not_available", "model_not_exist", "deployment_not_found"),
    *("unknown_model", "invalid_model"),
)
_MODEL = _phrases(
    r"\b(?:models?|deployment|engine|checkpoint|adapter|lora|endpoints? found|function)\b|模型"
)
_PATH = _phrases(
    r"cannot (?:get|post|put|head)|\bpages?\b|\broutes?\b|\burl\b|\buri\b|\bpath\b"
    r"|method not allowed"
)

_CAPABLE = _phrases(r"\b(?:support|takes?|accept|capab)")

_BY_STATUS = {
    401: "unauthorized",
    402: "quota_exceeded",
    403: "forbidden",
    404: "endpoint_not_found",
    405: "endpoint_not_found",
    408: "upstream_server_error",
    409: "upstream_server_error",
    410: "endpoint_not_found",
    413: "context_too_long",
    425: "upstream_server_error",
    429: "rate_limited",
    501: "bad_request",
    505: "bad_request",
}
#: Labels in place of a status, for errors in a stream.
_BY_LABEL = (
    ("unauthorized", "unauthorized"),
    ("invalid_api_key", "unauthorized"),
    ("authentication", "unauthorized"),
    ("permission", "forbidden"),
    ("forbidden", "forbidden"),
    ("invalid_request", "bad_request"),
    ("bad_request", "bad_request"),
    ("invalid_argument", "bad_request"),
    ("invalid_parameter", "bad_request"),
    ("model_not_found", "model_not_found"),
)
#: Statuses of refusals whose message decides the code.
_REFUSALS = frozenset((None, 400, 403, 404, 406, 409, 410, 412, 413, 415, 422, 451))


def classify_error(info: ErrorInfo, status: int | None) -> str:
    """Return the code of an error. `status`: of the response, or the one that the body names."""
    if info.has("loop_detected"):
        return "loop_detected"
    words = _LINK.sub("", info.message[:WORDS_MAX])
    is_option = info.has(*_OPTION_LABELS) or _OPTION.search(words) is not None
    is_rate = info.has(*_RATE_LABELS) or _RATE.search(words) is not None
    if info.has_reasons or info.has(*_FLAGGED_LABELS):
        return "content_filter"
    is_timed = is_option or info.retry_after is not None or _RATE.search(words) is not None
    if _is_quota_used_up(info, words, status, is_timed=is_timed):
        return "quota_exceeded"
    if code := _refusal_code(info, words, status, is_option=is_option):
        return code
    if status == 429 or (is_rate and not is_option):
        return "rate_limited"
    if (status or 0) >= 500 and info.has("model_not_found"):
        return "model_not_found"  # one-api, new-api: a gateway without a server for the model
    if _is_loading(info, words, status):
        return "model_loading"
    if status not in {403, 404} and not is_option and (code := _length_code(info, words)):
        return code
    if (
        status in _REFUSALS - {403}
        and not is_option
        and (info.has(*_MODEL_LABELS) or _MODEL_MISSING.search(words))
    ):
        return "model_not_found"
    return _code_by_status(info, words, status)


def _is_quota_used_up(info: ErrorInfo, words: str, status: int | None, *, is_timed: bool) -> bool:
    """Whether money or a quota is used up, so that waiting does not help."""
    if status == 402 or (info.has(*_QUOTA_LABELS) and not info.has("throttl")):
        return True
    if is_timed:
        return False
    pattern = _MONEY_USED_UP if info.has(*_RATE_LABELS) else _QUOTA_USED_UP
    return pattern.search(_QUOTED_NAME.sub("", words)) is not None


def _refusal_code(info: ErrorInfo, words: str, status: int | None, *, is_option: bool) -> str:
    """Return the code of a refusal for the region, the content or the key; empty for others."""
    if status not in _REFUSALS and status != 401:
        return ""
    if info.has(*_REGION_LABELS) or (_REGION.search(words) and not is_option):
        return "region_not_supported"
    if _FLAGGED.search(words) and not is_option:
        return "content_filter"
    if status == 401 or (status != 404 and (info.has(*_KEY_LABELS) or _KEY.search(words))):
        return "unauthorized"
    return ""


def _is_loading(info: ErrorInfo, words: str, status: int | None) -> bool:
    if status is not None and status < 500 and status not in {400, 404, 409, 425}:
        return False
    if info.has("model_loading", "loading_model", "model_not_ready"):
        return True
    return _LOADING.search(words) is not None and not _BROKEN.search(words)


def _length_code(info: ErrorInfo, words: str) -> str:
    """Return the code if the prompt or the requested answer is over a limit of the model."""
    is_labelled = info.has(*_CONTEXT_LABELS)
    is_prompt = is_labelled or (_CONTEXT.search(words) and not _NOT_CONTEXT.search(words))
    is_answer = _ANSWER.search(words) is not None
    if not is_prompt and not is_answer:
        return ""
    prompt, answer = _number(_PROMPT_TOKENS, words), _number(_ANSWER_TOKENS, words)
    if prompt and answer:  # both together are too long: the larger one decides
        return "context_too_long" if prompt >= answer else "bad_request"
    return "context_too_long" if is_labelled or not is_answer else "bad_request"


def _number(pattern: re.Pattern[str], words: str) -> int | None:
    match = pattern.search(words)
    return next((int(group) for group in match.groups() if group), None) if match else None


def _code_by_status(info: ErrorInfo, words: str, status: int | None) -> str:
    """Return the code if the message does not decide."""
    if status is None:
        codes = (code for part, code in _BY_LABEL if info.has(part))
        return next(codes, "upstream_server_error" if is_overloaded(info) else "upstream_error")
    names_model = _MODEL.search(words) and not _PATH.search(words) and not info.is_page
    if status == 404 and names_model:
        return "bad_request" if _CAPABLE.search(words) else "model_not_found"
    if status == 413 and (info.is_page or _NOT_CONTEXT.search(words)):
        return "bad_request"  # a limit on bytes
    if status == 400 and _PLAIN.search(words):
        return "endpoint_not_found"
    default_code = "upstream_server_error" if status >= 500 else "bad_request"
    return _BY_STATUS.get(status, default_code)


def is_overloaded(info: ErrorInfo) -> bool:
    """Whether the server says that it is overloaded."""
    return info.has(*_OVERLOADED_LABELS) or _OVERLOADED.search(info.message[:WORDS_MAX]) is not None


assert set(_BY_STATUS.values()) <= set(CODES)  # noqa: S101
