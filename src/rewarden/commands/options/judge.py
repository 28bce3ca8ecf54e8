"""Options of a judge, a language model that is asked how good a completion is, and the scorer they describe."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rewarden.commands.options.scoring import ScoringOptions
    from rewarden.hf.scoring.judges import Judge
    from rewarden.hf.scoring.scorer import AnyScorer
    from rewarden.judging.answers import Answerer

KEY = "OPENAI_API_KEY"
"""Environment variable with the API key unless another is named."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """A language model as the judge, in place of a trained reward model."""

    judge: str | None = None
    """Chat model that judges: a folder, a hub id or an embedded model, run here; or the address of an OpenAI-compatible
    endpoint, such as http://localhost:8000/v1."""
    judge_kind: Literal["verifier", "pointwise", "pairwise"] = "verifier"
    """Is it good, yes or no (verifier: log odds in nats); how good, 1 to 10 (pointwise: expected rating); which of two is
    better, in both orders (pairwise: rank among a prompt's completions)."""
    judge_reading: Literal["log_odds", "log_yes"] | None = None
    """Of a verifier: log p(yes) - log p(no) (default), or log p(yes) alone; refused with other kinds."""
    judge_model: str | None = None
    """Name of the model behind an endpoint; needed there, refused elsewhere."""
    template: Path | None = None
    """TOML file with wording of your own: `user` with placeholders, and perhaps `system` and `answers`."""
    api_key_env: str | None = None
    """Of an endpoint: environment variable that holds the API key. Default: OPENAI_API_KEY if it is set; '' sends none."""
    judge_extra: str | None = None
    """Of an endpoint: JSON object of fields that every request gains; null takes one out, as in {"top_logprobs": 5}."""
    judge_workers: int | None = None
    """Of an endpoint: questions under way at the same time (default 8)."""
    judge_timeout: float | None = None
    """Of an endpoint: seconds for one request as a whole, from the connection to the last byte (default 120)."""

    @property
    def is_endpoint(self) -> bool:
        """Whether the judge runs behind an address."""
        return self.judge is not None and self.judge.startswith(("http://", "https://"))

    def check_judge(self) -> None:
        """Refuse options that do not fit together or do nothing.

        Raises:
            ValueError: Naming the option.
        """
        names = [field.name for field in fields(JudgeOptions) if field.name not in ("judge", "judge_kind")]
        given = [name for name in names if getattr(self, name) is not None]
        if self.judge_kind != "verifier":
            given.insert(0, "judge_kind")
        if self.judge is None and given:
            raise ValueError(f"got {_flag(given[0])} without --judge; name the model or the endpoint that judges")
        remote = [
            name
            for name in given
            if name in ("judge_model", "api_key_env", "judge_extra", "judge_workers", "judge_timeout")
        ]
        if not self.is_endpoint and remote:
            raise ValueError(
                f"got {_flag(remote[0])} with the local model {self.judge}, expected the address of an endpoint after --judge; "
                f"drop {_flag(remote[0])} or give an address"
            )
        if self.is_endpoint and not self.judge_model:
            raise ValueError(
                f"got --judge {self.judge} without --judge-model; name the model that the endpoint shall use"
            )
        if self.judge_reading is not None and self.judge_kind != "verifier":
            raise ValueError(f"--judge-reading belongs to --judge-kind verifier, and it is {self.judge_kind}; drop it")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ValueError(
                f"--api-key-env {self.api_key_env}: this variable is not set; export the key in it, or give '' for none"
            )
        self._extra()

    def judge_scorer(self, options: ScoringOptions, answers: Path | None = None) -> Judge:
        """The judge as a scorer.

        Args:
            options: Of which layout and batch_tokens apply to a local model, and nothing to an endpoint.
            answers: Of an endpoint: file that keeps its answers as they come, and whose answers are not asked for again.

        Raises:
            ValueError: When options do not fit together, or the model or template cannot be used.
        """
        from rewarden.hf.scoring.judges import GenerativeVerifier, PairwiseJudge, PointwiseJudge
        from rewarden.judging.templates import DEFAULTS, read_template

        self.check_judge()
        self._check_unused(options)
        kind = self.judge_kind
        template = DEFAULTS[kind] if self.template is None else read_template(self.template, kind)
        answerer = self._endpoint(answers) if self.is_endpoint else self._local(options)
        if kind == "verifier":
            return GenerativeVerifier(answerer, template, self.judge_reading or "log_odds")
        return PointwiseJudge(answerer, template) if kind == "pointwise" else PairwiseJudge(answerer, template)

    def _check_unused(self, options: ScoringOptions) -> None:
        """Refuse options of trained models, which do nothing here."""
        used = () if self.is_endpoint else ("layout", "batch_tokens")
        unused = [
            each for each in fields(options) if each.name not in used and getattr(options, each.name) != each.default
        ]
        if unused:
            who = "an endpoint" if self.is_endpoint else "a judge"
            raise ValueError(
                f"got {_flag(unused[0].name)} with --judge {self.judge}; {who} has no use for it, so drop it"
            )

    def _endpoint(self, answers: Path | None) -> Answerer:
        from rewarden.judging.endpoint import ChatEndpoint
        from rewarden.judging.kept_answers import KeptAnswers

        assert self.judge is not None and self.judge_model is not None
        key = KEY if self.api_key_env is None else self.api_key_env
        workers = 8 if self.judge_workers is None else self.judge_workers
        timeout = 120.0 if self.judge_timeout is None else self.judge_timeout
        return ChatEndpoint(
            self.judge,
            self.judge_model,
            api_key_env=key,
            timeout=timeout,
            patience=max(300.0, 2 * timeout),
            workers=workers,
            extra=self._extra(),
            kept=None if answers is None else KeptAnswers(answers),
        )

    def _local(self, options: ScoringOptions) -> Answerer:
        from rewarden.hf.scoring.local_chat import LocalChat

        if self.judge is None:
            raise ValueError("got no --judge; name the model or the endpoint that judges")
        return LocalChat.load(self.judge, layout=options.layout, batch_tokens=options.batch_tokens)

    def _extra(self) -> dict[str, Any]:
        """The fields that requests gain."""
        if self.judge_extra is None:
            return {}
        try:
            found = json.loads(self.judge_extra)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'--judge-extra is no JSON ({error}); give an object such as {{"top_logprobs": 5}}'
            ) from error
        if not isinstance(found, dict):
            raise ValueError(f'--judge-extra is {self.judge_extra}; give an object such as {{"top_logprobs": 5}}')
        return found


def judge_report(scorer: AnyScorer) -> dict[str, Any]:
    """What a judge was asked so far, as counts; see `rewarden.hf.scoring.judges.Tally`.

    Of an endpoint "reused" says how many of the questions were answered by what an interrupted run had kept.
    """
    from rewarden.hf.scoring.judges import GenerativeVerifier, PairwiseJudge, PointwiseJudge

    assert isinstance(scorer, GenerativeVerifier | PointwiseJudge | PairwiseJudge)
    kept = getattr(scorer.answerer, "kept", None)
    return scorer.tally.report() | ({} if kept is None else {"reused": kept.reused})


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
