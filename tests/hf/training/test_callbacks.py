import math
from types import SimpleNamespace

import pytest

from rewarden.hf.training.callbacks import Progress, StopWhenNotFinite


def state(step, *, first=True, steps=10):
    return SimpleNamespace(global_step=step, max_steps=steps, is_world_process_zero=first)


def test_a_bar_from_where_a_resumed_run_stands(capsys):
    bar = Progress("second")
    bar.on_train_begin(None, state(4), None)
    bar.on_step_end(None, state(5), None)
    bar.on_log(None, state(5), None, logs={"loss": 0.51239, "grad_norm": 3.0, "eval_nll": 0.25})
    bar.on_train_end(None, state(5), None)
    out, err = capsys.readouterr()
    assert not out
    assert "second:  40%" in err
    assert "5/10" in err
    assert "loss=0.512, eval_nll=0.250" in err
    assert "grad_norm" not in err


def test_other_processes_show_nothing(capsys):
    bar = Progress("second")
    for step in (bar.on_train_begin, bar.on_step_end, bar.on_train_end):
        step(None, state(1, first=False), None)
    bar.on_log(None, state(1, first=False), None, logs={"loss": 1.0})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops(loss):
    stop = StopWhenNotFinite()
    stop.on_log(None, state(3), None, logs={"loss": 1e30})
    stop.on_log(None, state(3), None, logs={"eval_nll": math.nan})
    with pytest.raises(ValueError, match="at step 3; lower --lr"):
        stop.on_log(None, state(3), None, logs={"loss": loss})
