import threading
import time

import pytest
from jinja2 import TemplateError

from rewarden.hf.template_sandbox import LARGEST, BoundsError, Sandbox, bounded_run, size


def run(template: str, *, seconds: float = 10.0, **variables) -> str:
    sandbox = Sandbox(lambda form: form)
    return bounded_run(lambda: sandbox.from_string(template).render(**variables), seconds=seconds)


def grows(step: str, start: str = "'abcdefghij'") -> str:
    return f"{{% set n = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set n.x = {step} %}}{{% endfor %}}{{{{ n.x }}}}"


BIG = "{% set a = 'x' * 9000000 %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{{ 'x'.encode() * 10**10 }}",
        grows("n.x + n.x"),
        grows("n.x ~ n.x"),
        grows("n.x|upper ~ n.x"),
        grows("n.x * n.x", "99**99"),
        grows("n.x ** 9", "9"),
        "{{ 'x'|center(10**9) }}",
        "{{ ['x']|map('center', 10**9)|list }}",
        "{% filter center(10**9) %}x{% endfilter %}",
        "{{ 'x'.rjust(width=10**9) }}",
        "{{ '1'.zfill(10**10) }}",
        "{{ '\t\t'.expandtabs(10**8) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10**9) }}",
        BIG + "{{ ('%s' * 99) % ((a,) * 99) }}",
        BIG + "{{ '{0}{0}{0}'.format(a) }}",
        BIG + "{{ a|replace('x', 'xyz') }}",
        BIG + "{{ a.replace('x', 'xyz') }}",
        BIG + "{{ a.join('123') }}",
        BIG + "{{ '123'|join(a) }}",
        BIG + "{{ a.translate({120: 'xyz'}) }}",
        BIG + "{{ [a, a] }}",
        BIG + "{{ [a, a]|string }}",
        BIG + "{{ [a, a]|tojson }}",
        "{{ ('a\n' * 1000)|indent(1000000) }}",
        "{{ [[1]]|tojson(indent=10**9) }}",
        "{{ ('a ' * 100000)|wordwrap(1, wrapstring='b' * 10000) }}",
        "{{ [1]|batch(10**9, 'x')|list }}",
        "{{ 1.5|round(10**9, 'ceil') }}",
        "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% set a %}{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}",
        "{% macro m() %}{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}{% endmacro %}{{ m() }}",
        BIG + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [a[1:]] %}{% endfor %}",
        BIG + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = [a|upper, n.l] %}{% endfor %}",
    ],
)
def test_values_have_a_limit(template):
    with pytest.raises(BoundsError, match=r"more than [\d,]+ (characters|bits)"):
        run(template)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 'ab' * 3 }}{{ 2 * 'c' }}{{ 2 * 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}", "abababcc610243"),
        ("{{ 'a' + 'b' }}{{ 'c' ~ 1 ~ none ~ nothing }}{{ [1] + [2] }}", "abc1None[1, 2]"),
        ("{{ '%s and %3d' % ('a', 5) }}{{ '{} {x:>4}'.format(1, x='b') }}", "a and   51    b"),
        ("{{ ['a', 'b']|join(', ') }}{{ '-'.join(['a', 'b']) }}{{ 'aXa'.replace('X', 'yy') }}", "a, ba-bayya"),
        ("{{ 'a'|center(3) }}{{ {'a': [1, 'é']}|tojson(indent=1) }}", ' a {\n "a": [\n  1,\n  "é"\n ]\n}'),
        ("{{ 'abcdef'[1:3] }}{{ [1, 2, 3][::-1] }}{{ 2.345|round(1) }}", "bc[3, 2, 1]2.3"),
        (
            "{% generation %}x{% endgeneration %}{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "x01",
        ),
        ("{% set n = namespace(t='') %}{% for i in range(3) %}{% set n.t = n.t ~ i %}{% endfor %}{{ n.t }}", "012"),
        ("{{ strftime_now('%d %b') }}", "%d %b"),
    ],
)
def test_what_templates_do_stays_possible(template, text):
    assert run(template) == text


@pytest.mark.parametrize("template", ["{{ [1, 2]|random }}", "{{ lipsum(1) }}"])
def test_a_text_has_one_rendering(template):
    with pytest.raises(BoundsError, match="random text"):
        run(template)


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ x.append(1) }}", "{% set n = namespace(__x=1) %}"]
)
def test_it_is_a_sandbox(template):
    with pytest.raises(TemplateError):
        run(template, x=[1])


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_time_has_a_limit():
    start = time.monotonic()
    with pytest.raises(BoundsError, match="not done after"):
        run(ENDLESS, seconds=0.1)
    assert time.monotonic() - start < 5
    assert run("fine") == "fine"  # and nothing of the interruption is left over


def test_time_has_a_limit_in_every_thread():
    found = []

    def work() -> None:
        try:
            run(ENDLESS, seconds=0.1)
        except BoundsError as error:
            found.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for each in threads:
        each.start()
    assert run("fine") == "fine"
    for each in threads:
        each.join(timeout=10)
    assert found == ["it is not done after 0.1 seconds"] * 2


def test_sizes_are_those_of_texts():
    assert size("abc") == 3
    assert size(["abc", {"de": ["f"]}]) == 3 + 2 + 1 + 8 * 5
    assert size(7) == 0
    doubled = ["a"]
    for _ in range(40):
        doubled = [doubled, doubled]
    with pytest.raises(BoundsError, match=f"{LARGEST:,} characters"):
        size(doubled)
