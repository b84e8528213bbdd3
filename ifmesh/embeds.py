"""What the encoder made of a prompt: kept by the user, and sent instead of the prompt."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ifmesh import bags
from ifmesh.cascade import EMBEDS, TOKENS
from ifmesh.errors import BadRequest
from ifmesh.notes import notes
from ifmesh.protocol import Request
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
    def published(cls, request: Request, frame: bytes) -> Embeds:
        """From the frame that the encoder published: embeds and tokens.  Raises wire.Garbled."""
        bag = bags.decode(frame, (EMBEDS, TOKENS))
        made = bag[EMBEDS.name]
        return cls(request.prompt, request.negative, Tensor(made.dtype, made.shape, bytes(made.data)), notes(bag[TOKENS.name]))

    @classmethod
    def of(cls, value: object, prompt: str = "", negative: str = "") -> Embeds:
        """From a numpy array (float32, float16) or torch tensor (bfloat16 too) [2, 77, channels]; an Embeds is given back as it is.

        Raises BadRequest: another shape or dtype, or values that are not finite.
        """
        if isinstance(value, Embeds):
            return value
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is None or dtype is None:
            raise BadRequest("embeds", type(value), f"an Embeds (of Client.encode), or a numpy array or torch tensor {SHAPE}")
        shape = tuple(int(n) for n in shape)
        name = f"{list(shape)} {dtype}"
        _check_shape(shape, name)
        if isinstance(interface := getattr(value, "__array_interface__", None), dict):
            kind, data = NUMPY.get(interface["typestr"]), _array_bytes
        else:
            kind, data = DTYPES.get(str(dtype).removeprefix("torch.")), _tensor_bytes
        if kind is None:
            raise BadRequest("embeds", name, "float32, float16, or torch's bfloat16: convert it")
        return cls(prompt, negative, _finite(Tensor(kind, shape, data(value)), name))

    @classmethod
    def load(cls, path: str | Path) -> Embeds:
        """What `save` wrote; or any safetensors file with a tensor "embeds".  Raises BadRequest, naming the file."""
        path = str(path)
        try:
            with open(path, "rb") as file:
                frame = file.read(bags.FRAME_LIMIT + 1)
            made = bags.decode(frame)[EMBEDS.name]
        except OSError as error:
            raise BadRequest("embeds", path, f"cannot be read: {error.strerror or error}") from None
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


def _array_bytes(value: Any) -> bytes:
    return bytes(value.tobytes())


def _tensor_bytes(value: Any) -> bytes:
    """Of a torch tensor, wherever it is; by its address, as bfloat16 has no other way out."""
    here = value.detach().cpu().contiguous()
    return ctypes.string_at(here.data_ptr(), here.numel() * here.element_size())


def _finite(tensor: Tensor, name: str) -> Tensor:
    ones, data = EXPONENT[tensor.dtype], memoryview(tensor.data).cast("B")
    if any(bits & ones == ones for bits in (data.cast("I") if tensor.dtype == "F32" else data.cast("H"))):
        raise BadRequest("embeds", name, "holds infinities, or values that are no numbers: encode the prompt anew")
    return tensor
