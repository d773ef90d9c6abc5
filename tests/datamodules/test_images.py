import numpy as np
import pytest
from PIL import Image

from datamodules.images import CorruptImageError, read_image
from errors import UserError

GRADIENT = np.linspace(0, 255, 40 * 30).reshape(30, 40)


def rgb():
    return np.stack([GRADIENT, 255 - GRADIENT, np.full_like(GRADIENT, 90)], -1).astype(np.uint8)


def test_png_is_exact(tmp_path):
    Image.fromarray(rgb()).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), rgb())


@pytest.mark.parametrize("quality", [75, 95])
def test_jpeg_is_that_of_pillow(tmp_path, quality):
    Image.fromarray(rgb()).save(tmp_path / "x.jpg", quality=quality)
    expected = np.asarray(Image.open(tmp_path / "x.jpg").convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "x.jpg") - expected).max() <= 3  # decoders round chroma differently


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_gray(tmp_path, ending):
    gray = GRADIENT.astype(np.uint8)
    Image.fromarray(gray).save(tmp_path / f"x.{ending}", quality=100)
    image = read_image(tmp_path / f"x.{ending}")
    assert image.shape == (30, 40, 3) and np.abs(image - gray[..., None].astype(int)).max() <= 2


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    wide = (GRADIENT * 257).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png")[..., 0], wide >> 8)


def test_palette_and_transparency(tmp_path):
    Image.fromarray(rgb()).quantize(16).save(tmp_path / "p.png")
    expected = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), expected)
    clear = np.dstack([rgb(), np.where(GRADIENT > 100, 255, 0).astype(np.uint8)])
    Image.fromarray(clear).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb() * (GRADIENT > 100)[..., None])


def test_cmyk_has_the_right_colours(tmp_path):
    red = Image.new("RGB", (40, 30), (220, 30, 20))
    red.convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "x.jpg").mean((0, 1)) - [220, 30, 20]).max() < 12


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation_follows_the_annotated_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb()).save(tmp_path / "x.jpg", exif=exif, quality=95)
    turned = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # quarter turns to the left
    upright = np.rot90(rgb(), turned).astype(int)
    assert np.abs(read_image(tmp_path / "x.jpg") - upright).max() < 30
    assert read_image(tmp_path / "x.jpg", (30, 40)).shape == (30, 40, 3)
    if orientation in (6, 8):  # the annotations speak of the upright picture
        assert np.abs(read_image(tmp_path / "x.jpg", (40, 30)) - upright).max() < 30


def test_another_size_than_annotated_is_refused(tmp_path):
    Image.fromarray(rgb()).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: the picture has 40 x 30 pixels, its annotation says 50 x 30"):
        read_image(tmp_path / "x.png", (30, 50))


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.97])
def test_truncated_files_are_found(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = tmp_path / f"x.{ending}"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CorruptImageError, match=rf"x\.{ending}: cannot be decoded"):
        read_image(file)


def test_not_a_picture(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404</html>")
    with pytest.raises(CorruptImageError, match=r"x\.jpg: cannot be decoded"):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(UserError, match=r"y\.jpg: cannot be read"):
        read_image(tmp_path / "y.jpg")
