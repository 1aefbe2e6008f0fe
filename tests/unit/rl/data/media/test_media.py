"""Media by name, and what is read of them: images, videos, cells of a data set, rendered ones."""

import io
import threading

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rl.config.data import SourceConfig, VideoConfig
from rl.data.media.files import _timed, read_image, read_video
from rl.data.media.names import (
    MediaCell,
    MediaError,
    MediaFile,
    RenderedMedium,
    StillImage,
    Video,
    as_rgb,
    describe,
    from_json,
    to_json,
)
from rl.data.media.store import MediaStore
from rl.data.tasks.pictures import TASKS, ask, read_settings, render


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def encoded(image, form="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_video(path, num_frames, fps=10, codec="libx264", size=(64, 48), gop=12) -> str:
    """Frame n is grey, 8 n bright; times go by the rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        for n in range(num_frames):
            grey = np.full((size[1], size[0], 3), 8 * n % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        container.mux(stream.encode())
    return str(path)


def numbers(video: Video) -> list[int]:
    """Which frames of `write_video` they are; lossy codecs are off by less than half a step."""
    return [round(float(frame.mean()) / 8) for frame in video.frames]


def store(**data) -> MediaStore:
    return MediaStore(SourceConfig(**data))


def image_of(path) -> StillImage:
    seen = store().read(MediaFile("image", str(path)))
    assert isinstance(seen, StillImage)
    return seen


# Names


MEDIA = st.one_of(
    st.builds(MediaFile, st.sampled_from(["image", "video"]), st.text(st.characters())),
    st.builds(
        MediaCell,
        kind=st.sampled_from(["image", "video"]),
        split=st.sampled_from(["train", "heldout"]),
        column=st.text(),
        row=st.integers(0, 10**9),
        place=st.integers(0, 99),
    ),
    st.builds(
        RenderedMedium,
        task=st.sampled_from(sorted(TASKS)),
        seed=st.integers(0, 2**31),
        index=st.integers(0, 2**60),
        is_heldout=st.booleans(),
        place=st.integers(0, 9),
        kind=st.sampled_from(["image", "video"]),
        source=st.text(),
    ),
)


@given(st.lists(MEDIA, max_size=4))
def test_references_come_back_from_json(media):
    assert from_json(to_json(media)) == tuple(media)


def test_a_path_that_is_no_unicode_comes_back_as_ascii():
    text = to_json([MediaFile("image", "/a\udcff.png")])
    assert text == '[{"form": "file", "kind": "image", "path": "/a\\udcff.png"}]'
    assert from_json(text) == (MediaFile("image", "/a\udcff.png"),)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"form": "url"}]', '[{"form": "file"}]', "7"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="no list of media"):
        from_json(text)


def test_media_in_words():
    assert describe(MediaFile("image", "/a.png")) == "/a.png"
    assert describe(MediaCell("video", "train", "clip", 7, 1)) == (
        "video 1 of column clip, train row 7"
    )
    assert describe(RenderedMedium("digits", 3, 7, True, 0)) == (
        "digits, held-out picture 7 of seed 3"
    )
    assert describe(RenderedMedium("digits", 3, 7, False, 0, "video", "bursts")) == (
        "digits, training video 7 of seed 3 of bursts"
    )


# Images


def test_an_image_is_upright_rgb_over_white(tmp_path):
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    turned = clear.getexif()
    turned[0x0112] = 6  # shown turned clockwise
    clear.save(tmp_path / "a.png", exif=turned)
    pixels = image_of(tmp_path / "a.png").pixels
    assert (pixels.mode, pixels.size) == ("RGB", (20, 40))
    assert pixels.getpixel((19, 0)) == (255, 0, 0)
    assert pixels.getpixel((0, 39)) == (255, 255, 255)


def test_sixteen_bit_greys_keep_their_shades(tmp_path):
    shades = np.array([[0, 0x80FF, 0xFFFF]], np.uint16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    pixels = image_of(tmp_path / "deep.png").pixels
    assert np.asarray(pixels)[0, :, 0].tolist() == [0, 0x80, 0xFF]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_becomes_rgb(mode):
    assert as_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_a_digest_is_of_pixels_and_shape(tmp_path):
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.png")
    Image.new("RGB", (4, 2), "red").save(tmp_path / "b.bmp")
    Image.new("RGB", (2, 4), "red").save(tmp_path / "c.png")
    Image.new("RGB", (4, 2), (254, 0, 0)).save(tmp_path / "d.png")
    a, b, c, d = (image_of(tmp_path / name).digest for name in ("a.png", "b.bmp", "c.png", "d.png"))
    assert a == b
    assert len({a, c, d}) == 3
    assert len(a) == 16 and int(a, 16) >= 0


def bad_files(folder):
    """Path and reason of each."""
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG"):
        whole = encoded(Image.fromarray(noise), form)
        (folder / f"cut.{form}").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (2**13 + 1, 2**13)).save(folder / "large.png")
    Image.new("1", (15_000, 15_000)).save(folder / "bomb.png")
    Image.new("1", (201, 1)).save(folder / "narrow.png")
    (folder / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    return {
        "gone.png": "missing",
        ".": "missing",
        "a" * 5000: "missing",
        "a\0b": "missing",
        "text.png": "not_an_image",
        "empty.png": "not_an_image",
        "script.eps": "not_an_image",
        "cut.PNG": "unreadable",
        "cut.JPEG": "unreadable",
        "large.png": "too_large",
        "bomb.png": "too_large",
        "narrow.png": "too_large",
    }


@pytest.mark.filterwarnings("error")
def test_a_bad_image_is_named_with_its_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        medium = MediaFile("image", str(tmp_path / name))
        with pytest.raises(MediaError) as caught:
            store().read(medium)
        assert caught.value.reason == reason, name
        # Of a path without end its start.
        assert medium.path[:100] in str(caught.value) and len(str(caught.value)) < 500
        if reason != "unreadable":
            with pytest.raises(MediaError, match=f"^{reason}: "):
                store().check(medium)


def test_sizes_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (2**13 + 1, 2**13)).save(tmp_path / "large.png")
    Image.new("1", (200, 1)).save(tmp_path / "just.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(MediaError, match="got 8193 x 8192"):
        image_of(tmp_path / "large.png")
    store().check(MediaFile("image", str(tmp_path / "just.png")))


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]),
    st.integers(0, 400),
    st.binary(max_size=12),
    st.floats(0.3, 1),
)
def test_broken_bytes_are_pixels_or_a_media_error(form, place, patch, kept):
    whole = encoded(Image.linear_gradient("L").resize((16, 16)), form)
    broken = whole[:place] + patch + whole[place + len(patch) :]
    try:
        seen = read_image(io.BytesIO(broken[: round(kept * len(broken))]), "it")
    except MediaError as error:
        assert error.reason in ("not_an_image", "unreadable", "too_large")
    else:
        assert seen.pixels.mode == "RGB"


# Videos


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),  # with frames that are decoded before they are shown
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("a.mp4", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("a.avi", "mjpeg"),
        ("a.webm", "libvpx-vp9"),
    ],
)
def test_the_planned_frames_come_at_their_times(tmp_path, name, codec):
    path = write_video(tmp_path / name, 30, codec=codec)
    video = read_video(path, path, VideoConfig(fps=2))
    assert numbers(video) == [2, 7, 12, 17, 22, 27]
    assert video.times_s == pytest.approx([0.2, 0.7, 1.2, 1.7, 2.2, 2.7], abs=0.002)
    assert video.groups == ((2,), (7,), (12,), (17,), (22,), (27,))
    assert video.fps == pytest.approx(2, abs=0.01)
    assert (video.frames.shape, video.frames.dtype) == ((6, 48, 64, 3), np.uint8)


def test_a_long_video_is_packed_and_then_seen_more_rarely(tmp_path):
    path = write_video(tmp_path / "a.mp4", 30)  # 3 s
    packed = read_video(path, path, VideoConfig(fps=10, max_frames=15, frames_per_group=3))
    assert [len(group) for group in packed.groups] == [3] * 5
    assert len(packed.frames) == 15
    assert packed.fps == pytest.approx(5, abs=0.01)
    alone = read_video(path, path, VideoConfig(fps=10, max_frames=15, frames_per_group=1))
    assert [len(group) for group in alone.groups] == [1] * 15
    assert numbers(alone) == list(range(1, 30, 2))


def test_seeking_finds_the_frames_that_decoding_all_finds(tmp_path, monkeypatch):
    # A key frame every 4: 200 frames of which 4 are wanted are mostly skipped.
    path = write_video(tmp_path / "a.mp4", 200, gop=4)
    config, decoded = VideoConfig(fps=0.2), []

    def counted(*arguments):
        for one in _timed(*arguments):
            decoded.append(one)
            yield one

    monkeypatch.setattr("rl.data.media.files._timed", counted)
    sought = read_video(path, path, config)
    assert numbers(sought) == [n % 32 for n in (25, 75, 125, 175)]
    assert len(decoded) < 50
    monkeypatch.setattr("rl.data.media.files._by_seeking", lambda *_: iter(()))
    assert read_video(path, path, config).digest == sought.digest


def test_large_frames_are_scaled_down_in_their_shape(tmp_path):
    path = write_video(tmp_path / "a.mp4", 4, size=(640, 320))
    video = read_video(path, path, VideoConfig(max_frame_pixels=80 * 40))
    assert video.frames.shape[1:] == (40, 80, 3)


def test_a_video_is_upright(tmp_path):
    """An MP4 whose header says: turn it by 90 degrees clockwise."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        half = np.zeros((32, 64, 3), np.uint8)
        half[:, 32:] = 255  # the right half is white
        container.mux(stream.encode(av.VideoFrame.from_ndarray(half, "rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    turned = [0, one, 0, -one & 0xFFFFFFFF, 0, 0, 32 << 16, 0, 1 << 30]
    content[matrix : matrix + 36] = b"".join(n.to_bytes(4, "big") for n in turned)
    path.write_bytes(content)
    frame = read_video(str(path), "it", VideoConfig()).frames[0]
    assert frame.shape == (64, 32, 3)
    assert frame[:30].mean() < 10 and frame[34:].mean() > 245


def test_a_digest_of_a_video_is_of_frames_and_times(tmp_path):
    slow, fast = (write_video(tmp_path / f"{fps}.mp4", 4, fps=fps) for fps in (2, 4))
    config = VideoConfig(fps=8)
    first, again, other = (read_video(path, "it", config) for path in (slow, slow, fast))
    assert np.array_equal(first.frames, other.frames)
    assert first.digest == again.digest != other.digest


def test_a_bad_video_is_named_with_its_reason(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "picture.mp4", "PNG")
    (tmp_path / "text.mp4").write_text("no film")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        tone.sample_rate = 8000
        container.mux(stream.encode(tone))
    with av.open(str(tmp_path / "none.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    write_video(tmp_path / "narrow.avi", 1, codec="mjpeg", size=(2010, 10))
    reasons = {
        "gone.mp4": "missing",
        "text.mp4": "unreadable",
        "picture.mp4": "unreadable",
        "sound.mkv": "no_frames",
        "none.avi": "no_frames",
        "narrow.avi": "too_large",
    }
    for name, reason in reasons.items():
        medium = MediaFile("video", str(tmp_path / name))
        for use in (store().read, store().check):
            with pytest.raises(MediaError) as caught:
                use(medium)
            assert (caught.value.reason, name) == (reason, name)
            assert medium.path in str(caught.value)


def test_an_hour_is_the_longest(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2, fps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl.data.media.files.MAX_SECONDS", 1)
        with pytest.raises(MediaError, match=r"^too_large: it lasts 2 s, more than 1; cut it"):
            read_video(path, "it", VideoConfig())
    read_video(path, "it", VideoConfig())


def test_a_playlist_is_no_video_and_opens_no_other_file(tmp_path):
    write_video(tmp_path / "secret.ts", 10)
    (tmp_path / "list.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile secret.ts\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(MediaError, match=r"^unreadable: "):
            read_video(str(tmp_path / name), name, VideoConfig())


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 4000), patch=st.binary(max_size=12), kept=st.floats(0.1, 1))
def test_a_broken_video_is_frames_or_a_media_error(film, place, patch, kept):
    broken = film[:place] + patch + film[place + len(patch) :]
    try:
        seen = read_video(io.BytesIO(broken[: round(kept * len(broken))]), "it", VideoConfig())
    except MediaError as error:
        assert error.reason in ("no_frames", "unreadable", "too_large")
    else:
        assert len(seen.frames) == len(seen.times_s) == sum(map(len, seen.groups)) > 0


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    write_video(path, 20)
    return path.read_bytes()


def test_frames_per_group_divide_the_most_frames():
    assert VideoConfig().max_groups == 180
    with pytest.raises(ValueError, match=r"video\.max_frames=8 must be a multiple of"):
        VideoConfig(max_frames=8)


# The store


def pixels(shade) -> bytes:
    return encoded(Image.new("RGB", (4, 2), (shade, 0, 0)))


def write_parquet(path, values, of=None) -> str:
    pq.write_table(pa.table({"picture": pa.array(values, of)}), path)
    return str(path)


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_cells_are_read_from_the_split_that_holds_them(tmp_path):
    train = [[{"bytes": pixels(1), "path": "x"}, {"bytes": pixels(2), "path": None}], []]
    data = {
        "path": write_parquet(tmp_path / "t.parquet", train, pa.list_(STRUCT)),
        "heldout_path": write_parquet(tmp_path / "h.parquet", [pixels(3)]),
    }
    own = store(**data)
    cells = [
        MediaCell("image", "train", "picture", 0, 1),
        MediaCell("image", "train", "picture", 0, 0),
        MediaCell("image", "heldout", "picture", 0, 0),
    ]
    assert [own.read(cell).pixels.getpixel((0, 0))[0] for cell in cells] == [2, 1, 3]
    for cell in (
        MediaCell("image", "train", "picture", 1, 0),
        MediaCell("image", "train", "picture", 7, 0),
        MediaCell("image", "train", "colour", 0, 0),
    ):
        with pytest.raises(MediaError, match=r"^missing: the data set has no image 0 of column"):
            own.read(cell)


def test_an_image_column_of_datasets_is_read_as_it_is_stored(tmp_path):
    import datasets

    features = datasets.Features({"picture": datasets.List(datasets.Image())})
    cells = [[{"bytes": b"no picture", "path": None}, {"bytes": pixels(9), "path": None}]]
    table = datasets.Dataset.from_dict({"picture": cells}, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    own = store(path=str(tmp_path / "a.parquet"))
    seen = own.read(MediaCell("image", "train", "picture", 0, 1))
    assert seen.pixels.getpixel((0, 0)) == (9, 0, 0)
    with pytest.raises(MediaError, match=r"^not_an_image: image 0 of column picture, train row 0"):
        own.check(MediaCell("image", "train", "picture", 0, 0))


def test_a_data_set_that_is_gone_is_a_media_error(tmp_path):
    cell = MediaCell("image", "train", "picture", 0, 0)
    with pytest.raises(MediaError, match=r"^missing: the data set cannot be opened: .*gone"):
        store(path=str(tmp_path / "gone.parquet")).read(cell)
    with pytest.raises(MediaError, match=r"^missing: .*`data` names no data set"):
        store().read(cell)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_rendered_image_is_what_its_task_paints(task):
    chosen = {"digits": {"n": [2, 2]}}.get(task, {})
    own = store(kind="visual", path=task, settings=chosen)
    made = render(task, read_settings(task, chosen), 3, 5, True)
    (image,) = made.images
    medium = RenderedMedium(task, 3, 5, True, 0)
    own.check(medium)
    assert own.read(medium).pixels.tobytes() == image.tobytes()
    asked = ask(task, read_settings(task, chosen), 3, 5, True)
    assert asked == (made.question, made.answer, made.task, ("image",))


def test_what_the_data_do_not_draw_is_a_media_error():
    own = store(kind="visual", path="digits")
    for medium in (
        RenderedMedium("charts", 3, 5, True, 0),
        RenderedMedium("digits", 3, 5, True, 0, source="of a mixture of before"),
    ):
        with pytest.raises(MediaError, match=r"^missing: the data draw no "):
            own.read(medium)


def test_a_drawn_video_shows_each_digit_for_its_time():
    in_turn = {"n": [3, 3], "shown": "in_turn", "seconds_each": [0.5, 0.5], "width": 84}
    data = {"kind": "visual", "path": "digits", "settings": in_turn}
    video = {"fps": 4, "max_frames": 6, "frames_per_group": 6}
    seen = store(**data, video=video).read(RenderedMedium("digits", 3, 5, True, 0, "video"))
    assert isinstance(seen, Video)
    pictures = render("digits", read_settings("digits", in_turn), 3, 5, True).images
    shown = [
        next(n for n, picture in enumerate(pictures) if np.array_equal(frame, np.asarray(picture)))
        for frame in seen.frames
    ]
    # 1.5 s at 4 frames a second, each in the middle of its share.
    assert shown == [0, 0, 1, 1, 2, 2]
    assert seen.times_s == pytest.approx([0.1, 0.367, 0.6, 0.867, 1.1, 1.367], abs=0.04)
    assert seen.groups == ((1, 4, 6, 9, 11, 14),)


def test_a_burst_is_over_before_a_second_frame_is_taken():
    burst = {"n": [3, 3], "shown": "in_turn", "seconds_each": [0.15, 0.15]}
    one_group = {"fps": 3, "max_frames": 6, "frames_per_group": 6}
    data = {"kind": "visual", "path": "digits", "settings": burst, "video": one_group}
    seen = store(**data).read(RenderedMedium("digits", 3, 5, True, 0, "video"))
    assert isinstance(seen, Video)
    assert len(seen.frames) == 1


def test_what_was_read_lately_is_kept_up_to_a_number_of_bytes(tmp_path):
    media = []
    for n in range(4):
        Image.new("RGB", (10, 10), (n, 0, 0)).save(tmp_path / f"{n}.png")  # 300 bytes of pixels
        media.append(MediaFile("image", str(tmp_path / f"{n}.png")))
    own = MediaStore(SourceConfig(), cache_bytes=700)
    first, second, _ = (own.read(medium) for medium in (media[0], media[1], media[0]))
    assert own.read(media[0]) is first
    own.read(media[2])  # no room: the one asked for the longest ago goes
    assert own.read(media[0]) is first
    assert own.read(media[1]) is not second
    small = MediaStore(SourceConfig(), cache_bytes=299)
    assert small.read(media[0]) is not small.read(media[0])


def test_threads_read_the_same_pixels(tmp_path):
    rows = [pixels(n) for n in range(40)]
    data = SourceConfig(path=write_parquet(tmp_path / "a.parquet", rows))
    own, seen = MediaStore(data, cache_bytes=200), [[] for _ in range(4)]

    def read(out):
        for n in range(40):
            cell = MediaCell("image", "train", "picture", n, 0)
            out.append(own.read(cell).pixels.getpixel((0, 0))[0])

    threads = [threading.Thread(target=read, args=(out,)) for out in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [list(range(40))] * 4
