"""Read a GPU's memory, utilisation and energy from the driver's library (NVML)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch


class Gpu:
    """One GPU of this process."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Read the GPU that `handle` stands for in the library `nvml`."""
        self._nvml, self._handle = nvml, handle

    @classmethod
    def open(cls, index: int) -> Gpu | None:
        """Open the GPU with this PyTorch index; None if NVML does not know it."""
        import pynvml

        try:
            pynvml.nvmlInit()
            # PyTorch numbers the visible GPUs, NVML all of them: so look the GPU up by its UUID.
            uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except pynvml.NVMLError:
            return None

    def readings(self) -> dict[str, int]:
        """Memory in use (MiB) and recent utilisation (% of time), as far as this GPU reports them."""
        readings = {}
        with suppress(self._nvml.NVMLError):
            readings["gpu_memory_mb"] = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used // 2**20
        # A MIG instance reports no utilisation.
        with suppress(self._nvml.NVMLError):
            readings["gpu_utilisation"] = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
        return readings

    def energy_joules(self) -> float:
        """Energy used since the driver was loaded, in joules; 0 if this GPU does not count it."""
        with suppress(self._nvml.NVMLError):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        return 0.0
