"""What the provider on loopback answers to Google's SDK, by the Gemini API and as Vertex does."""

from __future__ import annotations

import json

USAGE = {
    "promptTokenCount": 9,
    "toolUsePromptTokenCount": 2,
    "cachedContentTokenCount": 4,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 2,
    "totalTokenCount": 18,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}, {"modality": "AUDIO", "tokenCount": 1}],
}
FACTS = {"modelVersion": "gemini-2.5-flash", "responseId": "resp-1"}
CALL = {"id": "call-1", "name": "weather", "args": {"city": "Paris"}}
PICTURE = {"mimeType": "image/png", "data": "AAAA" * 1_000}
ERROR = f"data: {json.dumps({'error': {'code': 503, 'message': 'Overloaded', 'status': 'UNAVAILABLE'}})}\n\n"


def _said(contents):
    """Return the names of all parts that were sent."""
    return {name for content in contents for part in content["parts"] for name in part}


def _answer(body, words):
    """Return the parts of an answer; a stream gives them one by one."""
    config = body.get("generationConfig", {})
    parts = [{"text": word} for word in words]
    if config.get("responseMimeType") == "application/json":
        parts = [{"text": '{"city":'}, {"text": '"Paris"}'}]
    if config.get("thinkingConfig"):
        parts.insert(0, {"text": "Let me see.", "thought": True})
    if "IMAGE" in config.get("responseModalities", ()):
        parts.append({"inlineData": PICTURE})
    if body.get("tools") and "functionResponse" not in _said(body["contents"]):
        parts = [{"functionCall": CALL, "thoughtSignature": "AAAA"}]
    return parts


def _chunk(parts, reason=None, index=0):
    ending = {"finishReason": reason} if reason else {}
    candidate = {"content": {"role": "model", "parts": parts}, "index": index, **ending}
    return {"candidates": [candidate], "usageMetadata": USAGE, **FACTS}


def _joined(parts):
    if {tuple(part) for part in parts} == {("text",)}:
        return [{"text": "".join(part["text"] for part in parts)}]
    return parts


def generate(body, words, arguments):
    if "forbidden" in json.dumps(body["contents"]):
        return {
            "promptFeedback": {"blockReason": "SAFETY"},
            "usageMetadata": {"promptTokenCount": 9},
            **FACTS,
        }
    count = body.get("generationConfig", {}).get("candidateCount") or 1
    whole = [_chunk(_joined(_answer(body, words)), "STOP", index) for index in range(count)]
    return {**whole[0], "candidates": [each["candidates"][0] for each in whole]}


def chunks(body, words, arguments):
    parts = _answer(body, words)
    for number, part in enumerate(parts, 1):
        yield f"data: {json.dumps(_chunk([part], 'STOP' if number == len(parts) else None))}\r\n\r\n"


def _vector():
    return {"values": [1.0, 2.0, 3.0]}


def embed_many(body, words, arguments):
    return {"embeddings": [_vector() for _ in body["requests"]]}


def embed_one(body, words, arguments):
    return {"embedding": _vector(), "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}}


def predict(body, words, arguments):
    if "prompt" in body["instances"][0]:
        return {"predictions": [{"bytesBase64Encoded": "AAAA", "mimeType": "image/png"}]}
    found = {**_vector(), "statistics": {"token_count": 3, "truncated": False}}
    return {"predictions": [{"embeddings": found} for _ in body["instances"]]}


ANSWERS = {
    ":generateContent": (generate, None),
    ":streamGenerateContent": (None, chunks),
    ":batchEmbedContents": (embed_many, None),
    ":embedContent": (embed_one, None),
    ":predict": (predict, None),
    ":countTokens": (lambda *_: {"totalTokens": 9}, None),
}
