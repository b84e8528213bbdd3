"""Picture files that somebody sends who means no good, or whose disk is broken: by name, the same each time."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
HUGE = 2**31 - 1


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(width: int = 96, height: int = 64, *before: bytes, rows: bytes | None = None, behind: bytes = b"", **more: int) -> bytes:
    """A PNG, grey all over, with chunks of one's own before and behind its pixels.  rows: in their place."""
    data = (b"\0" + b"\x80" * width * 3) * height if rows is None else rows
    end = chunk(b"IEND", b"")
    return PNG + header(width, height, **more) + b"".join(before) + chunk(b"IDAT", zlib.compress(data, 9)) + behind + end


def hollow(width: int, height: int, **more: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    return PNG + header(width, height, **more) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """So many zeros, in whole MiB, deflated: a thousandth of it."""
    deflate = zlib.compressobj(9, wbits=-15)
    mebibyte = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)  # which fits behind itself
    return b"\x78\xda" + mebibyte * (count >> 20) + b"\x03\0" + struct.pack(">HH", (count >> 20 << 20) % 65521, 1)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (96, 64), **more: Any) -> bytes:
    shown = Image.effect_noise(size, 60).convert(mode) if size[0] * size[1] < 1 << 20 else Image.new(mode, size, 1)
    out = io.BytesIO()
    shown.save(out, kind, **more)
    return out.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def spliced(jpeg: bytes, *segments: bytes) -> bytes:
    """With segments of one's own behind its first marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def resized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame says another size than it has."""
    at = next(i for marker in (b"\xff\xc0", b"\xff\xc2") if (i := jpeg.find(marker)) > 0)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def exif(*entries: tuple[int, int, int, int], following: int = 0, order: str = "<") -> bytes:
    """A directory with these (tag, type, count, value) and the place of the next one."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    made = struct.pack(order + "H", len(entries)) + b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    return mark + struct.pack(order + "I", 8) + made + struct.pack(order + "I", following)


EXIFS = {
    "that is empty": b"",
    "that is noise": random.Random(1).randbytes(500),
    "that points to itself": exif((0x8769, 4, 1, 8), following=8),
    "with a thousand directories": exif(*((0x8769, 4, 1, 8 + n) for n in range(1000))),
    "with a count beyond all": exif((0x0112, 3, 0xFFFFFFFF, 8)),
    "with an offset beyond all": exif((0x010E, 2, 1000, 0xFFFFFFF0)),
    "with a type that is none": exif((0x0112, 99, 1, 6)),
    "with orientation 0": exif((0x0112, 3, 1, 0)),
    "with orientation 99": exif((0x0112, 3, 1, 99)),
    "with orientation in text": exif((0x0112, 2, 4, 0x31313131)),
    "with orientation as a fraction by zero": exif((0x0112, 5, 1, 8)),
    "with two orientations": exif((0x0112, 3, 1, 6), (0x0112, 3, 1, 3)),
    "the other way round": exif((0x0112, 3, 1, 6), order=">"),
    "cut off": exif((0x0112, 3, 1, 6))[:15],
}


def _pngs() -> dict[str, Callable[[], bytes]]:
    still = (
        (0, 0),
        (1, 0),
        (0, 1),
        (HUGE, 1),
        (1, HUGE),
        (HUGE, HUGE),
        (2**32 - 1, 2**32 - 1),
        (100_000, 100_000),
        (5001, 5000),
        (5000, 5000),
    )
    made: dict[str, Callable[[], bytes]] = {f"PNG, hollow, {w} x {h}": lambda w=w, h=h: hollow(w, h) for w, h in still}  # type: ignore[misc]
    odd = ((8, 1), (8, 5), (8, 7), (3, 2), (0, 2), (16, 3), (1, 2), (32, 2))
    made |= {f"PNG of depth {d} and colour {c}": lambda d=d, c=c: hollow(96, 64, depth=d, colour=c) for d, c in odd}  # type: ignore[misc]
    made |= {f"PNG with an EXIF {name}": lambda data=data: png(96, 64, chunk(b"eXIf", data)) for name, data in EXIFS.items()}  # type: ignore[misc]
    return made | {
        "PNG, 25 megapixels of 1 bit": lambda: png(5000, 5000, rows=bytes(626 * 5000), depth=1, colour=0),
        "PNG, 24 megapixels of 64 bits": lambda: PNG + header(4900, 4900, 16, 6) + chunk(b"IDAT", zeros(193 << 20)) + chunk(b"IEND", b""),
        "PNG, interlaced and hollow": lambda: hollow(4900, 4900, interlace=1),
        "PNG, interlaced": lambda: saved("PNG", size=(1500, 1500)),
        "PNG with a zTXt bomb before": lambda: png(96, 64, chunk(b"zTXt", b"a\0\0" + zeros(500 << 20))),
        "PNG with a zTXt bomb behind": lambda: png(96, 64, behind=chunk(b"zTXt", b"a\0\0" + zeros(500 << 20))),
        "PNG with a hundred zTXt bombs": lambda: png(96, 64, *[chunk(b"zTXt", b"a%d\0\0" % n + zeros(1 << 20)) for n in range(100)]),
        "PNG with an iTXt bomb": lambda: png(96, 64, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(500 << 20))),
        "PNG with an iCCP bomb": lambda: png(96, 64, chunk(b"iCCP", b"a\0\0" + zeros(500 << 20))),
        "PNG with a hundred thousand texts": lambda: png(96, 64, *[chunk(b"tEXt", b"k%d\0v" % n) for n in range(100_000)]),
        "PNG with a text of 10 MB": lambda: png(96, 64, chunk(b"tEXt", b"a\0" + b"x" * 10_000_000)),
        "PNG with a text without an end": lambda: png(96, 64, chunk(b"tEXt", b"x" * 1000), chunk(b"zTXt", b"x" * 1000)),
        "PNG with far too many pixels": lambda: PNG + header(96, 64) + chunk(b"IDAT", zeros(1 << 30)) + chunk(b"IEND", b""),
        "PNG with too few pixels": lambda: png(96, 64, rows=b"\0" * 300),
        "PNG with a filter that is none": lambda: png(96, 64, rows=(b"\x09" + b"\x80" * 288) * 64),
        "PNG without an end": lambda: png()[:-12],
        "PNG without pixels": lambda: PNG + header(96, 64) + chunk(b"IEND", b""),
        "PNG without a header": lambda: PNG + chunk(b"IDAT", zlib.compress(bytes(300))) + chunk(b"IEND", b""),
        "PNG with two headers": lambda: png(96, 64, header(5000, 5000)),
        "PNG with a short header": lambda: PNG + chunk(b"IHDR", b"\0\0\0\1") + chunk(b"IEND", b""),
        "PNG with a wrong sum": lambda: png(96, 64, chunk(b"tEXt", b"a\0b", 7)),
        "PNG with a wrong sum of its header": lambda: PNG + chunk(b"IHDR", header(96, 64)[8:21], 7) + png()[33:],
        "PNG with a chunk beyond the file": lambda: PNG + header(96, 64) + struct.pack(">I", HUGE) + b"IDAT" + b"x" * 100,
        "PNG with a chunk of negative length": lambda: PNG + header(96, 64) + b"\xff\xff\xff\xffIDAT" + b"x" * 100,
        "PNG with a chunk that has no name": lambda: png(96, 64, chunk(b"\0\0\0\0", b"x")),
        "PNG with many empty pixels' chunks": lambda: PNG + header(96, 64) + chunk(b"IDAT", b"") * 200_000 + chunk(b"IEND", b""),
        "PNG with a palette of 257": lambda: png(96, 64, chunk(b"PLTE", bytes(771)), rows=bytes(97 * 64), colour=3),
        "PNG without its palette": lambda: png(96, 64, rows=bytes(97 * 64), colour=3),
        "PNG with odd transparency": lambda: png(96, 64, chunk(b"tRNS", b"x" * 999)),
        "PNG with no resolution": lambda: png(96, 64, chunk(b"pHYs", b""), chunk(b"gAMA", b""), chunk(b"cHRM", b"x")),
        "PNG, moving": lambda: saved("PNG", save_all=True, append_images=[Image.new("RGB", (96, 64), n) for n in range(200)]),
        "PNG, moving, of no frames": lambda: png(96, 64, chunk(b"acTL", struct.pack(">II", 0, 0))),
        "PNG, moving, of 2 billion frames": lambda: png(96, 64, chunk(b"acTL", struct.pack(">II", HUGE, 0))),
        "PNG, moving, a frame beyond": lambda: png(
            96,
            64,
            chunk(b"acTL", struct.pack(">II", 2, 0)),
            chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, HUGE, HUGE, HUGE, HUGE, 1, 0, 9, 9)),
        ),
        "PNG of 17 MB": lambda: png(96, 64, chunk(b"tEXt", b"a\0" + b"x" * 17_000_000)),
        "PNG with an archive behind": lambda: png() + b"PK\3\4" + bytes(5_000_000),
        "PNG, damaged all over": lambda: _noisy(saved("PNG", size=(500, 400))),
    }


def _jpegs() -> dict[str, Callable[[], bytes]]:
    plain, steps = saved("JPEG", size=(300, 200)), saved("JPEG", size=(300, 200), progressive=True)
    last = steps.rfind(b"\xff\xda")
    icc = b"ICC_PROFILE\0"
    made: dict[str, Callable[[], bytes]] = {
        f"JPEG with an EXIF {name}": lambda data=data: spliced(plain, segment(0xE1, b"Exif\0\0" + data))  # type: ignore[misc]
        for name, data in EXIFS.items()
    }
    made |= {f"JPEG, {part} of its bytes": lambda part=part: plain[: int(len(plain) * part)] for part in (0.01, 0.05, 0.2, 0.5, 0.9, 0.99)}  # type: ignore[misc]
    sizes = ((0, 0), (0, 64), (65535, 65535), (65535, 1), (5001, 5000), (4999, 5000))
    made |= {f"JPEG that says {w} x {h}": lambda w=w, h=h: resized(plain, w, h) for w, h in sizes}  # type: ignore[misc]
    return made | {
        "JPEG of scans that says 4999 x 5000": lambda: resized(steps, 4999, 5000),
        "JPEG of thousands of scans": lambda: steps[:-2] + steps[last:-2] * 5000 + b"\xff\xd9",
        "JPEG of many scans that says 4999 x 5000": lambda: resized(steps[:-2] + steps[last:-2] * 60 + b"\xff\xd9", 4999, 5000),
        "JPEG of CMYK": lambda: saved("JPEG", "CMYK"),
        "JPEG of an odd Adobe": lambda: spliced(saved("JPEG", "CMYK"), segment(0xEE, b"Adobe\0\xff\xff\xff\xff\xff\x09")),
        "JPEG of 5000 comments": lambda: spliced(plain, *[segment(0xFE, b"x" * 1000)] * 5000),
        "JPEG of profiles": lambda: spliced(plain, *[segment(0xE2, icc + bytes((n, 255)) + b"x" * 60_000) for n in range(1, 200)]),
        "JPEG of profiles that miss": lambda: spliced(plain, segment(0xE2, icc), segment(0xE2, icc + b"\x05\x02")),
        "JPEG of an odd MPF": lambda: spliced(
            plain, segment(0xE2, b"MPF\0" + exif((0xB000, 7, 4, 0x30303130), (0xB001, 4, 1, HUGE), (0xB002, 7, 16, 8)))
        ),
        "JPEG of many pictures": lambda: saved("MPO", save_all=True, append_images=[Image.new("RGB", (96, 64), n) for n in range(100)]),
        "JPEG of Photoshop": lambda: spliced(plain, segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\xff\xff" + b"x" * 50)),
        "JPEG with a broken Huffman table": lambda: spliced(plain, segment(0xC4, b"\0" + b"\xff" * 16 + b"x" * 100)),
        "JPEG with a broken quantisation": lambda: spliced(plain, segment(0xDB, b"\xff" * 10)),
        "JPEG of 255 colours": lambda: plain.replace(plain[(at := plain.find(b"\xff\xc0")) : at + 10], plain[at : at + 9] + b"\xff"),
        "JPEG of 300,000 EXIFs": lambda: spliced(plain, segment(0xE1, b"Exif\0\0" + exif((0x0112, 3, 1, 6))) * 300_000),
        "JPEG of a million comments": lambda: spliced(plain, b"\xff\xfe\0\2" * 1_000_000),
        "JPEG that begins twice": lambda: plain[:2] * 1000 + plain,
        "JPEG of fill bytes": lambda: plain[:2] + b"\xff" * 1_000_000 + plain[2:],
        "JPEG of restarts": lambda: plain[:-2] + b"\xff\xd0" * 1_000_000 + b"\xff\xd9",
        "JPEG with a segment without length": lambda: plain[:2] + b"\xff\xe1\0\0" + plain[2:],
        "JPEG with an archive behind": lambda: plain + b"PK\3\4" + bytes(5_000_000),
        "JPEG, damaged all over": lambda: _noisy(saved("JPEG", size=(500, 400))),
    }


def _webps() -> dict[str, Callable[[], bytes]]:
    plain = saved("WEBP", size=(300, 200))
    lossless = saved("WEBP", size=(300, 200), lossless=True)
    moving = [Image.new("RGB", (96, 64), n) for n in range(200)]
    made: dict[str, Callable[[], bytes]] = {
        f"WebP, {part} of its bytes": lambda part=part: plain[: int(len(plain) * part)]  # type: ignore[misc]
        for part in (0.02, 0.1, 0.5, 0.99)
    }
    made |= {
        f"WebP with an EXIF {name}": lambda data=data: riff(canvas(300, 200, 8), (plain[12:16], plain[20:]), (b"EXIF", data))  # type: ignore[misc]
        for name, data in EXIFS.items()
    }
    return made | {
        "WebP, moving": lambda: saved("WEBP", save_all=True, append_images=moving),
        "WebP on a canvas of 16384 x 16384": lambda: riff(canvas(16384, 16384), (plain[12:16], plain[20:])),
        "WebP on a canvas of 16777216 x 16777216": lambda: riff(canvas(1 << 24, 1 << 24), (plain[12:16], plain[20:])),
        "WebP, moving, on 5000 x 5000": lambda: riff(canvas(5000, 5000, 2), (b"ANIM", bytes(6)), (b"ANMF", bytes(16) + plain[12:])),
        "WebP, moving, without a frame": lambda: riff(canvas(96, 64, 2), (b"ANIM", bytes(6))),
        "WebP without a picture": lambda: riff(canvas(96, 64)),
        "WebP with odd alpha": lambda: riff(canvas(300, 200, 16), (b"ALPH", b"\xff" * 50), (plain[12:16], plain[20:])),
        "WebP of a huge VP8L": lambda: riff((b"VP8L", b"\x2f\xff\xff\xff\x0f" + b"\xff" * 50)),
        "WebP of a VP8 of no size": lambda: riff((b"VP8 ", plain[20:26] + bytes(4) + plain[30:])),
        "WebP that says it is longer": lambda: plain[:4] + b"\xff\xff\xff\xff" + plain[8:],
        "WebP that says it is empty": lambda: plain[:4] + bytes(4) + plain[8:],
        "WebP of many chunks": lambda: riff((plain[12:16], plain[20:]), *[(b"XXXX", b"")] * 200_000),
        "WebP, lossless, damaged": lambda: _noisy(lossless),
        "WebP, damaged all over": lambda: _noisy(plain),
        "WebP, lossless, of 25 megapixels": lambda: saved("WEBP", size=(5000, 5000), lossless=True, method=0),
    }


def _others() -> dict[str, Callable[[], bytes]]:
    laughs = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "' + b"ha" * 1000 + b'"><!ENTITY b "' + b"&a;" * 1000 + b'">]><svg>&b;</svg>'
    return {
        "nothing": lambda: b"",
        "one byte": lambda: b"\x89",
        "the magic of a PNG": lambda: PNG,
        "the magic of a JPEG": lambda: b"\xff\xd8\xff",
        "the magic of a WebP": lambda: b"RIFF\xff\xff\xff\xffWEBP",
        "a PNG that is a JPEG": lambda: PNG + saved("JPEG"),
        "a JPEG that is a PNG": lambda: b"\xff\xd8\xff" + saved("PNG"),
        "a GIF": lambda: saved("GIF", "P"),
        "a GIF of 65535 x 65535": lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(20),
        "a TIFF": lambda: saved("TIFF"),
        "a BMP": lambda: saved("BMP"),
        "an ICO": lambda: saved("ICO"),
        "a PCX": lambda: saved("PCX"),
        "a JPEG 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "an AVIF": lambda: b"\0\0\0\x20ftypavif" + bytes(100),
        "a HEIC with terminal colours": lambda: b"\0\0\0\x20ftyp\x1b[31m" + bytes(100),
        "a PSD": lambda: b"8BPS\0\1" + bytes(100),
        "an EPS, which is a program": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{ } loop\n",
        "a PDF": lambda: b"%PDF-1.7\n" + bytes(100),
        "an SVG that laughs": lambda: laughs,
        "a page": lambda: b"<!DOCTYPE html><script>alert(1)</script>",
        "a pickle": lambda: b"\x80\x04cos\nsystem\n(S'touch x'\ntR.",
        "an archive": lambda: b"PK\3\4" + bytes(100),
        "noise": lambda: random.Random(2).randbytes(100_000),
        "zeros": lambda: bytes(1_000_000),
        "zeros, 17 MB": lambda: bytes(17 << 20),
    }


def _noisy(data: bytes) -> bytes:
    dice, made = random.Random(3), bytearray(data)
    for _ in range(len(made) // 100):
        made[dice.randrange(100, len(made))] = dice.randrange(256)
    return bytes(made)


def pictures() -> dict[str, Callable[[], bytes]]:
    """At least 100, each made when it is asked for: some are large."""
    return _pngs() | _jpegs() | _webps() | _others()
