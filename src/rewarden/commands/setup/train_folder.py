"""The folder of a training: what may be continued or replaced in it, and what it records about itself."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden import methods
from rewarden.commands.output.provenance import say
from rewarden.commands.setup.run_settings import content, flat, refuse_changes
from rewarden.disk.atomic import is_disk_full
from rewarden.disk.owned_folder import MODEL, OwnedFolder

if TYPE_CHECKING:
    from rewarden.commands.options.train import Train

WORK = ("checkpoints", "checkpoints-stage-one")
SETTINGS = "settings.json"
"""Present while a run is unfinished."""
FREE = ("output", "resume", "overwrite", "json", "report_to", "gradient_checkpointing", "method")
"""Options that may differ when a run is continued; the method is compared field by field."""
FILES = ("train", "eval", "model", "stage_one", "deepspeed")
"""Options that name what is read: compared by its content."""


class TrainFolder:
    """OUTPUT of one `rewarden train`."""

    def __init__(self, args: Train, rows: Sequence[Any] = ()) -> None:
        self.args = args
        self.folder = OwnedFolder(args.output, MODEL)
        self.rows = [each for each in rows if each is not None]
        self.settings: dict[str, Any] = {}
        self.run = secrets.token_hex(8)
        """Tells this run from others in the same folder."""
        self.is_claimed = False

    @property
    def stage_one(self) -> Path:
        """Where the first of two stages is kept."""
        return self.args.output / "stage-one"

    @contextlib.contextmanager
    def opened(self) -> Iterator[TrainFolder]:
        """Look at the folder, and be the only run in it for the length of the block; nothing in it is changed by that.

        Raises:
            ValueError: When there is a model or a run and no word what to do with it, when the run was started with other
                settings, when an input is in the folder, when another process is at work in it, or when its disk is full.
        """
        from rewarden.hf import distributed

        args = self.args
        data = {f"--train {name}": name for name in args.train}
        named = {name: getattr(args, name) for name in FILES[1:]}
        self.folder.check(data | {f"--{name.replace('_', '-')} {given}": given for name, given in named.items()})
        with contextlib.ExitStack() as held:
            distributed.on_first(lambda: held.enter_context(self.folder.locked()))
            self._look()
            self.settings = self._settings()
            if args.resume and (noted := self._noted()) is not None:
                refuse_changes(args.output, noted["settings"], self.settings)
            try:
                yield self
            except BaseException as error:
                if distributed.is_first():
                    self._leave()
                if is_disk_full(error):
                    raise ValueError(self._full(error)) from error
                raise

    def _look(self) -> None:
        """Refuse to touch a finished model, or to mix two runs."""
        args, output = self.args, self.args.output
        has_model, has_run = self._has_model, self._has_run
        if args.resume and args.overwrite:
            raise ValueError("--resume continues the run in --output and --overwrite replaces it; give one of them")
        if has_model and not args.overwrite and not args.resume:
            raise ValueError(f"{output} already holds a model; choose another --output, or replace it with --overwrite")
        if has_run and not args.resume and not args.overwrite:
            raise ValueError(f"{output} holds an unfinished run; continue it with --resume or restart with --overwrite")
        if args.resume and not has_run and not has_model:
            say(f"--resume: nothing was saved in {output}; starting from the beginning")

    def finished(self) -> dict[str, Any] | None:
        """The record of the finished training that --resume would continue, when it is this very one; None otherwise.

        Raises:
            ValueError: When the model there was trained with other settings.
        """
        if not (self.args.resume and self._has_model and not self._has_run):
            return None
        record: dict[str, Any] = json.loads((self.args.output / "training.json").read_text(encoding="utf-8"))
        refuse_changes(self.args.output, record.get("settings", {}), self.settings)
        say(f"--resume: {self.args.output} is finished, and nothing is left to do")
        return record

    @property
    def _has_model(self) -> bool:
        return (self.args.output / "config.json").exists()

    @property
    def _has_run(self) -> bool:
        return (self.args.output / SETTINGS).exists()

    def _settings(self) -> dict[str, Any]:
        """What must stay the same when the run is continued, by the name of the option."""
        from rewarden.files import content_hash

        args = self.args
        found: dict[str, Any] = {name: value for name, value in asdict(args).items() if name not in FREE}
        found |= {name: content(getattr(args, name)) for name in FILES[1:]}
        found["train"] = [content(source) for source in args.train]
        for number, rows in enumerate(self.rows, start=1):
            found[f"data {number}"] = {"path": "rows", "sha256": content_hash(rows)}
        return found | flat("method", methods.to_dict(args.method))

    def _noted(self) -> dict[str, Any] | None:
        """What the unfinished run in the folder was started with; None where there is none."""
        path = self.args.output / SETTINGS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {"run": str(found["run"]), "settings": dict(found["settings"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read; start again with --overwrite") from error

    def claim(self) -> None:
        """Make the folder this run's, now that everything has been loaded: an unfinished run gives way, a model stays."""
        from rewarden.hf import distributed

        if not self.is_claimed:
            self.is_claimed = True
            distributed.on_first(self._claim)

    def _claim(self) -> None:
        from rewarden.files import write_json

        if self.args.resume and (noted := self._noted()) is not None:
            self.run = noted["run"]
            return
        self.folder.claim()
        self._clear_state()
        write_json(self.args.output / SETTINGS, {"run": self.run, "settings": self.settings})

    @property
    def has_teacher(self) -> bool:
        """Whether this very run, which is continued, has finished its first stage."""
        noted = self._noted() if self.args.resume else None
        return noted is not None and self._run_of_teacher() == noted["run"]

    def _run_of_teacher(self) -> str | None:
        try:
            return json.loads((self.stage_one / "training.json").read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self, written: set[str]) -> None:
        """The model is whole: what an older one had besides goes, and so does the state that was kept for --resume."""
        from rewarden.hf import distributed

        if not distributed.is_first():
            return
        output = self.args.output
        state = (*(output / name for name in (*WORK, "runs")), output / SETTINGS)
        kept = {output / name for name in written}
        self.folder.delete(
            path
            for path in self.folder.files()
            if path not in kept and not any(path.is_relative_to(each) for each in state)
        )
        if self._run_of_teacher() != self.run:
            OwnedFolder(self.stage_one, MODEL).remove()
        for name in WORK:
            self.finish_stage(name)
        self._clear_state()

    def finish_stage(self, work: str) -> None:
        """Delete the resume state of a finished stage; what trackers wrote there moves to OUTPUT/runs."""
        from rewarden.hf import distributed

        if not distributed.is_first():
            return
        output = self.args.output
        for log in sorted((output / work / "runs").glob("*")):
            (output / "runs").mkdir(exist_ok=True)
            shutil.move(str(log), str(output / "runs" / log.name))
        self.folder.clear(f"{work}/*")
        for folder in (output / work / "runs", output / work):
            with contextlib.suppress(OSError):  # not there, or not empty
                folder.rmdir()

    def bytes_held(self) -> int:
        """What the checkpoints of the run in the folder take up."""
        state = [self.args.output / name for name in WORK]
        return sum(path.stat().st_size for path in self.folder.files() if any(map(path.is_relative_to, state)))

    def _clear_state(self) -> None:
        self.folder.clear(SETTINGS, *(f"{name}/*" for name in WORK))

    def _leave(self) -> None:
        """After a failure: what is half-written goes, and a run of which nothing was saved leaves no trace."""
        from rewarden.hf.training import checkpoints

        if not self.is_claimed:
            return
        for name in WORK:
            checkpoints.drop_incomplete(self.args.output / name)
        if not self._saved():
            self._clear_state()

    def _saved(self) -> str:
        """What a continued run would go on from, for a message; nothing when it would start from the beginning."""
        from rewarden.hf.training import checkpoints

        found = ["stage one"] if self._run_of_teacher() == self.run else []
        steps = (checkpoints.steps_saved(self.args.output / name) for name in WORK)
        return " and ".join(found + [f"its steps up to {each[-1]:,}" for each in steps if each])

    def _full(self, error: BaseException) -> str:
        reason = " ".join(str(error).split())[:200]
        saved = self._saved()
        way_on = (
            f"{saved} are saved: free some space and continue with --resume"
            if saved
            else "nothing of it was saved: free some space, or choose another --output, and start again"
        )
        return f"{self.args.output}: the disk is full ({reason}), so the run has stopped; {way_on}"
