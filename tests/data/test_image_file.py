"""Image files as people have them: every kind gives the picture that one sees, or one error."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.data.image_file import read_image
from runner.errors import DataUnavailable

PICTURE = Image.radial_gradient("L").resize((60, 40)).convert("RGB")


def mean_difference(image: Image.Image) -> float:
    assert image.mode == "RGB"
    assert image.size == PICTURE.size
    return float(np.abs(np.asarray(image, np.float64) - np.asarray(PICTURE, np.float64)).mean())


@pytest.mark.parametrize("mode, name", [("L", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("CMYK", "a.jpg"), ("LA", "a.png")])
def test_colour_modes(tmp_path: Path, mode: str, name: str) -> None:
    PICTURE.convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / name)
    assert mean_difference(read_image(tmp_path / name)) < 2


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert mean_difference(read_image(tmp_path / "a.png")) == 0


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned by 90 degrees
    PICTURE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert mean_difference(read_image(tmp_path / "a.jpg")) < 2


def test_a_moving_picture_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("P", PICTURE.size), PICTURE.convert("P")]
    PICTURE.quantize().save(tmp_path / "a.gif", save_all=True, append_images=frames)
    assert mean_difference(read_image(tmp_path / "a.gif")) < 2


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (200, 10, 10)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (200, 10, 10)


@pytest.mark.parametrize("content", [b"this is no picture", b""])
def test_no_picture_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"a\.png is not a readable image"):
        read_image(tmp_path / "a.png")


def test_damaged_files_are_one_error_wherever_they_are_cut_or_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    PICTURE.save(file)
    whole = file.read_bytes()
    for at in (20, 40, len(whole) // 2):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            file.write_bytes(content)
            with pytest.raises(DataUnavailable, match="is not a readable image"):
                read_image(file)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(DataUnavailable, match="is not a readable image"):
            read_image(path)


def test_what_is_too_large_or_too_narrow_or_no_integer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (3000, 1)).save(tmp_path / "line.png")
    with pytest.raises(DataUnavailable, match="is 3000 x 1 pixels, a line rather than a picture"):
        read_image(tmp_path / "line.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "real.tiff")
    with pytest.raises(DataUnavailable, match="floating-point values"):
        read_image(tmp_path / "real.tiff")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    PICTURE.save(tmp_path / "huge.png")
    with pytest.raises(DataUnavailable, match="exceeds limit of"):
        read_image(tmp_path / "huge.png")
