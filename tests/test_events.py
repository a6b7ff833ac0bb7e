"""Callbacks, cancellation, the progress bar."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import schedules

KARRAS = schedules.karras(0.1, 10.0)


def run(**changes):
    options = {"schedule": KARRAS, "steps": 8, "prediction": "sample", "seed": 0, "sampler": "heun"} | changes
    return fastdiff.sample(lambda x, t: x / (1 + t[:, None]), (3, 4), **options)


def test_a_callback_sees_every_call_in_order():
    events = []
    run(callback=events.append)
    assert [event.call for event in events] == list(range(15))
    assert {event.calls for event in events} == {15}
    assert events[0].level.sigma == pytest.approx(10.0)


def test_a_callback_sees_x_and_denoised_and_changes_nothing():
    seen = []

    def look(event):
        seen.append((event.x, event.denoised, event.level.sigma))
        event.x.zero_()
        event.denoised.zero_()

    watched = run(callback=look)
    assert torch.equal(watched, run())
    for x, denoised, sigma in seen:
        torch.testing.assert_close(denoised, x / (1 + sigma), rtol=1e-5, atol=1e-6)


def test_denoised_is_clamped_as_the_step_clamps_it():
    worst = []
    run(callback=lambda event: worst.append(float(event.denoised.abs().max())), clip=0.25)
    assert max(worst) == 0.25


def test_cancelling_stops_at_once_and_hands_over_the_image():
    calls = []

    def stop(event):
        calls.append(event.call)
        if event.call == 4:
            event.cancel()

    with pytest.raises(fastdiff.Cancelled) as caught:
        run(callback=stop)
    assert calls == [0, 1, 2, 3, 4]
    assert caught.value.denoised.shape == (3, 4)


def test_an_error_in_a_callback_reaches_the_caller():
    def fail(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callback=fail)


def test_the_bar_is_drawn_only_when_asked(capsys):
    run()
    assert capsys.readouterr().err == ""
    run(progress=True)
    assert "15/15" in capsys.readouterr().err


def test_adaptive_runs_do_not_know_their_calls():
    events = []
    run(sampler="dpm_adaptive", callback=events.append)
    assert {event.calls for event in events} == {None}
    assert [event.call for event in events] == list(range(len(events)))


def test_an_event_kept_beyond_its_callback_says_so():
    events = []
    run(callback=events.append)
    with pytest.raises(RuntimeError, match="inside the callback"):
        _ = events[0].x
    with pytest.raises(RuntimeError, match="inside the callback"):
        _ = events[0].denoised
