"""Valid files changed a little or badly, for benchmarks/fuzz.py: bytes, JSON, and what lies inside containers.

Each takes what is to be changed and a random.Random, and gives the changed bytes. Containers are opened, what is inside
is changed, and they are packed again with the lengths and checksums that it needs to get past the door.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Random = random.Random
Mutate = Callable[[bytes, Random], bytes]

INTEGERS = (0, 1, 2, 3, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**63 - 1)
NUMBERS = (b"0", b"-1", b"1", b"65536", b"2147483647", b"4294967296", b"99999999999999999999", b"-2147483648")
NUMBERS += (b"1e308", b"1e999", b"-1e-320", b"nan", b"inf", b"-inf", b"0x10", b"1_000", b"")
TEXTS = (
    "",
    "../../../etc/passwd",
    "/etc/passwd",
    "\\\\host\\share",
    "a" * 5000,
    "\0",
    "\ud800",
    "猫",
    "file:///etc/passwd",
)
TEXTS += (
    "data:,",
    "data:application/octet-stream;base64,AAAA",
    ".",
    "..",
    "CON",
    "%00",
    "-1",
    "1e9",
    "{}",
    "__class__",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    1.5,
    255,
    65536,
    2**31,
    2**32,
    2**53,
    2**63,
    2**64,
    10**400,
    -(10**30),
    1e308,
)
VALUES += (-1e308, 1e-320, math.nan, math.inf, -math.inf, [], {}, [[]], [0], [None], {"": 0}, [1e9] * 16, [[1] * 4] * 4)


def change_bytes(data: bytes, rng: Random) -> bytes:
    """One to five changes, half of them near the start, where headers are."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        size = len(result)
        if not size:
            return bytes(rng.randbytes(rng.randrange(64)))
        reach = min(size, rng.choice((32, 256, 2048, size, size, size)))
        place = rng.randrange(reach)
        length = min(rng.choice((1, 2, 4, 16, 64, 1024)), size - place)
        match rng.randrange(11):
            case 0:
                result[place] ^= 1 << rng.randrange(8)
            case 1:
                result[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
            case 2:
                del result[rng.randrange(size) :]
            case 3:
                del result[place : place + length]
            case 4:
                result[place:place] = rng.randbytes(length)
            case 5:  # a block once more, sometimes many times
                result[place:place] = result[place : place + length] * rng.choice((1, 1, 1, 2, 1000 // length + 1))
            case 6:
                result[place : place + length] = bytes([rng.choice((0, 255))]) * length
            case 7:  # an integer, of either byte order
                width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
                value = rng.choice(INTEGERS) % 256**width
                result[place : place + width] = value.to_bytes(width, order)
            case 8:  # a number in letters
                if found := list(re.finditer(rb"[-+\d.eE]+", bytes(result[:reach]))):
                    chosen = rng.choice(found)
                    result[chosen.start() : chosen.end()] = rng.choice(NUMBERS)
            case 9:  # a floating-point number
                value = rng.choice((math.nan, math.inf, -math.inf, 3e38, -3e38, 88.0, 1e-45, 0.0))
                result[place : place + 4] = struct.pack("<f", value)
            case 10:
                other = rng.randrange(size)
                result[place : place + length] = result[other : other + length]
    return bytes(result)


def change_lines(data: bytes, rng: Random, end: bytes) -> bytes:
    """A header of lines up to `end` whose lines are lost, doubled, swapped or have other words; its body as it was."""
    head, mark, body = data.partition(end)
    lines = head.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[place]
            case 1:
                lines.insert(rng.randrange(len(lines) + 1), lines[place])
            case 2:
                other = rng.randrange(len(lines))
                lines[place], lines[other] = lines[other], lines[place]
            case 3:
                words = lines[place].split(b" ")
                words[rng.randrange(len(words))] = rng.choice(
                    (
                        *NUMBERS,
                        b"list",
                        b"float",
                        b"double",
                        b"uchar",
                        b"int",
                        b"ascii",
                        b"vertex",
                        b"x",
                        b"\xff",
                        b"z" * 3000,
                    )
                )
                lines[place] = b" ".join(words)
            case 4:
                lines[place] = change_bytes(lines[place], rng)
            case 5:
                listed = b"property list %s float more" % rng.choice((b"uchar", b"int", b"uint", b"double"))
                lines.insert(place + 1, rng.choice((listed, b"element more 4000000000", b"property double more")))
        lines = lines or [b""]
    return b"\n".join(lines) + mark + body


def change_json(data: bytes, rng: Random) -> bytes:
    """JSON with other values, keys lost or of other names, and lists too long, too short or too deep."""
    if rng.random() < 0.1:
        return change_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _changed(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.02:
        text = "[" * 100_000 + text if rng.random() < 0.5 else text.replace("{", '{"a":' * 50, 1)
    return text.encode(errors="surrogatepass")


def _places(value: Any, above: tuple = ()) -> list[tuple]:
    """The ways to all values below one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, each in inner for place in _places(each, (*above, key)))]


def _changed(value: Any, rng: Random) -> Any:
    places = _places(value)
    *above, last = rng.choice(places) or (None,)
    if last is None:
        return copy.deepcopy(rng.choice((*VALUES, ""))) if rng.random() < 0.1 else value
    holder = value
    for key in above:
        holder = holder[key]
    old = holder[last]
    kind = rng.randrange(8)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice((f"{last}2", last.upper(), *TEXTS[:4]))] = holder.pop(last)
    elif kind == 2 and isinstance(holder, list):
        holder[last : last + 1] = [copy.deepcopy(old) for _ in range(rng.choice((0, 2, 3, 300)))]
    elif kind == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        factor = rng.choice((2, -1, 1000, 10**9))
        holder[last] = rng.choice((old + 1, old - 1, old * factor, str(old)))
    elif kind == 4:
        holder[last] = rng.choice(TEXTS)
    elif kind == 5:  # what stands elsewhere in it
        other = value
        for key in rng.choice(places):
            other = other[key]
        holder[last] = json.loads(json.dumps(other))
    else:
        holder[last] = copy.deepcopy(rng.choice(VALUES))
    return value


def in_gzip(change: Mutate) -> Mutate:
    """What gzip holds is changed and packed again."""
    return lambda data, rng: gzip.compress(change(gzip.decompress(data), rng), 1)


def in_streams(data: bytes, rng: Random) -> bytes:
    """SPZ 4: one of its streams, packed by zstd, holds something else; its sizes are right, or one is wrong."""
    import zstandard

    number, table = data[15], struct.unpack_from("<I", data, 16)[0]
    sizes = [struct.unpack_from("<QQ", data, table + 16 * i) for i in range(number)]
    place, parts = table + 16 * number, []
    for packed, _ in sizes:
        parts.append(zstandard.ZstdDecompressor().decompress(data[place : place + packed]))
        place += packed
    chosen = rng.randrange(number)
    parts[chosen] = rng.choice((change_bytes(parts[chosen], rng), bytes(rng.choice((0, 1, 10**6, 3 * 10**7)))))
    whole = [zstandard.ZstdCompressor().compress(part) for part in parts]
    told = [[len(p), len(part)] for p, part in zip(whole, parts, strict=True)]
    if rng.random() < 0.3:
        told[chosen][rng.randrange(2)] = rng.choice(INTEGERS)
    head = change_bytes(data[:16], rng) if rng.random() < 0.3 else data[:16]
    return head + data[16:table] + b"".join(struct.pack("<QQ", *pair) for pair in told) + b"".join(whole)


def in_glb(data: bytes, rng: Random) -> bytes:
    """GLB: its JSON or its numbers are changed, and the lengths of its parts are right."""
    size = struct.unpack_from("<I", data, 12)[0]
    text, binary = data[20 : 20 + size], data[28 + size :]
    if rng.random() < 0.7:
        text = change_json(text, rng)
    else:
        binary = change_bytes(binary, rng)
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A)
    return head + text + struct.pack("<II", len(binary), 0x004E4942) + binary


def in_zip(data: bytes, rng: Random) -> bytes:
    """A zip: one of its files is changed, is another one's content, or has another name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice((*files, *(name for name in files if name.endswith(".json"))))
    change = change_json if chosen.endswith(".json") else change_bytes
    match rng.randrange(8):
        case 0:
            files[rng.choice(("../" + chosen, "/" + chosen, "a/" + chosen, *TEXTS[:5]))] = files.pop(chosen)
        case 1:
            files[chosen] = files[rng.choice(list(files))]
        case 2:
            del files[chosen]
        case 3:
            files[chosen] = bytes(rng.choice((0, 1000, 10**7)))
        case _:
            files[chosen] = change(files[chosen], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("\0", "_").encode(errors="replace").decode() or "_", content)
    return buffer.getvalue()


def in_png(data: bytes, rng: Random) -> bytes:
    """PNG: a chunk is changed, or its pixels before they are packed, or its size; lengths and checksums are right."""
    chunks, place = [], 8
    while place < len(data):
        length = struct.unpack_from(">I", data, place)[0]
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + length]])
        place += 12 + length
    chosen = rng.choice(chunks)
    match rng.randrange(6):
        case 0:
            chunks.insert(rng.randrange(len(chunks) + 1), list(chosen))
        case 1:
            kind = rng.choice(
                (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"gAMA", b"acTL", b"fcTL", b"fdAT")
            )
            content = rng.choice(
                (rng.randbytes(40), b"a\0\0" + zlib.compress(bytes(10**7)), b"II*\0" + rng.randbytes(60))
            )
            chunks.insert(1, [kind, content])
        case 2:
            chunks[0][1] = change_bytes(chunks[0][1][:8], rng)[:8].ljust(8, b"\1") + chunks[0][1][8:]
        case 3 if chosen[0] == b"IDAT":
            chosen[1] = zlib.compress(change_bytes(zlib.decompress(chosen[1]), rng))
        case _:
            chosen[1] = change_bytes(chosen[1], rng)
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return data[:8] + b"".join(parts)


def in_safetensors(data: bytes, rng: Random) -> bytes:
    """Safetensors: its header of JSON is changed, and its length is right."""
    size = struct.unpack_from("<Q", data)[0]
    header = change_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def either(*changes: Mutate) -> Mutate:
    """One of these, or bytes."""
    return lambda data, rng: rng.choice((*changes, *changes, change_bytes))(data, rng)
