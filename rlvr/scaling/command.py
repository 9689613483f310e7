"""`rlvr doctor`: what this machine can run, or what a model needs. Heavy imports happen inside the command."""

import math
from typing import Annotated, Literal

import typer
from rich.console import Console

from rlvr.command_errors import user_errors
from rlvr.errors import UserError


def doctor(
    context: typer.Context,
    model_size: Annotated[str | None, typer.Option(help="estimate the memory of so many parameters, as 7B")] = None,
    model: Annotated[str | None, typer.Option(help="the same of a folder with a config.json, or a known id")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs in all")] = 1,
    gpu_memory: Annotated[float, typer.Option(help="GiB of each GPU")] = 80.0,
    batch: Annotated[int, typer.Option(help="trainer.per_device_train_batch_size")] = 8,
    accumulation: Annotated[int, typer.Option(help="trainer.gradient_accumulation_steps")] = 1,
    group: Annotated[int, typer.Option(help="trainer.num_generations")] = 8,
    prompt_length: Annotated[int, typer.Option(help="tokens of the longest prompt")] = 1024,
    completion_length: Annotated[int, typer.Option(help="trainer.max_completion_length")] = 512,
    lora: Annotated[int | None, typer.Option(help="train adapters of this rank on all linear layers")] = None,
    quantized: Annotated[bool, typer.Option("--quantized", help="QLoRA: the frozen weights in 4 bits")] = False,
    kl: Annotated[bool, typer.Option("--kl", help="with a reference model: algorithm.kl_coef above 0")] = False,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="model.dtype, as loaded")] = "bfloat16",
) -> None:
    """Show versions, devices and extras; or with --model-size or --model the memory a run needs on each backend."""
    with user_errors():
        if model is not None and model_size is not None:
            raise UserError("--model and --model-size both say which model; give one of them.")
        if model is None and model_size is None:
            for name in context.params:
                source = context.get_parameter_source(name)
                if source is not None and source.name == "COMMANDLINE":
                    option = name.replace("_", "-")
                    raise UserError(f"--{option} is of an estimate; say of which model, as with --model-size 7B.")
            from rlvr.doctor import diagnose

            if not diagnose(Console()):
                raise typer.Exit(1)
            return
        if not gpu_memory > 0 or math.isinf(gpu_memory):
            raise UserError(f"--gpu-memory is {gpu_memory:g}; give the GiB of a GPU, such as 80.")

        from rlvr.scaling.architecture import of_model, of_size
        from rlvr.scaling.report import print_report
        from rlvr.scaling.workload import Workload, checked

        work = Workload(
            batch=batch,
            group=group,
            accumulation=accumulation,
            prompt_length=prompt_length,
            completion_length=completion_length,
            weights=dtype,
            lora_rank=lora,
            quantized=quantized,
            reference=kl,
        )
        sizes = of_size(model_size) if model_size is not None else of_model(model or "")
        print_report(Console(), sizes, checked(work, gpus), gpus, gpu_memory)
