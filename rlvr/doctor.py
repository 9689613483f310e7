"""What this machine can run: versions, devices, and what each extra would enable."""

import platform
import shutil

from rich.console import Console
from rich.table import Table

from rlvr.run_directory import installed_version

REQUIRED = ("torch", "trl", "transformers", "accelerate", "peft", "datasets", "reasoning-gym", "math-verify", "wandb")
EXTRAS = {
    "deepspeed": "ZeRO-2 and ZeRO-3 training (pip install 'rlvr[deepspeed]')",
    "bitsandbytes": "4-bit and 8-bit weights under adapters (pip install 'rlvr[quantization]')",
    "vllm": "fast generation on GPUs (pip install 'rlvr[vllm]')",
    "trackio": "a local tracker without an account: report.to: [trackio]",
    "tensorboard": "report.to: [tensorboard]",
}


def diagnose(console: Console) -> bool:
    """Prints the tables; returns whether every required package is there."""
    import torch

    table = Table("package", "version", "", title=f"python {platform.python_version()}, {platform.platform()}")
    for name in REQUIRED:
        found = installed_version(name)
        table.add_row(name, found or "missing", "" if found else "run: make install")
    for name, purpose in EXTRAS.items():
        found = installed_version(name)
        table.add_row(name, found or "not installed", "" if found else f"would enable {purpose}")
    console.print(table)

    devices = Table("device", "what", title="devices")
    devices.add_row("cpu", f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.add_row(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    free = shutil.disk_usage(".").free / 2**30
    devices.add_row("disk", f"{free:.0f} GiB free here")
    console.print(devices)
    return all(installed_version(name) for name in REQUIRED)
