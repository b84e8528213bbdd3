"""The heavy half of ifmesh: the only place that imports torch."""

import logging

# It says on import, through diffusers and without being used, that its CPU kernels are not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
