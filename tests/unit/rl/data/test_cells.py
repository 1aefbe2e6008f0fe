"""What a cell or a content part says of a medium, however people write it."""

import base64

import pytest

from rl.data.cells import Content, media_in, messages_in, parts_of
from rl.data.media.names import MediaError

# The start of a picture, long enough to be told from a path.
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
BASE64 = base64.b64encode(PNG).decode()
NOISE = PNG + bytes(range(256))
URI = f"data:image/png;base64,{BASE64}"


@pytest.mark.parametrize(
    ("cell", "contents"),
    [
        ("a.png", [Content("a.png")]),
        ("file:///pictures/a%20b.png", [Content("/pictures/a b.png")]),
        ("https://example.org/a.png", [Content("https://example.org/a.png")]),
        (PNG, [Content(PNG)]),
        (URI, [Content(PNG)]),
        ("data:image/svg+xml,%3Csvg%3E", [Content(b"<svg>")]),
        ("DATA:image/png;charset=x;BASE64," + BASE64.rstrip("="), [Content(PNG)]),
        (BASE64, [Content(PNG)]),
        (BASE64.rstrip("="), [Content(PNG)]),
        (base64.encodebytes(PNG).decode(), [Content(PNG)]),
        (base64.urlsafe_b64encode(NOISE).decode(), [Content(NOISE)]),
        (["a.png", None, BASE64], [Content("a.png"), None, Content(PNG)]),
        ('["a.png", "b.png"]', [Content("a.png"), Content("b.png")]),
        ({"bytes": PNG, "path": "a.png"}, [Content(PNG)]),
        ({"bytes": None, "path": "a.png"}, [Content("a.png")]),
        ({"image": "a.png"}, [Content("a.png")]),
        ({"url": URI}, [Content(PNG)]),
        ({"image_url": {"url": "a.png", "detail": "low"}}, [Content("a.png")]),
        ({"data": BASE64, "mime_type": "image/png"}, [Content(PNG)]),
        ({"source": {"type": "base64", "media_type": "image/png", "data": BASE64}}, [Content(PNG)]),
        ({"path": "a.png", "max_pixels": 100}, [Content("a.png", {"max_pixels": 100})]),
        (None, []),
        ("", []),
        ([], []),
        ({"bytes": None, "path": None}, []),
    ],
)
def test_an_image_in_any_form(cell, contents):
    assert media_in(cell, "image") == contents


@pytest.mark.parametrize(
    ("cell", "contents"),
    [
        ("a.mp4", [Content("a.mp4")]),
        (["a.mp4", "b.mp4"], [Content("a.mp4"), Content("b.mp4")]),
        (["1.png", "2.JPG"], [Content(("1.png", "2.JPG"))]),
        ([PNG, PNG], [Content((PNG, PNG))]),
        ([["1.png", "2.png"], ["3.png"]], [Content(("1.png", "2.png")), Content(("3.png",))]),
        ({"video": ["1.png"], "fps": 2}, [Content(("1.png",), {"fps": 2})]),
        ({"video": "a.mp4", "nframes": 4}, [Content("a.mp4", {"nframes": 4})]),
    ],
)
def test_a_video_may_be_its_frames(cell, contents):
    assert media_in(cell, "video") == contents


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (7, "must hold paths, bytes"),
        ({"colour": "red"}, "got colour"),
        ({"path": "a.png", "zoom": 2}, "got zoom"),
        ({"path": "a.png", "max_pixels": "many"}, "max_pixels"),
        ([["a.png"]], "must hold paths, bytes"),
    ],
)
def test_other_cells_hold_no_images(cell, message):
    with pytest.raises(ValueError, match=message):
        media_in(cell, "image")


def test_messages_may_have_empty_keys_of_another_dialect():
    row = {"from": "human", "value": "2+2?", "role": None, "content": None}
    assert messages_in([row]) == [{"role": "user", "content": "2+2?"}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png", "text": None},
        {"type": "image", "url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "input_image", "image_url": "a.png"},
        {"image": "a.png"},
    ],
)
def test_a_part_brings_its_picture(part):
    assert parts_of([part, {"type": "text", "text": "?"}]) == [
        {"type": "image", "content": Content("a.png")},
        {"type": "text", "text": "?"},
    ]
    chat = [{"role": "user", "content": [part]}, {"from": "gpt", "value": "4"}]
    assert media_in(chat, "image") == [Content("a.png")]


def test_a_part_without_a_picture_is_a_place():
    assert parts_of([{"type": "image", "image": None}, "then", {"type": "video"}]) == [
        {"type": "image"},
        {"type": "text", "text": "then"},
        {"type": "video"},
    ]


@pytest.mark.parametrize(
    "part", [{"type": "audio", "audio": "a.wav"}, {"type": "image", "at": 3}, 7]
)
def test_other_parts_leave_their_row_out(part):
    with pytest.raises(MediaError, match=r"^unknown_part: "):
        parts_of([part])


def test_an_error_holds_no_picture():
    for cell in (7 * BASE64 + ".png", {"type": "audio", "audio": BASE64 * 99}):
        with pytest.raises(MediaError) as caught:
            parts_of([{"type": "x", "x": cell}])
        assert len(str(caught.value)) < 500
    assert len(str(MediaError("missing: " + "x" * 10_000))) < 500
