"""Pictures and films with the quirks that cameras, scanners and tools give them."""

import io
import struct

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rl.config.data import SourceConfig, VideoConfig
from rl.data.media.files import check, read_image, read_video
from rl.data.media.names import MediaCell, MediaError
from rl.data.media.store import MediaStore


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def saved(image, form, **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer


def shades(source) -> list[int]:
    """The greys of a picture of one row."""
    return np.asarray(read_image(source, "it").pixels)[0, :, 0].tolist()


@pytest.mark.parametrize("form", ["PNG", "AVIF", "JPEG2000", "PPM", "ICO", "WEBP"])
def test_every_format_is_read(form):
    seen = np.asarray(
        read_image(saved(Image.new("RGB", (32, 32), (200, 30, 30)), form), "it").pixels
    )
    assert seen.shape == (32, 32, 3) and abs(seen.mean((0, 1)) - (200, 30, 30)).max() < 6


@pytest.mark.parametrize(
    ("pixels", "mode", "greys"),
    [
        ([0, 0x8000, 0xFFFF], np.uint16, [0, 0x80, 0xFF]),
        ([0, 0x8000, 0xFFFF], np.int32, [0, 0x80, 0xFF]),
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([-1000, 0, 1000], np.int32, [0, 127, 255]),
        ([0, 2**29, 2**30], np.int32, [0, 127, 255]),
        ([0.0, 0.5, 1.0], np.float32, [0, 127, 255]),
        ([0.0, 128.0, 255.0], np.float32, [0, 128, 255]),
        ([-3.0, 0.0, 3.0], np.float32, [0, 127, 255]),
        ([0.0, float("nan"), 1.0], np.float32, [0, 0, 255]),
        ([5.0, 5.0, 5.0], np.float32, [5, 5, 5]),
    ],
)
def test_deep_greys_keep_their_shades(pixels, mode, greys):
    assert shades(saved(Image.fromarray(np.array([pixels], mode)), "TIFF")) == greys


def test_a_transparent_colour_is_seen_as_white():
    colours = [(200, 30, 30), (30, 30, 200)]
    two = Image.fromarray(np.array([colours], np.uint8))
    # A PNG may name one colour that is transparent, and have no channel for it.
    assert shades(saved(two, "PNG", transparency=colours[0])) == [255, 30]


def test_a_png_may_hold_megabytes_of_text():
    info = PngInfo()
    info.add_text("prompt", "word " * 400_000, zip=True)
    assert shades(saved(Image.new("L", (2, 1), 9), "PNG", pnginfo=info)) == [9, 9]


@pytest.mark.parametrize(
    ("form", "cut"),
    [
        *[("JPEG", 2), ("JPEG", 400), ("PNG", 40), ("WEBP", 400), ("AVIF", 400)],
        *[("GIF", 400), ("BMP", 400), ("TIFF", 400), ("JPEG2000", 3000), ("PPM", 400)],
    ],
)
def test_a_cut_picture_is_found_before_it_is_asked(form, cut):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    content = saved(Image.fromarray(noise), form).getvalue()
    check("image", io.BytesIO(content), "it")
    # What cameras write behind a picture is no cut.
    check("image", io.BytesIO(content + bytes(10**5)), "it")
    with pytest.raises(MediaError, match=r"^(unreadable|not_an_image): it"):
        check("image", io.BytesIO(content[:-cut]), "it")


def test_a_picture_has_the_size_that_its_cell_says():
    source = saved(Image.new("RGB", (40, 20)), "PNG")

    def size(**settings):
        return read_image(source, "it", settings).pixels.size

    assert size(max_pixels=200) == (20, 10)
    assert size(max_pixels=10**6) == (40, 20)
    assert size(min_pixels=3200) == (80, 40)
    assert size(resized_width=30, resized_height=50) == (30, 50)


# Films


def write_video(path, num_frames=20, fps=10, size=(64, 48)) -> str:
    """The upper half is white and so is the left third of the lower one; frame n is n * 8 bright
    at the bottom right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for n in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 8 * n % 256, np.uint8)
            pixels[: size[1] // 2], pixels[:, : size[0] // 3] = 255, 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((-1, 0, 0, -1), lambda frame: frame[::-1, ::-1]),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda frame: np.rot90(frame.swapaxes(0, 1), 2)),
    ],
    ids=["mirror", "flip", "half", "clockwise", "counter", "transpose", "transverse"],
)
def test_a_film_is_turned_and_mirrored_as_its_header_says(tmp_path, matrix, turned):
    path = tmp_path / "a.mp4"
    plain = read_video(write_video(path, 2), "it", VideoConfig()).frames[0]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (n << 16 for n in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    seen = read_video(str(path), "it", VideoConfig()).frames[0]
    assert np.array_equal(seen, turned(plain))


def test_a_cover_picture_is_no_film(tmp_path):
    path = str(tmp_path / "a.mkv")
    with av.open(path, "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        film = container.add_stream("libx264", rate=10)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        for stream, count in ((cover, 1), (film, 20)):
            for n in range(count):
                frame = av.VideoFrame.from_image(Image.new("RGB", (stream.width, stream.height)))
                frame.pts = n
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    assert read_video(path, "it", VideoConfig()).frames.shape[1:] == (48, 64, 3)


def test_music_with_a_cover_is_no_film(tmp_path):
    path = str(tmp_path / "a.m4a")
    with av.open(path, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_image(Image.new("RGB", (16, 16)))
        frame.pts = 0
        for packet in cover.encode(frame) + cover.encode():
            container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate, silence.pts = 16000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(MediaError, match=r"^no_frames: it holds only a cover picture"):
        check("video", path, "it")


def test_what_is_no_film_is_told_the_formats(tmp_path):
    for name, form in (("picture.mp4", "PNG"), ("moving.webp", "WEBP")):
        Image.new("RGB", (16, 16)).save(tmp_path / name, form)
        with pytest.raises(MediaError, match=r"none of the video formats .*mp4"):
            check("video", str(tmp_path / name), name)


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"", "it is empty"),
        (b"words", "$"),
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_what_is_no_medium_is_told_for_what_it_is(tmp_path, kind, start, told):
    (tmp_path / "a").write_bytes(start)
    for source in (str(tmp_path / "a"), io.BytesIO(start)):
        with pytest.raises(MediaError, match=rf"it is none of .*{told}"):
            check(kind, source, "it")


def test_a_clip_of_one_frame_is_there_twice_for_models_that_see_pairs(tmp_path):
    clip = read_video(write_video(tmp_path / "a.mp4", 1), "it", VideoConfig())
    assert len(clip.frames) == 1
    pair = clip.in_pairs
    assert np.array_equal(pair.frames[0], pair.frames[1]) and pair.times_s[0] < pair.times_s[1]
    film = read_video(write_video(tmp_path / "b.mp4", 20), "it", VideoConfig())
    assert film.in_pairs is film


def test_settings_of_a_cell_go_before_those_of_the_recipe(tmp_path):
    path, config = write_video(tmp_path / "a.mp4", 40), VideoConfig(fps=3, max_frames=9)

    def video(**settings):
        return read_video(path, "it", config, settings)

    assert len(video().frames) == 9
    assert len(video(fps=1).frames) == 4
    assert len(video(nframes=5).frames) == 5
    assert len(video(max_frames=2).frames) == 2
    assert len(video(max_frames=500).frames) == 9
    assert video(max_pixels=768).frames.shape[1:3] == (24, 32)
    part = video(video_start=1, video_end=2, fps=10)
    assert len(part.frames) == 9 and part.frames[0, -1, -1, 0] == pytest.approx(80, abs=9)
    with pytest.raises(MediaError, match=r"^no_frames: it has no frame from 9"):
        video(video_start=9)


def test_a_list_of_pictures_is_a_video(tmp_path):
    for n, size in enumerate([(20, 10), (20, 10), (40, 20)]):
        Image.new("RGB", size, (40 * n, 0, 0)).save(tmp_path / f"{n}.png")
    frames = tuple(str(tmp_path / f"{n}.png") for n in range(3))
    video = read_video(frames, "it", VideoConfig(fps=2))
    assert video.frames.shape == (3, 10, 20, 3) and video.times_s == (0.0, 0.5, 1.0)
    assert video.frames[:, 0, 0, 0].tolist() == [0, 40, 80] and video.fps == 2
    assert sum(map(len, video.groups)) == 3
    few = read_video(frames, "it", VideoConfig(fps=2, max_frames=2, frames_per_group=1))
    assert few.frames[:, 0, 0, 0].tolist() == [0, 80]
    check("video", frames, "it")
    with pytest.raises(MediaError, match=r"gone\.png does not exist"):
        check("video", (*frames, str(tmp_path / "gone.png")), "it")


def test_a_store_reads_frames_and_settings_out_of_a_cell(tmp_path):
    encoded = [saved(Image.new("RGB", (40, 20), (n, 0, 0)), "PNG").getvalue() for n in (1, 2)]
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    columns = {"v": [encoded], "i": [{"path": "a.png", "max_pixels": 200.0}]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    store = MediaStore(SourceConfig(path=str(tmp_path / "a.parquet")))
    assert store.read(MediaCell("video", "train", "v", 0, 0)).frames[:, 0, 0, 0].tolist() == [1, 2]
    assert store.read(MediaCell("image", "train", "i", 0, 0)).pixels.size == (20, 10)
    mixed = SourceConfig.model_validate({"mix": {"x": {"path": str(tmp_path / "a.parquet")}}})
    cell = MediaCell("image", "train", "i", 0, 0, "x")
    assert MediaStore(mixed).read(cell).pixels.size == (20, 10)
