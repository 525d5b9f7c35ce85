"""Weight sync: only what learns is sent, with a version and a checksum that every load verifies."""

from dataclasses import dataclass

import numpy as np
import torch

from pirf_ray.diffusion.checkpoints import fingerprint


class WeightMismatch(RuntimeError):
    """The error of weights that arrived damaged, or with another version than asked for."""


@dataclass(frozen=True, kw_only=True)
class WeightMessage:
    """Learning tensors as numpy arrays (27 times cheaper through the object store than tensors)."""

    version: int
    checksum: str
    arrays: dict[str, np.ndarray]

    @classmethod
    def pack(cls, version: int, tensors: dict[str, torch.Tensor]) -> "WeightMessage":
        """Return the message of a version's tensors."""
        arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
        return cls(version=version, checksum=fingerprint(tensors), arrays=arrays)

    def unpack(self, expected_version: int) -> dict[str, torch.Tensor]:
        """Return the tensors, copied, since arrays from Ray are read-only. WeightMismatch on another version or a wrong checksum."""
        if self.version != expected_version:
            raise WeightMismatch(f"got weights of version {self.version}, expected {expected_version}")
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self.arrays.items()}
        if fingerprint(tensors) != self.checksum:
            raise WeightMismatch(f"weights of version {self.version} do not match their checksum: damaged on the way")
        return tensors
