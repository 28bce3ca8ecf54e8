"""A judge behind an OpenAI-compatible endpoint: /v1/chat/completions, over the standard library's HTTP client."""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from rewarden.judging.answers import Answer, Question
from rewarden.judging.replies import MalformedReply, read_reply
from rewarden.judging.templates import Template
from rewarden.messages import Message

logger = logging.getLogger(__name__)

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may pass."""
LONGEST_WAIT = 60.0
"""Seconds; no wait between attempts is longer, whatever the endpoint asks for."""
HOPELESS = 10
"""So many unreadable replies, when they are more than half of all so far, end the work."""


class EndpointError(OSError):
    """The endpoint refused, or went on failing, or its replies cannot be read."""


@dataclass(frozen=True)
class ChatEndpoint:
    """Asks a model that a server runs, a few questions at a time.

    Temperature 0; log-probabilities are asked for, and used where the reply has them. Replies that name no answer are not
    asked for again: at temperature 0 they would mostly come back.
    """

    url: str
    """Base of the interface, such as http://localhost:8000/v1."""
    model: str
    """Name of the model there."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key; "" for none, and nothing is sent when it is not set. The key itself is read when a
    request is made, and stands in no record, message or log."""
    timeout: float = 120.0
    """Seconds without a byte after which an attempt counts as failed."""
    attempts: int = 6
    """Per question, when the endpoint is overloaded, down or talks nonsense."""
    backoff: float = 1.0
    """Seconds before the second attempt; twice as long before each further one, unless the endpoint says when to come back."""
    workers: int = 8
    """Questions under way at the same time."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Added to every request; None takes a field out."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
        ):
            raise ValueError(
                f"got the address {_without_secrets(self.url)}, expected http://HOST/v1 or https://HOST/v1 without user name or "
                "query; name the environment variable that holds the key instead"
            )
        if self.attempts < 1 or self.workers < 1 or not self.timeout > 0 or not self.backoff >= 0:
            raise ValueError(
                f"attempts is {self.attempts}, workers {self.workers}, timeout {self.timeout} and backoff {self.backoff}; "
                "the first two must be at least 1, the timeout positive, the backoff at least 0 seconds"
            )

    @property
    def record(self) -> dict[str, Any]:
        """Address, model and what is added to requests; the key is not part of it."""
        return {"url": self.url, "model": self.model, "extra": dict(self.extra)}

    def __call__(
        self,
        template: Template,
        groups: Sequence[Sequence[Question]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[Answer]]:
        """Answers to all questions; see `rewarden.judging.answers.Answerer`.

        Raises:
            EndpointError: When the endpoint refuses or goes on failing, or when most replies cannot be read.
        """
        asked = [template.messages(each.prompt, *each.completions) for group in groups for each in group]
        seen = unreadable = 0
        found: list[list[Answer]] = []
        with closing(self._all(asked, template)) as replies:
            for number, group in enumerate(groups):
                answers = []
                for answer in islice(replies, len(group)):
                    seen, unreadable = seen + 1, unreadable + (not answer.is_readable)
                    if unreadable >= HOPELESS and 2 * unreadable > seen:
                        raise EndpointError(_hopeless(unreadable, seen, template))
                    answers.append(answer)
                found.append(answers)
                if progress is not None:
                    progress(number)
        return found

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Characters of each text: only the server knows the tokens."""
        return [len(text) for text in texts]

    def _all(self, asked: Sequence[list[Message]], template: Template) -> Generator[Answer, None, None]:
        """Answers in the order of the questions; when one fails, the others are given up."""
        pool, stop = ThreadPoolExecutor(self.workers), threading.Event()

        def ask(messages: list[Message]) -> Answer:
            if stop.is_set():
                raise EndpointError("given up, because another question failed")
            try:
                return self.ask(messages, template, stop=stop)
            except BaseException:
                stop.set()
                raise

        try:
            yield from pool.map(ask, asked)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def ask(self, messages: Sequence[Message], template: Template, *, stop: threading.Event | None = None) -> Answer:
        """The answer to one question, after as many attempts as it takes; none follows once `stop` is set.

        Raises:
            EndpointError: When the last attempt failed, or the endpoint refused.
        """
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": 16,
            "logprobs": True,
            "top_logprobs": 20,
        }
        body = {key: value for key, value in (body | dict(self.extra)).items() if value is not None}
        stop = threading.Event() if stop is None else stop
        for attempt in range(1, self.attempts + 1):
            wait = None
            try:
                return read_reply(self._post(body), template)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"HTTP {error.code}: {self._redacted(_detail(error))}"
                    wait = error.headers.get("Retry-After")
                if error.code not in RETRIED:
                    raise EndpointError(self._refused(reason)) from None
            except (OSError, http.client.HTTPException, MalformedReply, ValueError) as error:
                reason = self._redacted(f"{type(error).__name__}: {error}")
            if attempt < self.attempts:
                pause = self._pause(attempt, wait)
                logger.debug("attempt %d failed (%s), next in %.1f s", attempt, reason, pause)
                if stop.wait(pause):
                    break
        raise EndpointError(
            f"{self.url} failed {attempt} times in a row, last with {reason}; see whether the server is up, then try again "
            "with fewer questions at a time"
        )

    def _post(self, body: Mapping[str, Any]) -> Any:
        """The decoded reply to one request."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/")
        address = address if address.endswith("/chat/completions") else f"{address}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        with _OPENER.open(request, timeout=self.timeout) as response:
            return json.loads(response.read())

    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""

    def _redacted(self, text: str) -> str:
        """The text without the key, which servers like to repeat."""
        key = self._key()
        return text.replace(key, "***") if key else text

    def _pause(self, attempt: int, asked: str | None) -> float:
        """Seconds to wait: what the endpoint asked for, else twice as long every time, and a little at random."""
        if asked is not None and re.fullmatch(r"\d+(\.\d+)?", asked.strip(), re.ASCII):
            return min(float(asked), LONGEST_WAIT)
        # At random, so that workers which failed together do not come back together.
        return min(self.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25), LONGEST_WAIT)

    def _refused(self, reason: str) -> str:
        name = self.api_key_env
        has_key = "is set" if self._key() else "is not set"
        hint = f"the variable {name} {has_key}" if name else "no API key was sent"
        return (
            f"{self.url} refused the question to {self.model} ({reason}); correct the address, the model, or the key ({hint}), "
            "or take out what the endpoint does not know with extra fields such as "
            '{"logprobs": null, "top_logprobs": null}'
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address; it becomes an error with its status instead."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _detail(error: urllib.error.HTTPError) -> str:
    """What the endpoint says about an error, in one line."""
    try:
        text = error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    # A body of another shape is shown as it is.
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(text)["error"]
        text = said["message"] if isinstance(said, dict) else said
    return " ".join(str(text).split())[:240] or str(error.reason)


def _hopeless(unreadable: int, seen: int, template: Template) -> str:
    return (
        f"{unreadable} of the first {seen} replies named none of {', '.join(template.answers)}; take a model that follows "
        'instructions, allow more tokens where it reasons first (extra fields such as {"max_tokens": 2000}), or edit the template'
    )


def _without_secrets(url: str) -> str:
    """The address as far as it can be shown."""
    return re.sub(r"//[^/@]*@", "//***@", url.partition("?")[0])
