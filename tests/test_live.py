import importlib.util

import pytest

from callkit import checkpoints, live
from callkit.config import make_config
from callkit.training import train


def test_follow_passes_records_on_and_shows_speed_time_left_and_splits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    config = make_config(profile="smoke")
    shown = list(live.follow(train(config, tmp_path), config, tmp_path))
    assert [r.step for r in shown] == [5, 10, 15, 20] and repr(shown) == repr(
        checkpoints.read_log(tmp_path / checkpoints.LOG)
    )
    last = capsys.readouterr().err.split("\r")[-1]
    for part in ("20/20", "step/s", "loss=", "many=", "medium=", "few=", "allocation="):
        assert part in last, last


def test_tensorboard(tmp_path, monkeypatch):
    config = make_config(profile="smoke")
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ValueError, match="pip install tensorboard"):
            next(live.follow(train(config, tmp_path), config, tmp_path, tensorboard=True))
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = list(live.follow(train(config, tmp_path), config, tmp_path, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, value in live.scalars(shown[-1]).items():
        assert events.Scalars(name)[-1].step == 20 and events.Scalars(name)[-1].value == pytest.approx(value)
