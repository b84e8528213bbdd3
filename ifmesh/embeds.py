"""What the encoder made of a prompt: kept by the user, and sent instead of the prompt."""

from __future__ import annotations

import ctypes
import json
import math
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ifmesh import bags
from ifmesh.cascade import EMBEDS, TOKENS
from ifmesh.errors import BadRequest
from ifmesh.notes import notes
from ifmesh.request import Request
from ifmesh.stage import Tensor
from ifmesh.wire import Garbled

if TYPE_CHECKING:
    import numpy
    import torch

SHAPE: Final = "[2, 77, channels], rows negative and prompt: of two [1, 77, channels], concatenated along the first axis"
CHANNELS: Final = 16384
DTYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NUMPY: Final = {"<f4": "F32", "<f2": "F16"}
EXPONENT: Final = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # all of these bits set: an infinity, or no number


@dataclass(frozen=True, slots=True)
class Embeds:
    """Two texts, encoded.  The same texts and encoder give the same: encode once, draw often.

    prompt, negative: the texts, which the upscaler reads once more; tensor: [2, 77, channels], rows negative and prompt, F32, F16 or
    BF16; 4096 channels for IF.  notes: what the encoder could not read of the texts, as sentences.
    """

    prompt: str
    negative: str
    tensor: Tensor = field(repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def published(cls, request: Request, frame: bytes | memoryview) -> Embeds:
        """From the frame that the encoder published: embeds and tokens.  Raises wire.Garbled."""
        bag = bags.decode(frame, (EMBEDS, TOKENS))
        made = bag[EMBEDS.name]
        if made.shape[0] != 2:
            raise Garbled(f"embeddings of {made.shape[0]} texts, asked were 2")
        return cls(request.prompt, request.negative, Tensor(made.dtype, made.shape, bytes(made.data)), notes(bag[TOKENS.name]))

    @classmethod
    def of(cls, value: object, prompt: str = "", negative: str = "") -> Embeds:
        """From a numpy array (float32, float16) or torch tensor (bfloat16 too) [2, 77, channels], or what has `__array__`, as jax's and
        tensorflow's arrays do; an Embeds is given back as it is.

        Raises BadRequest: another shape or dtype, or values that are not finite.
        """
        if isinstance(value, Embeds):
            return value
        array = _array(value)
        shape, kind = tuple(int(n) for n in array.shape), _kind(array)
        name = f"{list(shape)} {array.dtype}"
        _check_shape(shape, name)
        if kind is None:
            raise BadRequest("embeds", name, "float32, float16, or torch's bfloat16: convert it")
        return cls(prompt, negative, _finite(Tensor(kind, shape, _bytes(array, kind, shape, name)), name))

    @classmethod
    def load(cls, path: str | Path) -> Embeds:
        """What `save` wrote; or any safetensors file with a tensor "embeds".  Raises BadRequest, naming the file."""
        path = str(path)
        try:
            with open(path, "rb") as file:
                frame = file.read(bags.FRAME_LIMIT + 1)
            made = bags.decode(frame)[EMBEDS.name]
        except (OSError, ValueError) as error:  # ValueError: a null byte in its name, or what no file's name can hold
            raise BadRequest("embeds", path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
        except Garbled as error:
            raise BadRequest("embeds", path, f"no safetensors file of embeddings: {error}") from None
        except KeyError:
            raise BadRequest("embeds", path, f"holds no tensor named {EMBEDS.name!r}") from None
        name = f"{path}: {list(made.shape)} {made.dtype}"
        _check_shape(made.shape, name)
        if made.dtype not in EXPONENT:
            raise BadRequest("embeds", name, "F32, F16 or BF16")
        told = json.loads(frame[8 : 8 + int.from_bytes(frame[:8], "little")]).get("__metadata__", {})
        said = tuple(told.get("notes", "").splitlines())
        tensor = Tensor(made.dtype, made.shape, bytes(made.data))
        return cls(told.get("prompt", ""), told.get("negative", ""), _finite(tensor, name), said)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file: the tensor "embeds", and as metadata prompt, negative and notes.

        Raises BadRequest when the texts are longer than any request may have them.
        """
        told = {"prompt": self.prompt, "negative": self.negative, "notes": "\n".join(self.notes)}
        frame = bags.encode({EMBEDS.name: self.tensor})
        length = int.from_bytes(frame[:8], "little")
        header = json.dumps({"__metadata__": told, **json.loads(frame[8 : 8 + length])}, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        if len(header) > bags.HEADER_LIMIT:
            raise BadRequest("prompt", self.prompt, "too long for a file of embeddings, and for any request")
        path = Path(path)
        path.write_bytes(len(header).to_bytes(8, "little") + header + frame[8 + length :])
        return path

    def numpy(self) -> numpy.ndarray[Any, Any]:
        """[2, 77, channels], a copy: float32 of F32 and BF16, float16 of F16.  Imports numpy."""
        np: Any = import_module("numpy")  # by its name: this half can do without
        if self.tensor.dtype == "BF16":
            flat = (np.frombuffer(self.tensor.data, "<u2").astype("<u4") << 16).view("<f4")  # the upper half of a float32
        else:
            flat = np.frombuffer(self.tensor.data, {"F32": "<f4", "F16": "<f2"}[self.tensor.dtype]).copy()
        array: numpy.ndarray[Any, Any] = flat.reshape(self.tensor.shape)
        return array

    def torch(self) -> torch.Tensor:
        """[2, 77, channels] on the CPU, a copy, of the dtype that it has.  Imports torch."""
        module: Any = import_module("torch")
        name = next(name for name, kind in DTYPES.items() if kind == self.tensor.dtype)
        tensor: torch.Tensor = module.frombuffer(bytearray(self.tensor.data), dtype=getattr(module, name)).reshape(self.tensor.shape)
        return tensor


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) != 3 or shape[:2] != (2, 77) or not 1 <= shape[2] <= CHANNELS:
        raise BadRequest("embeds", name, SHAPE)


def _array(value: Any) -> Any:
    """What looks like a numpy array or torch tensor: itself, or what it gives as one."""
    try:
        found = value
        if not _numpys(found) and not hasattr(found, "detach"):
            found = found.__array__()
        if tuple(int(n) for n in found.shape) and found.dtype is not None and (not _numpys(found) or found.__array_interface__["typestr"]):
            return found
    except Exception:  # others' arrays raise whatever they like
        pass
    raise BadRequest("embeds", type(value), f"an Embeds (of Client.encode), or a numpy array or torch tensor {SHAPE}")


def _numpys(value: Any) -> bool:
    """Has it numpy's interface?  This half does not import numpy."""
    return isinstance(getattr(value, "__array_interface__", None), dict)


def _kind(array: Any) -> str | None:
    if _numpys(array):
        return NUMPY.get(array.__array_interface__["typestr"])
    return DTYPES.get(str(array.dtype).removeprefix("torch."))


def _bytes(array: Any, kind: str, shape: tuple[int, ...], name: str) -> bytes:
    """Its values in C order.  Of a torch tensor, wherever it is, by its address: bfloat16 has no other way out."""
    try:
        if _numpys(array):
            data = bytes(array.tobytes())
        else:
            here = array.detach().cpu().contiguous()
            data = ctypes.string_at(here.data_ptr(), here.numel() * here.element_size())
    except Exception as error:  # of a sparse tensor, or one on the device "meta"
        raise BadRequest("embeds", name, f"cannot be read, a plain tensor can: {str(error).partition(chr(10))[0][:200]}") from None
    if len(data) != math.prod(shape) * bags.SIZES[kind]:
        raise BadRequest("embeds", name, f"cannot be read: it holds {len(data)} bytes")
    return data


def _finite(tensor: Tensor, name: str) -> Tensor:
    ones, data = EXPONENT[tensor.dtype], memoryview(tensor.data).cast("B")
    if any(bits & ones == ones for bits in (data.cast("I") if tensor.dtype == "F32" else data.cast("H"))):
        raise BadRequest("embeds", name, "holds infinities, or values that are no numbers: encode the prompt anew")
    return tensor
