import json
import logging
import math
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from rewarden.judging.answers import Question
from rewarden.judging.endpoint import LONGEST_WAIT, ChatEndpoint, EndpointError
from rewarden.judging.kept_answers import KeptAnswers
from rewarden.judging.templates import VERIFIER, Template

TEMPLATE = Template("verifier", "be fair", "{prompt}: {completion}", ("Yes", "No"))
KEY = "sk-secret-key"


def endpoint(server, **more) -> ChatEndpoint:
    return ChatEndpoint(server.url, "m", **{"backoff": 0.001, "workers": 2, "api_key_env": ""} | more)


def groups(*sizes: int) -> list[list[Question]]:
    return [[Question(f"p{g}", (f"c{n}",)) for n in range(size)] for g, size in enumerate(sizes)]


def failure(status: int, message="overloaded", **headers: str):
    body = json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()
    return status, headers, body


def test_what_is_sent(serve, completion, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    server = serve(lambda _body, _number: completion("Yes"))
    endpoint(server, api_key_env="SOME_KEY")(TEMPLATE, groups(1))
    (seen,) = server.seen
    assert seen["path"] == "/v1/chat/completions"
    assert seen["headers"]["authorization"] == f"Bearer {KEY}"
    assert seen["headers"]["content-type"] == "application/json"
    assert seen["body"] == {
        "model": "m",
        "messages": [{"role": "system", "content": "be fair"}, {"role": "user", "content": "p0: c0"}],
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_the_whole_address_works_too(serve, completion):
    server = serve(lambda _body, _number: completion("Yes"))
    ChatEndpoint(f"{server.url}/chat/completions/", "m", api_key_env="")(TEMPLATE, groups(1))
    assert server.seen[0]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("name", ["", "NO_SUCH_VARIABLE"])
def test_without_a_key_nothing_is_sent(serve, completion, monkeypatch, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda _body, _number: completion("Yes"))
    endpoint(server, api_key_env=name)(TEMPLATE, groups(1))
    assert "authorization" not in server.seen[0]["headers"]


def test_the_usual_variable_is_the_default(serve, completion, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda _body, _number: completion("Yes"))
    ChatEndpoint(server.url, "m")(TEMPLATE, groups(1))
    assert server.seen[0]["headers"]["authorization"] == f"Bearer {KEY}"


def test_extra_fields_are_added_and_taken_out(serve, completion):
    server = serve(lambda _body, _number: completion("Yes"))
    extra = {"top_logprobs": 5, "max_tokens": None, "seed": 1}
    endpoint(server, extra=extra)(TEMPLATE, groups(1))
    body = server.seen[0]["body"]
    assert (body["top_logprobs"], body["seed"], "max_tokens" in body) == (5, 1, False)


def test_answers_keep_the_order_of_the_questions(serve, completion):
    def answer(body, number):
        text = body["messages"][-1]["content"]
        time.sleep(0.03 if text == "p0: c0" else 0)  # the first comes back last
        return completion("Yes", {"Yes": -0.125, "No": -2.5}) if text in ("p0: c0", "p2: c1") else completion("No")

    server = serve(answer)
    done = []
    found = endpoint(server, workers=4)(TEMPLATE, groups(2, 0, 3), progress=done.append)
    assert [[each.choice for each in group] for group in found] == [[0, 1], [], [1, 0, 1]]
    assert found[0][0].log_probs == (-0.125, -2.5)
    assert found[0][1].log_probs is None
    assert done == [0, 1, 2]
    assert len(server.seen) == 5


def test_several_questions_are_under_way_together(serve, completion):
    together = threading.Barrier(3, timeout=5)

    def answer(body, number):
        together.wait()  # breaks unless three requests are there at once
        return completion("Yes")

    found = endpoint(serve(answer), workers=3)(TEMPLATE, groups(3))
    assert [each.choice for each in found[0]] == [0, 0, 0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(serve, completion, status):
    server = serve(lambda _body, number: failure(status) if number < 2 else completion("Yes"))
    found = endpoint(server, workers=1)(TEMPLATE, groups(1))
    assert found[0][0].choice == 0
    assert len(server.seen) == 3


@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b'{"choices": []}', b"\xff\xfe"])
def test_nonsense_is_asked_for_again(serve, completion, content):
    server = serve(lambda _body, number: (200, {}, content) if number == 0 else completion("No"))
    found = endpoint(server, workers=1)(TEMPLATE, groups(1))
    assert found[0][0].choice == 1
    assert len(server.seen) == 2


def test_a_reply_that_breaks_off_is_asked_for_again(serve, completion):
    status, _, content = completion("No")
    server = serve(lambda _body, n: (status, {"Content-Length": "9999"}, content) if n == 0 else completion("No"))
    assert endpoint(server, workers=1, timeout=0.2)(TEMPLATE, groups(1))[0][0].choice == 1


def test_an_endpoint_that_goes_on_failing_is_an_error(serve):
    server = serve(lambda _body, _number: failure(500, "out of order"))
    with pytest.raises(EndpointError, match=r"failed 3 times in a row, last with HTTP 500: out of order"):
        endpoint(server, workers=1, attempts=3)(TEMPLATE, groups(1))
    assert len(server.seen) == 3


def test_a_refusal_is_not_tried_again_and_ends_the_work(serve):
    server = serve(lambda _body, _number: failure(400, "unknown field logprobs"))
    with pytest.raises(EndpointError, match=r"HTTP 400: unknown field logprobs.*\"logprobs\": null"):
        endpoint(server, workers=1)(TEMPLATE, groups(50))
    assert len(server.seen) == 1


def test_nobody_there_is_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match="failed 2 times in a row"):
            ChatEndpoint(url, "m", attempts=2, backoff=0.0)(TEMPLATE, groups(1))


def test_an_endpoint_that_says_nothing_times_out(serve, completion):
    def answer(body, number):
        time.sleep(0.3 if number == 0 else 0)
        return completion("Yes")

    server = serve(answer)
    assert endpoint(server, workers=1, timeout=0.1)(TEMPLATE, groups(1))[0][0].choice == 0
    assert len(server.seen) >= 2


@pytest.mark.parametrize("status", [302, 307])
def test_redirects_are_not_followed(serve, completion, monkeypatch, status):
    monkeypatch.setenv("SOME_KEY", KEY)
    other = serve(lambda _body, _number: completion("Yes"))
    server = serve(lambda _body, _number: (status, {"Location": other.url}, b""))
    with pytest.raises(EndpointError, match=f"HTTP {status}"):
        endpoint(server, api_key_env="SOME_KEY")(TEMPLATE, groups(1))
    assert other.seen == []


def test_the_key_stands_in_no_error_log_or_record(serve, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, logger="rewarden")
    monkeypatch.setenv("SOME_KEY", KEY)
    for status in (401, 500):
        judge = endpoint(
            serve(lambda _body, _n, s=status: failure(s, f"bad key {KEY}")), api_key_env="SOME_KEY", attempts=2
        )
        with pytest.raises(EndpointError) as caught:
            judge(TEMPLATE, groups(1))
        assert "bad key ***" in str(caught.value)
        assert KEY not in f"{caught.value!r} {judge!r} {judge.record} {caught.value.__context__!r}"
    assert "bad key ***" in caplog.text
    assert KEY not in caplog.text


def test_a_refusal_says_whether_a_key_was_sent(serve, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(EndpointError, match="the variable SOME_KEY is not set"):
        endpoint(serve(lambda _body, _number: failure(401, "no key")), api_key_env="SOME_KEY")(TEMPLATE, groups(1))


def test_waiting_times():
    judge = ChatEndpoint("http://h/v1", "m", backoff=1.0)
    assert [judge._pause(1, asked) for asked in ("3", "0.5", "100000")] == [3, 0.5, LONGEST_WAIT]
    for attempt, usual in ((1, 1), (2, 2), (4, 8)):
        assert 0.75 * usual <= judge._pause(attempt, "tomorrow") <= 1.25 * usual
    assert judge._pause(30, None) == LONGEST_WAIT


def test_the_endpoint_says_when_to_come_back(serve, completion):
    server = serve(lambda _body, n: failure(429, **{"Retry-After": "0"}) if n == 0 else completion("Yes"))
    start = time.monotonic()
    endpoint(server, backoff=30)(TEMPLATE, groups(1))
    assert time.monotonic() - start < 10


def test_replies_that_cannot_be_read_are_answers_without_content(serve, completion):
    server = serve(lambda body, _number: completion("hm" if body["messages"][-1]["content"] == "p0: c3" else "Yes"))
    found = endpoint(server)(TEMPLATE, groups(5))
    assert [each.is_readable for each in found[0]] == [True, True, True, False, True]


def test_a_judge_that_never_answers_is_an_error(serve, completion):
    server = serve(lambda _body, _number: completion("I am a language model"))
    with pytest.raises(EndpointError, match="10 of the first 10 replies named none of Yes, No"):
        endpoint(server)(TEMPLATE, groups(12))


def test_lengths_are_characters():
    assert ChatEndpoint("http://h/v1", "m").lengths(["", "héllo"]) == [0, 5]


def test_the_record_names_who_judged():
    judge = ChatEndpoint("http://h/v1", "m", extra={"seed": 1})
    assert judge.record == {"url": "http://h/v1", "model": "m", "extra": {"seed": 1}}


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "h:8000/v1", "http:///v1", "http://user:secret@h/v1", "http://h/v1?key=secret", "ftp://h"],
)
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(ValueError, match="expected http://HOST/v1") as caught:
        ChatEndpoint(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "more", [{"attempts": 0}, {"workers": 0}, {"timeout": 0}, {"backoff": -1}, {"timeout": math.nan}]
)
def test_settings_that_cannot_work_are_refused(more):
    with pytest.raises(ValueError, match="must be at least 1"):
        ChatEndpoint("http://h/v1", "m", **more)


def test_nothing_to_ask(serve):
    assert ChatEndpoint("http://h/v1", "m")(VERIFIER, []) == []


def test_a_retry_after_of_years_is_said_and_not_waited_for(serve):
    for asked in ("999999999", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"):
        server = serve(lambda _body, _n, asked=asked: failure(429, "quota", **{"Retry-After": asked}))
        start = time.monotonic()
        with pytest.raises(
            EndpointError, match=r"asks to come back in .* s \(HTTP 429: quota\), and a question waits 300 s"
        ):
            endpoint(server, workers=1)(TEMPLATE, groups(3))
        assert time.monotonic() - start < 5
        assert len(server.seen) == 1


def test_a_question_has_so_long_and_no_longer(serve):
    server = serve(lambda _body, _n: failure(503))
    start = time.monotonic()
    with pytest.raises(EndpointError, match="HTTP 503"):
        endpoint(server, workers=1, attempts=1000, backoff=0.05, patience=0.4)(TEMPLATE, groups(1))
    assert time.monotonic() - start < 3


def test_failures_of_all_questions_together_have_a_limit(serve, completion, monkeypatch):
    monkeypatch.setattr("rewarden.judging.endpoint.MOST_FAILURES", 12)
    # Every question would be answered in the end, at its fifth attempt.
    counts: dict[str, int] = {}

    def answer(body, _number):
        text = body["messages"][-1]["content"]
        counts[text] = counts.get(text, 0) + 1
        return completion("Yes") if counts[text] == 5 else failure(503)

    server = serve(answer)
    with pytest.raises(EndpointError, match=r"; 12 of 14 requests failed; see"):
        endpoint(server, workers=1)(TEMPLATE, groups(50))
    assert len(server.seen) == 14


@pytest.mark.parametrize("value", [3.5, math.nan, -1e308, "-0.5", True, [1], 10**400, math.inf], ids=repr)
def test_log_probabilities_that_are_none_end_the_work_and_name_the_reply(serve, completion, value):
    server = serve(lambda _body, _number: completion("Yes", {"Yes": -0.1, "No": value}))
    message = r"reply 'chatcmpl-1', token 1: the log-probability of 'No' is .*expected a number from -100000 to 0"
    with pytest.raises(EndpointError, match=message):
        endpoint(server, workers=1)(TEMPLATE, groups(3))
    assert len(server.seen) == 1


def test_hostile_replies_are_an_error_in_words(serve):
    for content in (b"[" * 100_000, b'{"choices":' + b"[" * 45 + b"]" * 45 + b"}", b"9" * 5000, b" " * (9 * 2**20)):
        server = serve(lambda _body, _number, content=content: (200, {}, content))
        with pytest.raises(EndpointError, match="failed 2 times in a row, last with"):
            endpoint(server, workers=1, attempts=2)(TEMPLATE, groups(1))


@pytest.mark.parametrize("key", ["sk-first\nsk-second-line", "sk two", "sk-\x1b[31m", "sk-é"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(serve, completion, monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    server = serve(lambda _body, _number: completion("Yes"))
    with pytest.raises(EndpointError, match="the variable SOME_KEY holds a blank, a line break") as caught:
        endpoint(server, api_key_env="SOME_KEY")(TEMPLATE, groups(1))
    assert "sk" not in str(caught.value).replace("asks", "")
    assert server.seen == []


def test_a_line_break_at_the_end_of_a_key_is_left_out(serve, completion, monkeypatch):
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    server = serve(lambda _body, _number: completion("Yes"))
    endpoint(server, api_key_env="SOME_KEY")(TEMPLATE, groups(1))
    assert server.seen[0]["headers"]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("before", [0, 100, 215, 230, 239])
def test_a_key_is_taken_out_before_words_are_cut(serve, monkeypatch, before):
    key = "sk-0123456789abcdefghijklmnop"
    monkeypatch.setenv("SOME_KEY", key)
    for content in (f"{'x' * before}{key} is bad".encode(), json.dumps({"detail": ["x" * before + key] * 9}).encode()):
        for status in (401, 200, 500):
            server = serve(lambda _body, _n, reply=(status, {}, content): reply)
            with pytest.raises(EndpointError) as caught:
                endpoint(server, api_key_env="SOME_KEY", attempts=1)(TEMPLATE, groups(1))
            assert not [key[at : at + 4] for at in range(len(key) - 3) if key[at : at + 4] in str(caught.value)]


def test_words_of_a_server_do_not_steer_the_terminal(serve):
    server = serve(lambda _body, _number: failure(400, "\x1b[2J gone"))
    with pytest.raises(EndpointError, match=r"\\x1b\[2J gone"):
        endpoint(server)(TEMPLATE, groups(1))


def test_answers_are_kept_and_not_asked_for_again(serve, completion, tmp_path):
    state = {"limit": 7}

    def answer(_body, number):
        return completion("Yes", {"Yes": -0.25, "No": -1.5}) if number < state["limit"] else failure(403, "no credit")

    server = serve(answer)
    path = tmp_path / "answers.jsonl"
    with pytest.raises(EndpointError, match="no credit"):
        endpoint(server, workers=1, kept=KeptAnswers(path))(TEMPLATE, groups(5, 5))
    assert len(path.read_text().splitlines()) == 7
    state["limit"] = 1000
    kept = KeptAnswers(path)
    found = endpoint(server, workers=3, kept=kept)(TEMPLATE, groups(5, 5))
    assert found == endpoint(serve(answer), workers=1)(TEMPLATE, groups(5, 5))
    assert (len(server.seen), kept.reused) == (8 + 3, 7)  # one was refused
    other = ChatEndpoint(server.url, "another", api_key_env="", kept=KeptAnswers(path))
    other(TEMPLATE, groups(1))
    assert len(server.seen) == 12


def test_no_key_is_kept_on_the_disk(serve, completion, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_KEY", KEY)
    server = serve(lambda _body, _number: completion("Yes"))
    endpoint(server, api_key_env="SOME_KEY", kept=KeptAnswers(tmp_path / "a"))(TEMPLATE, groups(2))
    assert len((tmp_path / "a").read_text().splitlines()) == 2
    assert KEY not in (tmp_path / "a").read_text()


INTERRUPTED = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it is ignored
from rewarden.judging.answers import Question
from rewarden.judging.endpoint import ChatEndpoint
from rewarden.judging.templates import VERIFIER
print("ready", flush=True)
ChatEndpoint(sys.argv[1], "m", api_key_env="", workers=32)(VERIFIER, [[Question("p", (f"c{n}",)) for n in range(200)]])
"""


def test_an_interrupt_ends_the_work_at_once_with_many_requests_under_way(serve, completion):
    release = threading.Event()
    together = threading.Semaphore(0)

    def answer(_body, _number):
        together.release()
        release.wait(20)
        return completion("Yes")

    server = serve(answer)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server.url], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        for _ in range(32):
            assert together.acquire(timeout=30)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=15)
        assert time.monotonic() - start < 5
        assert "KeyboardInterrupt" in errors
    finally:
        release.set()
        process.kill()
        process.wait()
