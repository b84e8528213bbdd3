"""The heavy half of ifmesh: the only place that imports torch."""

import logging
import sys

# It says on import, through diffusers and without being used, that its CPU kernels are not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# diffusers imports it wherever it is installed, and with it half a compiler: two of the seven seconds that a worker's start took.
# Nobody here quantises by diffusers; who does by transformers has it back, see precision.quantised.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
