"""A judge behind an OpenAI-compatible endpoint: /v1/chat/completions, over the standard library's HTTP client."""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import queue
import random
import re
import threading
import time
import urllib.error
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rewarden.files import shown
from rewarden.judging.answers import Answer, Question
from rewarden.judging.kept_answers import KeptAnswers, question_key
from rewarden.judging.redaction import redacted
from rewarden.judging.replies import ImpossibleReply, read_reply
from rewarden.judging.templates import Template
from rewarden.judging.transport import Halt, post
from rewarden.messages import Message

logger = logging.getLogger(__name__)

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may pass."""
LONGEST_WAIT = 60.0
"""Seconds; no wait between attempts is longer, whatever the endpoint asks for."""
MOST_FAILURES = 100
"""So many failed requests, when they are more than the answers, end the work, however few attempts a question has had."""
HOPELESS = 10
"""So many unreadable replies, when they are more than half of all so far, end the work."""

_READ = 20_000  # characters of a server's words that are looked at


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
    """Seconds that one attempt may take, from the connection to the last byte of the reply."""
    patience: float = 300.0
    """Seconds that one question may take, all attempts and pauses together."""
    attempts: int = 6
    """Per question, when the endpoint is overloaded, down or talks nonsense."""
    backoff: float = 1.0
    """Seconds before the second attempt; twice as long before each further one, unless the endpoint says when to come back."""
    workers: int = 8
    """Questions under way at the same time."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Added to every request; None takes a field out."""
    kept: KeptAnswers | None = field(default=None, compare=False, repr=False)
    """Where answers are kept as they come; what is there already is not asked for again."""

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
        times = (self.timeout, self.patience)
        if self.attempts < 1 or self.workers < 1 or not all(0 < t < math.inf for t in times) or not self.backoff >= 0:
            raise ValueError(
                f"attempts is {self.attempts}, workers {self.workers}, timeout {self.timeout}, patience {self.patience} and "
                f"backoff {self.backoff}; the first two must be at least 1, the next two positive and finite, the backoff at "
                "least 0 seconds"
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
        try:
            return self._groups(template, groups, progress)
        except EndpointError as error:
            if self.kept is None:
                raise
            raise EndpointError(f"{error}{self.kept.words()}") from None
        finally:
            if self.kept is not None:
                self.kept.close()

    def _groups(
        self, template: Template, groups: Sequence[Sequence[Question]], progress: Callable[[int], object] | None
    ) -> list[list[Answer]]:
        self._key()
        seen = unreadable = 0
        found: list[list[Answer]] = []
        with closing(self._all(groups, template)) as replies:
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

    def _all(self, groups: Sequence[Sequence[Question]], template: Template) -> Generator[Answer, None, None]:
        """Answers in the order of the questions; when one fails, the others are given up.

        The threads are daemons and nobody joins them: Ctrl-C ends the process at once, whatever they wait for.
        """
        questions = [each for group in groups for each in group]
        halt = Halt()
        waiting = iter(enumerate(questions))
        lock = threading.Lock()
        done: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()
        attempts = _Attempts()

        def work() -> None:
            while not halt.is_set():
                with lock:
                    place, question = next(waiting, (-1, None))
                if question is None:
                    return
                try:
                    done.put((place, self._answered(question, template, halt, attempts)))
                except BaseException as error:
                    done.put((place, error))
                    return

        for _ in range(min(self.workers, len(questions))):
            threading.Thread(target=work, daemon=True, name="judge").start()
        found: dict[int, Answer] = {}
        try:
            for place in range(len(questions)):
                while place not in found:
                    number, answer = done.get()
                    if isinstance(answer, BaseException):
                        raise answer
                    found[number] = answer
                yield found.pop(place)
        finally:
            halt.set()

    def _answered(self, question: Question, template: Template, halt: Halt, attempts: _Attempts) -> Answer:
        """The answer that is kept, or one that is asked for and kept."""
        if self.kept is None:
            return self._asked(template.messages(question.prompt, *question.completions), template, halt, attempts)
        key = question_key(self.record, template.record, question.prompt, question.completions)
        found = self.kept.get(key)
        if found is None:
            messages = template.messages(question.prompt, *question.completions)
            found = self._asked(messages, template, halt, attempts)
            if found.is_readable:  # another try may do better
                self.kept.add(key, found)
        return found

    def ask(self, messages: Sequence[Message], template: Template) -> Answer:
        """The answer to one question, after as many attempts as it takes.

        Raises:
            EndpointError: When the last attempt failed, or the endpoint refused.
        """
        return self._asked(messages, template, Halt(), _Attempts())

    def _asked(self, messages: Sequence[Message], template: Template, halt: Halt, attempts: _Attempts) -> Answer:
        body = self._body(messages)
        end = time.monotonic() + self.patience
        for attempt in range(1, self.attempts + 1):
            found = self._tried(body, template, min(self.timeout, end - time.monotonic()), halt)
            attempts.note(failed=isinstance(found, _Failure))
            if not isinstance(found, _Failure):
                return found
            failure, left, asked = found, end - time.monotonic(), _seconds(found.retry_after)
            if asked is not None and asked > left:
                raise EndpointError(
                    f"{self.url} asks to come back in {asked:,.0f} s ({failure.reason}), and a question waits "
                    f"{self.patience:g} s at most; try again later"
                )
            pause = self._pause(attempt, failure.retry_after)
            if attempts.are_hopeless or attempt == self.attempts or pause >= left:
                break
            logger.debug("attempt %d failed (%s), next in %.1f s", attempt, failure.reason, pause)
            if halt.wait(pause):
                raise EndpointError("given up, because another question failed")
        raise EndpointError(
            f"{self.url} failed {attempt} times in a row, last with {failure.reason}{attempts.words()}; see whether the server "
            "is up, then try again with fewer questions at a time"
        )

    def _body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """What a request says."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": 16,
            "logprobs": True,
            "top_logprobs": 20,
        }
        return {name: value for name, value in (body | dict(self.extra)).items() if value is not None}

    def _tried(self, body: Mapping[str, Any], template: Template, seconds: float, halt: Halt) -> Answer | _Failure:
        """The answer to one request, or why another may do better.

        Raises:
            EndpointError: When none will.
        """
        key = self._key()
        try:
            return read_reply(self._post(body, key, max(seconds, 0.001), halt), template)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}: {_detail(error, key)}"
            if error.code not in RETRIED:
                raise EndpointError(self._refused(reason, key)) from None
            return _Failure(reason, error.headers.get("Retry-After") if error.headers else None)
        except ImpossibleReply as error:
            raise EndpointError(self._impossible(_line(str(error), key))) from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            return _Failure(f"{type(error).__name__}: {_line(str(error), key)}", None)

    def _post(self, body: Mapping[str, Any], key: str, seconds: float, halt: Halt) -> Any:
        """The decoded reply to one request."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/")
        address = address if address.endswith("/chat/completions") else f"{address}/chat/completions"
        return post(address, body, headers, seconds=seconds, halt=halt)

    def _key(self) -> str:
        """The key; "" where there is none.

        Raises:
            EndpointError: When no header can hold it.
        """
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        odd = next((place for place, letter in enumerate(key, start=1) if not "!" <= letter <= "~"), None)
        if odd is not None:
            raise EndpointError(
                f"the variable {self.api_key_env} holds a blank, a line break or another character that no key has, at place "
                f"{odd} of {len(key)}; export the key alone"
            )
        return key

    def _pause(self, attempt: int, header: str | None) -> float:
        """Seconds to wait: what the endpoint asked for, else twice as long every time, and a little at random."""
        asked = _seconds(header)
        if asked is not None:
            return min(asked, LONGEST_WAIT)
        # At random, so that workers which failed together do not come back together.
        return min(self.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25), LONGEST_WAIT)

    def _refused(self, reason: str, key: str) -> str:
        name = self.api_key_env
        hint = f"the variable {name} is {'set' if key else 'not set'}" if name else "no API key was sent"
        return (
            f"{self.url} refused the question to {self.model} ({reason}); correct the address, the model, or the key ({hint}), "
            "or take out what the endpoint does not know with extra fields such as "
            '{"logprobs": null, "top_logprobs": null}'
        )

    def _impossible(self, reason: str) -> str:
        return (
            f"{self.url} sent log-probabilities that are none ({reason}); mend the server, or do without them with the extra "
            'fields {"logprobs": null, "top_logprobs": null}'
        )


class _Failure(NamedTuple):
    """A request that brought no answer, and may the next time."""

    reason: str
    """Without the key, fit for a terminal."""
    retry_after: str | None
    """What the header of this name says."""


class _Attempts:
    """How the requests of a run went, all questions together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered = self._failed = 0

    def note(self, *, failed: bool) -> None:
        """One more request is over."""
        with self._lock:
            self._failed += failed
            self._answered += not failed

    @property
    def are_hopeless(self) -> bool:
        """Whether so much failed that going on would be no use."""
        return self._failed >= MOST_FAILURES and self._failed > self._answered

    def words(self) -> str:
        """Of how many requests, where that is why the work ends."""
        of = f"; {self._failed} of {self._failed + self._answered} requests failed"
        return of if self.are_hopeless else ""


def _seconds(asked: str | None) -> float | None:
    """What a Retry-After header asks for, seconds or a date; None where it cannot be read."""
    asked = (asked or "").strip()
    if re.fullmatch(r"\d{1,18}(\.\d{1,18})?", asked, re.ASCII):
        return float(asked)
    if re.fullmatch(r"\d+", asked, re.ASCII):
        return math.inf
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    return None


def _detail(error: urllib.error.HTTPError, key: str) -> str:
    """What the endpoint says about an error, in one line."""
    text = getattr(error, "content", b"").decode(errors="replace")
    # A body of another shape is shown as it is.
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        said = json.loads(text)["error"]
        text = said["message"] if isinstance(said, dict) else said
    return _line(str(text), key) or _line(str(error.reason), key)


def _line(text: str, key: str) -> str:
    """A server's words as one line without the key; redacted before they are cut, so that no half of it stays."""
    return shown(redacted(" ".join(text[:_READ].split()), key)[:240])


def _hopeless(unreadable: int, seen: int, template: Template) -> str:
    return (
        f"{unreadable} of the first {seen} replies named none of {', '.join(template.answers)}; take a model that follows "
        'instructions, allow more tokens where it reasons first (extra fields such as {"max_tokens": 2000}), or edit the template'
    )


def _without_secrets(url: str) -> str:
    """The address as far as it can be shown."""
    return re.sub(r"//[^/@]*@", "//***@", url.partition("?")[0])
