"""Rewards of tokens as coloured text: one HTML file that needs no network, no script, and no eye for red and green.

Blue is above the middle of the scale and orange below; far below is underlined too. Every number stands in a table as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewarden.report.html import STRONGEST, details, escaped, how_to_read, number, table
from rewarden.report.numbers import fixed
from rewarden.report.page import document

SHOWN = 50
"""Prompts on a page; more would make it slow to open."""

_TOKEN_STYLE = """
.text{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.7rem .9rem;line-height:1.9;margin:.4rem 0;
  border-radius:.3rem}
.token{padding:.16em 0;border-radius:.15em} .token:hover,.token:focus{outline:2px solid var(--ink)}
.lowest{text-decoration:underline dotted from-font}
.mark{color:var(--soft);font-size:.85em}
.scale{display:flex;max-width:34rem;margin:1rem 0} .scale span{flex:1;text-align:center;padding:.3rem 0;font-size:.85rem;
  font-variant-numeric:tabular-nums}
.facts{margin:.8rem 0 0;font-size:.95rem} .prompt{white-space:pre-wrap;overflow-wrap:anywhere;color:var(--soft);margin:0}
@media print{.token{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


@dataclass(frozen=True)
class Scored:
    """A completion with its tokens."""

    reward: float
    """The score of the whole completion."""
    tokens: Sequence[str]
    rewards: Sequence[float]
    log_probs: Sequence[float]


@dataclass(frozen=True)
class Scale:
    """From a token's reward to its colour."""

    centre: float
    """Reward without colour."""
    width: float
    """How far from there the colour is strongest; above 0."""

    @classmethod
    def of(cls, rewards: Sequence[float]) -> Scale:
        """The median as the centre, and the distance that 95 % of the rewards do not exceed as the width.

        The zero of a token's reward is no landmark: a model is free to add a constant to all logits of a state.
        """
        centre = statistics.median(rewards) if rewards else 0.0
        distances = sorted(abs(reward - centre) for reward in rewards)
        width = distances[(len(distances) * 95 - 1) // 100] if distances else 0.0
        return cls(centre, width or max(distances, default=0.0) or 1.0)

    def place(self, reward: float) -> float:
        """Where the reward lies, from -1 (lowest colour) to 1 (highest)."""
        return max(-1.0, min(1.0, (reward - self.centre) / self.width))


def coloured_tokens_html(
    tokens: Sequence[str],
    rewards: Sequence[float],
    log_probs: Sequence[float] | None = None,
    *,
    scale: Scale | None = None,
) -> str:
    """The text of a completion with a colour behind each token, as HTML.

    Args:
        tokens: Pieces of text; line breaks are marked and kept, empty pieces shown as a dot.
        rewards: One for each; a tooltip gives the number.
        log_probs: For the tooltips, if there are any.
        scale: From rewards to colours, for texts that are to be compared; None takes that of these rewards.

    Returns:
        A sequence of elements for a parent that keeps white space, with the classes of `token_page`.
    """
    chosen = Scale.of(rewards) if scale is None else scale
    found = []
    for index, (token, reward) in enumerate(zip(tokens, rewards, strict=True)):
        place = chosen.place(reward)
        says = f"{token!r}: reward {fixed(reward)}"
        if log_probs is not None:
            says += f", log-probability {fixed(log_probs[index])}"
        text = escaped(token).replace("\n", "<span class=mark>⏎</span>\n") or "<span class=mark>·</span>"
        found.append(
            f'<span class="token {_side(place)}" style="--part:{abs(place) * STRONGEST:.0f}%" '
            f'title="{escaped(says)}">{text}</span>'
        )
    return "".join(found)


def token_page(title: str, groups: Sequence[tuple[str, Sequence[Scored]]], facts: Mapping[str, Any]) -> str:
    """A page of prompts with their completions as coloured text.

    Args:
        title: Of the page.
        groups: Prompts as text, each with its completions. The first `SHOWN` are on the page, and it says how many there are.
        facts: What is needed to repeat it, by name.

    Returns:
        HTML. All texts share one scale; the same input gives the same page.
    """
    shown = groups[:SHOWN]
    scale = Scale.of([reward for _, scored in shown for one in scored for reward in one.rewards])
    counted = "" if len(shown) == len(groups) else f" These are the first {len(shown)} of {len(groups):,} prompts."
    how = how_to_read(
        f"""Each token is coloured by its own reward: blue lies above the median of all tokens on this page
        ({scale.centre:.2f}), orange below, underlined where it is far below. A token's reward is its logit less
        the soft value of the place it leads to; it holds constants that cancel in the reward of the completion, so compare
        tokens, and do not read its sign. Hover over a token for its numbers, or open the table.{counted}"""
    )
    body = "".join(_group(place, prompt, scored, scale) for place, (prompt, scored) in enumerate(shown, start=1))
    rows = [[escaped(name), escaped(value)] for name, value in facts.items()]
    facts_table = table("To repeat this", ["fact", "value"], [("", rows)])
    body = f"{how}{_legend(scale)}<main>{body}</main>\n<section><h2>Facts</h2>{facts_table}</section>"
    return document(title, f"<h1>{escaped(title)}</h1>", body, style=_TOKEN_STYLE)


def _side(place: float) -> str:
    return "high" if place >= 0 else "low" if place > -0.5 else "low lowest"


def _legend(scale: Scale) -> str:
    parts = [-1.0, -0.5, 0.0, 0.5, 1.0]
    cells = [
        f'<span class="{_side(part)}" style="--part:{abs(part) * STRONGEST:.0f}%">'
        f"{'≤ ' if part == -1 else '≥ ' if part == 1 else ''}{scale.centre + part * scale.width:.2f}</span>"
        for part in parts
    ]
    label = "Colours from low to high reward of a token"
    return f'<div class=scale role=img aria-label="{label}">{"".join(cells)}</div>'


def _group(place: int, prompt: str, scored: Sequence[Scored], scale: Scale) -> str:
    body = ""
    for index, one in enumerate(scored, start=1):
        name = f"Completion {index}" if len(scored) > 1 else "Completion"
        text = coloured_tokens_html(one.tokens, one.rewards, one.log_probs, scale=scale)
        rows = [
            [f"{step}", f"<code>{escaped(repr(token))}</code>", number(float(reward)), number(float(log_prob))]
            for step, (token, reward, log_prob) in enumerate(
                zip(one.tokens, one.rewards, one.log_probs, strict=True), start=1
            )
        ]
        numbers = table(f"Tokens of completion {index}", ["step", "token", "reward", "log-probability"], [("", rows)])
        body += (
            f"<p class=facts><b>{name}</b>: reward {one.reward:.3f}, {len(one.tokens):,} tokens</p>"
            f"<div class=text>{text}</div>{details('Numbers', numbers)}"
        )
    return f"<section><h2>Prompt {place}</h2><p class=prompt>{escaped(prompt)}</p>{body}</section>"
