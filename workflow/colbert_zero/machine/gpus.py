"""How busy a GPU is, as the driver's library (NVML) tells."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch


class Gpu:
    """One GPU of this process."""

    def __init__(self, library: Any, handle: Any) -> None:
        """Ask `library` about `handle`."""
        self._library, self._handle = library, handle

    @classmethod
    def of(cls, device: int) -> Gpu | None:
        """The GPU that PyTorch gives this number; None where the library cannot tell of it."""
        import pynvml

        try:
            pynvml.nvmlInit()
            # PyTorch counts the GPUs that are visible, the library all.
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except pynvml.NVMLError:
            return None

    def look(self) -> dict[str, int]:
        """Memory in use (MiB) and the share of the last moments in which it computed (%), where it tells."""
        found = {}
        with suppress(self._library.NVMLError):
            found["gpu_memory_mb"] = self._library.nvmlDeviceGetMemoryInfo(self._handle).used // 2**20
        # A part of a GPU (MIG) does not tell.
        with suppress(self._library.NVMLError):
            found["gpu_utilisation"] = self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu
        return found

    def joules(self) -> float:
        """The energy it has used since its driver was loaded; 0 where it does not count that."""
        with suppress(self._library.NVMLError):
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        return 0.0
