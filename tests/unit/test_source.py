"""What goes in: every way to give a picture, and every way to give a wrong one."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest
from PIL import Image as pillow

from ifmesh import fetch
from ifmesh.errors import BadRequest
from ifmesh.geometry import FILE_BYTES
from ifmesh.source import File, read

SIZE = (48, 32)
NOISE = pillow.frombytes("RGB", SIZE, numpy.random.default_rng(7).integers(0, 256, 48 * 32 * 3, numpy.uint8).tobytes())


def saved(picture: pillow.Image, kind: str = "PNG", orientation: int = 1) -> bytes:
    data, exif = io.BytesIO(), pillow.Exif()
    exif[0x0112] = orientation
    picture.save(data, kind, exif=exif)
    return data.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def opened(file: File) -> pillow.Image:
    picture = pillow.open(io.BytesIO(file.data))
    picture.load()
    assert picture.format == file.format
    return picture


def refused(what: object, *said: str, field: str = "source") -> BadRequest:
    with pytest.raises(BadRequest) as error:
        read(what, field)
    assert error.value.field == field
    for part in said:
        assert part in str(error.value)
    return error.value


# ---- Pillow images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_pillow_image_keeps_mode_and_pixels(mode: str) -> None:
    picture = NOISE.convert(mode) if mode != "I;16" else pillow.frombytes("I;16", SIZE, NOISE.tobytes()[: 48 * 32 * 2])
    file = read(picture, "source")
    assert (file.width, file.height, file.format) == (*SIZE, "PNG")
    assert opened(file).mode == mode
    assert opened(file).tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "I", "PA", "RGBa", "RGBX"])
def test_other_modes_become_rgb(mode: str) -> None:
    picture = NOISE.convert(mode) if mode not in ("LAB", "PA", "RGBa") else pillow.new(mode, SIZE, 7)
    assert opened(read(picture, "source")).tobytes() == picture.convert("RGB").tobytes()


def test_equal_pixels_give_equal_bytes_whatever_else_a_picture_knows() -> None:
    turned = pillow.open(io.BytesIO(saved(NOISE, orientation=6)))
    turned.info["comment"] = turned.info["icc_profile"] = b"something"
    assert read(turned, "source") == read(NOISE, "source")
    assert turned.info["comment"] == b"something"
    assert not opened(read(turned, "source")).getexif()


def test_pillow_images_that_cannot_be_used() -> None:
    cut = pillow.open(io.BytesIO(saved(NOISE)[:2000]))
    refused(cut, "cannot be decoded", "truncated")
    refused(pillow.new("F", SIZE), "floats", "0..255")
    refused(pillow.new("La", SIZE), "cannot be decoded")
    refused(pillow.new("L", (0, 5)), "no pixels")
    refused(pillow.new("L", (5001, 5000)), "5001 x 5000 pixels; at most 25 megapixels")
    refused(pillow.new("L", (401, 100)), "401 x 100", "at most 4 times")
    assert read(pillow.new("L", (100, 400)), "source").height == 400


def test_a_pillow_image_too_large_as_png() -> None:
    noise = pillow.frombytes("RGB", (2400, 2400), os.urandom(2400 * 2400 * 3))
    refused(noise, f"at most {FILE_BYTES}", "JPEG")


# ---- bytes and paths


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_file_goes_as_it_is_and_is_measured_as_it_is_seen(kind: str, orientation: int, tmp_path: Path) -> None:
    data = saved(NOISE, kind, orientation)
    size = (32, 48) if orientation in (6, 8) else SIZE
    expected = File(data, *size, kind)
    (tmp_path / "a picture").write_bytes(data)
    for what in (data, bytearray(data), memoryview(data), tmp_path / "a picture", str(tmp_path / "a picture")):
        assert read(what, "source") == expected


def test_a_phones_jpeg_with_two_pictures_is_a_jpeg() -> None:
    data = io.BytesIO()
    NOISE.save(data, "MPO", save_all=True, append_images=[NOISE])
    assert pillow.open(io.BytesIO(data.getvalue())).format == "MPO"
    assert read(data.getvalue(), "source") == File(data.getvalue(), *SIZE, "JPEG")


def test_other_formats_are_named() -> None:
    for kind, name in (("GIF", "a GIF"), ("TIFF", "a TIFF"), ("BMP", "a BMP"), ("AVIF", "avif")):
        data = io.BytesIO()
        NOISE.save(data, kind)
        refused(data.getvalue(), name, "send PNG, JPEG or WebP")
    refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG")
    refused(b"\n <!DOCTYPE html><html>", "a web page")
    refused(b"hello", "no picture of a known format")
    refused(b"", "is empty")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_cut_anywhere_is_refused(kind: str) -> None:
    data = saved(NOISE, kind)
    for end in (16, 40, len(data) // 2, len(data) - 30):
        refused(data[:end], "bytes", "cannot be decoded")


def test_a_damaged_file_is_refused() -> None:
    data = bytearray(saved(NOISE))
    data[len(data) // 2] ^= 0xFF
    refused(data, "cannot be decoded")


def test_too_many_bytes(tmp_path: Path) -> None:
    data = saved(NOISE) + bytes(FILE_BYTES)
    refused(data, f"{len(data)} bytes", "16 MiB")
    (tmp_path / "a.png").write_bytes(data)
    error = refused(tmp_path / "a.png", f"{len(data)} bytes", "16 MiB")
    assert error.value == str(tmp_path / "a.png")
    os.truncate(tmp_path / "a.png", 1 << 40)  # a file with a hole: it takes no room, and no reading
    refused(tmp_path / "a.png", f"{1 << 40} bytes")


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (2**31 - 1, 2**31 - 1), (5001, 5000)])
def test_a_bomb_is_refused_before_it_is_decoded(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_decoding(self: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", no_decoding)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        refused(header_of(width, height), f"{width} x {height} pixels", "25 megapixels")
    assert not said


def test_the_warnings_of_pillow_stay_within() -> None:
    data = io.BytesIO()
    NOISE.save(data, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\0\0")  # a tag beyond the end
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        assert read(data.getvalue(), "source").width == 48
        assert warnings.filters == before
        assert not said
        pillow.open(data).getexif().get(0x0112)
        assert said  # Pillow alone does warn


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.png", "no such file").value == str(tmp_path / "none.png")
    refused("none.png", "'none.png'", "no such file")
    refused(str(tmp_path), "a folder")
    refused("a\0b", "cannot be read")
    refused("x" * 5000, "cannot be read")
    refused("", "no such file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a file")  # and nobody waits for a writer
    refused("/dev/zero", "not a file")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(saved(NOISE))
    (tmp_path / "secret.png").chmod(0)
    refused(tmp_path / "secret.png", "cannot be read: Permission denied")


def painted(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    data = io.BytesIO()
    NOISE.save(data, "JPEG", progressive=True)
    whole = data.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * scans + whole[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(painted(10), "source").format == "JPEG"
    assert read(painted(0) + b"\xff\xda\0\2" * 200, "source").format == "JPEG", "what phones put behind the picture is not painted"

    def no_decoding(self: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", no_decoding)
    refused(painted(200), "more than 100 scans", "save it anew")


def test_what_is_nothing_of_all_this() -> None:
    for what in (None, 7, ["a.png"], object):
        refused(what, "a Pillow image, a path", field="mask")
    released = memoryview(saved(NOISE))
    released.release()
    refused(released, "a Pillow image, a path")


class Odd:
    """Has what an array has, as others have it."""

    def __init__(self, interface: dict[str, object]) -> None:
        self.__array_interface__ = interface


@pytest.mark.parametrize("interface", [{}, {"shape": 3, "typestr": "|u1"}, {"shape": (8, None), "typestr": "|u1"}, {"shape": (8, 8)}])
def test_odd_arrays_are_refused(interface: dict[str, object]) -> None:
    refused(Odd(interface), "a Pillow image, a path")
    refused(Odd({"shape": (8, 8), "typestr": "|u1"}), "a Pillow image, a path")  # and nothing behind it


# ---- arrays


@pytest.mark.parametrize(("shape", "mode"), [((32, 48), "L"), ((32, 48, 1), "L"), ((32, 48, 3), "RGB"), ((32, 48, 4), "RGBA")])
def test_an_array_of_bytes(shape: tuple[int, ...], mode: str) -> None:
    array = numpy.random.default_rng(7).integers(0, 256, shape, numpy.uint8)
    for laid in (array, numpy.asfortranarray(array), array[::-1][::-1]):
        file = read(laid, "source")
        assert (file.width, file.height, file.format) == (48, 32, "PNG")
        assert opened(file).mode == mode
        assert (numpy.asarray(opened(file)).reshape(shape) == array).all()


def test_an_array_of_truth_is_a_mask() -> None:
    array = numpy.zeros((32, 48), bool)
    array[4:8, 2:40] = True
    file = read(array, "mask")
    assert (numpy.asarray(opened(file)) == array * 255).all()
    assert opened(file).mode == "L"
    refused(array, "bool is for masks")
    refused(numpy.zeros((32, 48, 3), bool), "bool is for masks", field="mask")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (numpy.zeros((8, 8, 3), numpy.float32), "(array * 255).round().astype('uint8')"),
        (numpy.zeros((8, 8, 3), numpy.float64), "float64"),
        (numpy.zeros((8, 8, 3), numpy.int64), "uint8 within 0..255"),
        (numpy.zeros((8, 8, 3), numpy.int8), "uint8 within 0..255"),
        (numpy.zeros((8, 8), object), "uint8 within 0..255"),
        (numpy.zeros((3, 8, 8), numpy.uint8), "array.transpose(1, 2, 0)"),
        (numpy.zeros((1, 8, 8, 3), numpy.uint8), "array[0]"),
        (numpy.zeros((8, 8, 2), numpy.uint8), "[8, 8, 2]"),
        (numpy.zeros((8,), numpy.uint8), "[height, width]"),
        (numpy.zeros((), numpy.uint8), "[height, width]"),
        (numpy.zeros((0, 8), numpy.uint8), "[0, 8]"),
        (numpy.zeros((8, 33), numpy.uint8), "33 x 8"),
        (numpy.broadcast_to(numpy.uint8(0), (60000, 60000)), "25 megapixels"),
    ],
)
def test_an_array_that_is_no_picture(array: object, said: str) -> None:
    refused(array, "array [", said)


def test_reading_a_file_needs_no_numpy() -> None:
    code = (
        "import sys\nsys.modules['numpy'] = None\nimport ifmesh.source\nassert 'PIL' not in sys.modules\n"
        "assert ifmesh.source.read(sys.stdin.buffer.read(), 'source').width == 48"
    )
    subprocess.run([sys.executable, "-c", code], input=saved(NOISE), check=True, timeout=60)


# ---- URLs


class Site:
    """A real server on loopback; `pages` says what it answers, by path."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        self.over = threading.Event()  # for pages that would go on for ever
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                with suppress(OSError):  # the client has had enough
                    site.pages[self.path](self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def page(self, data: bytes, code: int = 200, length: int | None = None, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def answer(to: BaseHTTPRequestHandler) -> None:
            to.send_response(code)
            for name, value in headers.items():
                to.send_header(name, value)
            if length != -1:
                to.send_header("Content-Length", str(len(data) if length is None else length))
            to.end_headers()
            to.wfile.write(data)

        return answer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    made = Site()
    yield made
    made.close()


def test_a_url_is_fetched_here(site: Site) -> None:
    data = saved(NOISE, "JPEG", 6)
    site.pages = {"/fox.jpg": site.page(data), "/moved": site.page(b"", 302, Location="/fox.jpg"), "/open": site.page(data, length=-1)}
    for path in ("/fox.jpg", "/moved", "/open"):
        assert read(site.url + path, "source") == File(data, 32, 48, "JPEG")


def test_a_url_that_gives_no_picture(site: Site) -> None:
    site.pages = {
        "/404": site.page(b"", 404),
        "/500": site.page(b"", 500),
        "/page": site.page(b"<!DOCTYPE html><html>"),
        "/empty": site.page(b""),
        "/cut": site.page(saved(NOISE)[:999], length=5000),
        "/short": site.page(saved(NOISE), length=999),
        "/large": site.page(header_of(60000, 60000)),
    }
    refused(site.url + "/404", site.url + "/404", "answers 404", field="mask")
    refused(site.url + "/500", "answers 500")
    refused(site.url + "/page", "a web page")
    refused(site.url + "/empty", "is empty")
    refused(site.url + "/cut", "cannot be decoded")
    refused(site.url + "/short", "cannot be decoded")
    refused(site.url + "/large", "60000 x 60000")


def test_a_url_that_never_ends_or_lies_about_its_length(site: Site) -> None:
    sent = []

    def endless(to: BaseHTTPRequestHandler) -> None:
        site.page(b"", length=1000 if to.path == "/lie" else -1 if to.path == "/silent" else 1 << 40)(to)
        while not site.over.is_set():
            to.wfile.write(bytes(1 << 20))
            sent.append(1 << 20)

    site.pages = {"/silent": endless, "/boast": endless, "/lie": endless}
    refused(site.url + "/silent", f"at most {FILE_BYTES} bytes")
    refused(site.url + "/boast", f"at most {FILE_BYTES} bytes")
    refused(site.url + "/lie", "no picture of a known format")  # of what it sends no more is read than it said
    assert sum(sent) < 4 * FILE_BYTES


@pytest.mark.parametrize("part", ["silence", "header", "body"])
def test_a_slow_server_is_left(site: Site, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    monkeypatch.setattr(fetch, "GRACE", 0.1)

    def drip(to: BaseHTTPRequestHandler) -> None:
        if part != "silence":
            to.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if part == "body" else b"X: "))
        while not site.over.wait(0.05):  # a byte now and then: the socket's own limit never comes
            if part != "silence":
                to.wfile.write(b"x")
                to.wfile.flush()

    site.pages = {"/": drip}
    refused(site.url + "/", "no picture within 0.3 s")


def test_redirects_have_an_end(site: Site) -> None:
    site.pages = {f"/{n}": site.page(b"", 302, Location=f"/{n + 1}") for n in range(9)} | {"/loop": site.page(b"", 302, Location="/loop")}
    site.pages["/5"] = site.page(saved(NOISE))
    assert read(site.url + "/0", "source").width == 48
    site.pages["/5"] = site.page(b"", 302, Location="/6")
    refused(site.url + "/0", "redirects more than 5 times")
    refused(site.url + "/loop", "redirects more than 5 times")
    assert "/7" not in site.asked


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA"])
def test_a_redirect_to_anything_but_http_is_not_followed(site: Site, target: str) -> None:
    site.pages = {"/": site.page(b"", 302, Location=target)}
    refused(site.url + "/", f"redirects to {target}", "only http and https")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "gopher://127.0.0.1/", "FILE://x"])
def test_other_addresses_are_not_fetched(url: str) -> None:
    refused(url, url, "only http and https")


def test_addresses_where_nobody_is(site: Site) -> None:
    gone = Site()
    gone.close()
    refused(gone.url + "/a.png", "cannot be fetched")
    refused("http://no-such-host.invalid/a.png", "cannot be fetched")
    refused("http:///a.png", "cannot be fetched")
    refused("http://127.0.0.1:99999/", "cannot be fetched")
    refused("http://127.0.0.1/a b", "cannot be fetched")

    def junk(to: BaseHTTPRequestHandler) -> None:
        to.wfile.write(b"junk\r\n\r\n")

    site.pages = {"/junk": junk}
    refused(site.url + "/junk", "cannot be fetched")
