"""WAV files: round trips, every width of integers, resampling, bad files; notes, and models of one dimension."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import models
from fastdiff.apps import generate as pictures
from fastdiff.apps import timed
from fastdiff.cli import main
from fastdiff.sounds import read_recipe, read_wav, resampled, spectrograms, write_wav
from fastdiff.training import Trainer, train
from fastdiff.training.instruments import INSTRUMENTS, note, write_notes
from fastdiff.training.sequences import load_sounds
from training_cases import TINY, change, same, weights

MODEL = {**TINY.model, "dims": 1, "image_channels": 1, "patch": 2, "rate": 8000}
CONFIG = change(image_size=64, margin=1.0, model=MODEL)


def tone(length: int = 800, rate: int = 8000, pitch: float = 440.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * pitch * torch.arange(length) / rate)[None]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sounds") / "notes"
    write_notes(root, count=3, length=64)
    return root


@pytest.fixture(scope="module")
def checkpoint(notes: Path) -> Path:
    out = notes.parent / "run"
    train(change(image_size=64, margin=1.0, model=MODEL, steps=2), notes, out)
    assert (out / "samples_000002.png").exists()
    return out / "model.safetensors"


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_comes_back(channels: int, tmp_path: Path) -> None:
    sound = torch.cat([tone(pitch=300.0 * (i + 1)) for i in range(channels)])
    write_wav(tmp_path / "a.wav", sound, rate=8000, recipe={"seed": 3})
    found, rate = read_wav(tmp_path / "a.wav")
    assert rate == 8000 and found.shape == sound.shape
    torch.testing.assert_close(found, sound, atol=6e-5, rtol=0)
    assert read_recipe(tmp_path / "a.wav") == {"seed": 3}
    with wave.open(str(tmp_path / "a.wav")) as file:  # others read it too
        assert file.getnframes() == 800 and file.getsampwidth() == 2
    with pytest.raises(FileExistsError):
        write_wav(tmp_path / "a.wav", sound, rate=8000)


@pytest.mark.parametrize(("width", "error"), [(1, 1e-2), (2, 1e-4), (3, 1e-6), (4, 1e-6)])
def test_every_width_of_integers_is_read(width: int, error: float, tmp_path: Path) -> None:
    sound = tone()
    top = 2 ** (8 * width - 1) - 1
    whole = np.round(sound[0].double().numpy() * top).astype(np.int64) + (128 if width == 1 else 0)
    data = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(data)
    found, rate = read_wav(tmp_path / "a.wav")
    assert rate == 16000
    torch.testing.assert_close(found, sound, atol=error, rtol=0)


def test_bad_wavs_are_one_line(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(), rate=8000)
    data = (tmp_path / "a.wav").read_bytes()
    for i, bad in enumerate((b"", b"hello", data[:20], data[:44], data.replace(b"WAVE", b"EVAW", 1))):
        file = tmp_path / f"bad{i}.wav"
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=file.name) as error:
            read_wav(file)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no fastdiff recipe"):
        read_recipe(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="NaN"):
        write_wav(tmp_path / "b.wav", torch.full((1, 8), torch.nan), rate=8000)
    with pytest.raises(ValueError, match="channels, samples"):
        write_wav(tmp_path / "b.wav", torch.zeros(8), rate=8000)
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_resampling_keeps_a_tone(rate: int) -> None:
    found = resampled(tone(rate // 10, rate, 440.0), rate, 8000)
    assert found.shape == (1, 800)
    torch.testing.assert_close(found, tone(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("before, after", [(16, 32), (32, 16), (16, 24), (24, 17), (15, 30), (30, 16)])
def test_resampling_is_scipys(before: int, after: int) -> None:
    signal = pytest.importorskip("scipy.signal", reason="scipy is not installed")
    sound = torch.randn(2, before, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.from_numpy(signal.resample(sound.numpy(), after, axis=1))
    torch.testing.assert_close(resampled(sound, before, after), wanted)


def test_a_sound_of_a_slow_rate_is_not_blown_up() -> None:
    with pytest.raises(ValueError, match="shorten the sound"):
        resampled(torch.zeros(1, 1000), 1, 384_000)


def test_notes_have_their_pitch_and_repeat() -> None:
    for name in INSTRUMENTS:
        made, pitch = note(name, length=4096, rate=8000, rng=np.random.default_rng(5))
        again, _ = note(name, length=4096, rate=8000, rng=np.random.default_rng(5))
        assert np.array_equal(made, again) and 0.5 < np.abs(made).max() <= 1.0
        strongest = np.abs(np.fft.rfft(made * np.hanning(4096))).argmax() * 8000 / 4096
        assert min(abs(strongest / pitch - ratio) for ratio in (1, 2, 2.4, 3)) < 0.02


def test_spectrograms_show_where_a_tone_is() -> None:
    shown = spectrograms(torch.stack([tone(4096, pitch=1000.0), tone(4096, pitch=3000.0)]))
    assert shown.shape == (2, 3, 64, 96) and shown.min() >= -1 and shown.max() <= 1
    assert abs(shown[0, 0, :, 40].argmax() - 48) <= 2 and abs(shown[1, 0, :, 40].argmax() - 16) <= 2


def test_folders_of_sounds_become_pieces(notes: Path, tmp_path: Path) -> None:
    found = load_sounds(notes, length=32, rate=8000, margin=1.0)
    assert found.labels == tuple(sorted(INSTRUMENTS)) and len(found) == 4 * 3 * 2
    x, given = found.draw(2, 6)
    assert x.shape == (6, 1, 32) and torch.equal(x, found.draw(2, 6)[0]) and given["label"].shape == (6,)
    assert load_sounds(notes, length=100, rate=8000).values[0, 0, 64:].eq(0).all()  # filled up with silence
    assert load_sounds(notes, length=32, rate=4000).values.shape == (12, 1, 32)
    with pytest.raises(ValueError, match="has 1 channels"):
        load_sounds(notes, length=32, rate=8000, channels=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.wav files"):
        load_sounds(tmp_path, length=32, rate=8000)
    with pytest.raises(NotADirectoryError, match="class"):
        load_sounds(tmp_path / "nothing", length=32, rate=8000)


def test_training_repeats_itself(notes: Path) -> None:
    a, b = Trainer(CONFIG, notes), Trainer(CONFIG, notes)
    losses = [(a.advance().loss, b.advance().loss) for _ in range(3)]
    assert same(weights(a), weights(b)) and all(x == y for x, y in losses)


def test_sounds_are_generated(checkpoint: Path) -> None:
    net = models.load(checkpoint)
    assert net.config.dims == 1 and net.config.rate == 8000
    made = timed.generate("bell", model=checkpoint, count=2, steps=3, seed=4)
    assert made.images.shape == (2, 1, 64) and made.images.abs().max() <= 1
    alone = timed.generate("bell", model=net, steps=3, seed=5)
    torch.testing.assert_close(made.images[1:], alone.images, atol=1e-5, rtol=1e-4)
    longer = timed.generate("bell", model=net, size=96, steps=2, tile=True)
    assert longer.images.shape == (1, 1, 96)
    for size in (97, (64, 64), 0):
        with pytest.raises(ValueError, match=r"size of a sound|samples"):
            timed.prepare("bell", model=net, size=size)
    with pytest.raises(ValueError, match="makes sounds, not pictures"):
        pictures.prepare("bell", model=net)


def test_the_command_writes_wavs(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"generate --model {checkpoint} --steps 2 --quiet --out {tmp_path}"
    assert main([*f"{start}/a.wav --label reed --seed 7".split()]) == 0
    assert read_wav(tmp_path / "a.wav")[0].shape == (1, 64)
    assert read_recipe(tmp_path / "a.wav")["arguments"]["seed"] == 7
    assert main([*f"{start}/all --size 128".split()]) == 0
    assert sorted(p.name[:4] for p in (tmp_path / "all").iterdir()) == ["bell", "flut", "pluc", "reed"]
    capsys.readouterr()
    for rest, wrong in (
        ("/a.wav --label reed", "exists"),
        ("/b.png --label reed", "there are no sheets"),
        ("/b.wav", "one file takes one sound"),
        ("/b.wav --label reed --compare", "--compare is for pictures"),
        ("/b.wav --label horn", "horn"),
        ("/b.wav --label reed --size 33", "multiple of"),
    ):
        assert main((start + rest).split()) == 1
        assert wrong in capsys.readouterr().err


def test_the_data_set_is_written_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdiff.cli.train.NOTES", 1)
    assert main(["train", "--make-data", str(tmp_path / "notes"), "--of", "sounds", "--quiet"]) == 0
    assert len(list((tmp_path / "notes").glob("*/*.wav"))) == 4
    assert main(["train", "--make-data", str(tmp_path / "notes"), "--of", "sounds", "--quiet"]) == 1
