import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from common.data import InputError
from common.io import read_particles

DATA = np.random.default_rng(0).integers(0, 50, size=(5, 8, 8)).astype(np.int16)


def _signal(data: np.ndarray, scale: float, units: str) -> dict[str, Any]:
    axes: list[dict[str, Any]] = [
        {"name": name, "size": size, "index_in_array": k, "scale": scale, "offset": 0.0, "units": units}
        for k, (name, size) in enumerate(zip("nyx"[-data.ndim :], data.shape, strict=True))
    ]
    axes[0] |= {"scale": 1.0, "units": ""} if data.ndim == 3 else {}
    return {"data": data, "axes": axes, "metadata": {}, "original_metadata": {}}


def _install(monkeypatch: pytest.MonkeyPatch, name: str, *signals: dict[str, Any]) -> None:
    """A RosettaSciIO that returns these signals, in the form its documentation gives."""
    plugin = ModuleType(f"rsciio.{name}")
    plugin.file_reader = lambda filename, lazy: list(signals)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rsciio", ModuleType("rsciio"))
    monkeypatch.setitem(sys.modules, f"rsciio.{name}", plugin)


@pytest.mark.parametrize(
    ("suffix", "plugin"), [("dm3", "digitalmicrograph"), ("dm4", "digitalmicrograph"), ("emd", "emd"), ("ser", "tia")]
)
@pytest.mark.parametrize(("scale", "units"), [(0.035, "nm"), (0.35, "Å"), (35.0, "pm"), (3.5e-5, "µm"), (3.5e-11, "m")])
def test_units_become_angstrom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, plugin: str, scale: float, units: str
) -> None:
    _install(monkeypatch, plugin, _signal(DATA, scale, units))
    (tmp_path / f"a.{suffix}").write_bytes(b"x")
    particles = read_particles(tmp_path / f"a.{suffix}")
    assert particles.stack.pixel_size == pytest.approx(0.35)
    np.testing.assert_array_equal(particles.stack.images.numpy(), DATA.astype(np.float32))


def test_without_a_unit_of_length_the_pixel_size_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "emd", _signal(DATA, 1.0, "px"))
    (tmp_path / "a.emd").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.emd: the file does not say the pixel size"):
        read_particles(tmp_path / "a.emd")
    assert read_particles(tmp_path / "a.emd", pixel_size=0.4).stack.pixel_size == 0.4


def test_the_largest_data_set_is_read_and_the_choice_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "emd", _signal(DATA[0], 0.1, "nm"), _signal(DATA, 0.1, "nm"))
    (tmp_path / "a.emd").write_bytes(b"x")
    particles = read_particles(tmp_path / "a.emd")
    assert len(particles.stack) == 5
    assert "a.emd: 2 data sets of images, the largest is read" in particles.notes


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rsciio", None)
    monkeypatch.setitem(sys.modules, "rsciio.digitalmicrograph", None)
    (tmp_path / "a.dm4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.dm4: reading \.dm4 needs RosettaSciIO.*pip install nanospr\[formats\]"):
        read_particles(tmp_path / "a.dm4")


def test_what_holds_no_square_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ser").write_bytes(b"x")
    _install(monkeypatch, "tia", {"data": np.zeros(100), "axes": []})
    with pytest.raises(InputError, match=r"a\.ser: holds no image"):
        read_particles(tmp_path / "a.ser")
    _install(monkeypatch, "tia", _signal(DATA[:, :4], 0.1, "nm"))
    with pytest.raises(InputError, match=r"a\.ser: the images are 8 x 4 pixels"):
        read_particles(tmp_path / "a.ser")
    _install(monkeypatch, "tia", _signal(DATA.astype(complex), 0.1, "nm"))
    with pytest.raises(InputError, match=r"a\.ser: the images hold complex128"):
        read_particles(tmp_path / "a.ser")
