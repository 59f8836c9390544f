"""What GPUs can do at most, by the names that their driver gives them. A pure function."""

import re

DENSE_BF16 = {
    r"H100 80GB HBM3|H100 SXM.*": 989.4e12,
    r"H100 PCIe|H100 80GB HBM2e": 756.5e12,
    r"H100 NVL": 835.5e12,
    r"H200|H200 SXM.*": 989.4e12,
    r"H200 NVL": 835.5e12,
    r"A100-(SXM4|PCIE|PCIe)-(40|80)GB|A100 80GB PCIe": 312e12,
}
"""FLOP/s of bf16 products without sparsity, by the whole name after `NVIDIA`. The vendor's data sheets of H100 and H200
give twice as much, with sparsity; that of A100 gives both."""


def peak_flops(device_name: str) -> float | None:
    """The vendor's peak of dense bf16 matrix products, FLOP/s; None for a device that is not in the table.

    A part of a GPU (MIG) is none of them: its name goes on behind the GPU's.

    Args:
        device_name: what torch.cuda.get_device_name gives.
    """
    name = device_name.removeprefix("NVIDIA").strip()
    return next((peak for pattern, peak in DENSE_BF16.items() if re.fullmatch(pattern, name)), None)


GIGABYTES = {r"H100 NVL": 94, r"H200.*": 141}
"""Of memory, by the vendor's data sheets, where the name does not say it; H100 have 80 otherwise."""


def memory_bytes(device_name: str) -> int | None:
    """Memory of a GPU by its name; None for a device that is not in the table."""
    name = device_name.removeprefix("NVIDIA").strip()
    if peak_flops(name) is None:
        return None
    named = re.search(r"(\d+)GB", name)
    listed = (size for pattern, size in GIGABYTES.items() if re.fullmatch(pattern, name))
    return (int(named[1]) if named else next(listed, 80)) * 10**9
